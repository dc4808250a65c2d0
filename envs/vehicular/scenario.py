"""Everything that the vehicular problem assumes: one strict model, each number with its unit, bounds and source."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from envs.registry import Scenario
from envs.vehicular.trace_data import XICHENG, BoundingBox

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[float, Field(gt=0, le=1)]

SERVICES = ("traffic compliance", "navigation", "auto-parking", "entertainment", "voice interaction", "risk prediction")


class VehicularScenario(Scenario):
    """Personalised LLM service updating between edge servers, vehicles and the cloud (the IDMAC paper, see README.md)."""

    problem: Literal["vehicular"] = "vehicular"

    # Who and where
    num_vehicles: int = Field(50, ge=1, le=5_000)
    num_edges: int = Field(6, ge=1, le=64)
    area_m: tuple[Positive, Positive] = Field((3_600.0, 2_400.0), description="width and height of the synthetic city")
    traces: str | None = Field(None, description="T-Drive folder or file, or SUMO FCD file; None is the synthetic city")
    trace_box: BoundingBox | None = Field(
        XICHENG, description="degrees that T-Drive points are cropped to; None keeps all. SUMO's are never cropped"
    )
    trace_seed: int = Field(0, ge=0, description="synthetic city: streets and trips")
    trace_first_slot: int = Field(0, ge=0, description="files: slots to skip")
    trace_slots: int = Field(240, ge=1, le=100_000, description="slots to simulate or to read; episodes are windows of them")
    trace_vehicles: int | None = Field(
        None, ge=1, description="synthetic city: vehicles to draw from; None is twice num_vehicles"
    )
    horizon_slots: int = Field(60, ge=1, le=10_000)
    slot_s: Positive = Field(60.0, description="length of a slot")
    coverage_radius_m: Positive = 800.0

    # Requests
    service_probabilities: tuple[Share, ...] = Field(
        (0.2455, 0.2455, 0.0415, 0.3025, 0.0825, 0.0825), min_length=1, max_length=32
    )
    size_median_mb: Positive = 0.1
    size_sigma: NonNegative = Field(1.0, description="of the logarithm")
    size_max_mb: Positive = 50.0
    importance_alpha: Annotated[float, Field(gt=0, le=20)] = 0.5
    importance_beta: Annotated[float, Field(ge=1, le=20)] = 2.0
    demand_max: Share = Field(0.3, description="demand level is uniform between 0 and this")
    response_fraction: NonNegative = Field(0.5, description="bits of the answer per bit of the request")
    request_slots: int = Field(32, ge=1, le=1_024, description="R, requests of an edge that its agent routes one by one")

    # Models
    initial_capability: Share = Field(0.6, description="of the cloud and of experts")
    max_capability: Annotated[float, Field(gt=0, le=1)] = 1.0
    learning_rate: NonNegative = Field(0.01, description="capability per unit of logged importance")
    update_period_slots: int = Field(20, ge=1)
    vehicle_patch_slots: int | None = Field(3, ge=1, description="patches a vehicle holds; None is one of each service")
    edge_patch_slots: int = Field(2, ge=1, description="fetched patches an edge holds beside its primary service")
    patch_mb: Positive = 20.0

    # Radio
    radio_bandwidth_hz: Positive = 100e6
    uplink_share: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="of the bandwidth; eq. 20 bounds the sum")
    radio_cap_bps: Positive = Field(1000e6, description="of an edge, in each direction")
    noise_w_per_hz: Positive = 4e-21
    reference_gain: Positive = Field(1.6e-5, description="G0, gain at 1 m: free space at 5.9 GHz, (c / (4 pi f))^2")
    path_loss_exponent: Annotated[float, Field(gt=2, le=6)] = 3.0
    fading_blocks: int = Field(4, ge=1, le=64, description="independent Rayleigh fades that a slot's channel is the mean of")
    min_distance_m: Positive = Field(10.0, description="antenna height: no link is shorter")
    vehicle_radio_w: Positive = 1.0
    edge_radio_w: Positive = Field(50.0, description="at power level 1")
    macro_rate_bps: Positive = Field(20e6, description="vehicle to cloud outside all radii, in each direction")
    macro_radio_w: NonNegative = Field(20.0, description="of the macro cell while it sends to one vehicle")

    # Wires
    fiber_bps: Positive = Field(10e9, description="per pair of edges")
    fiber_w: NonNegative = Field(20.0, description="while a pair sends at its full rate")
    cloud_link_bps: Positive = Field(1e9, description="per edge")
    cloud_rtt_s: NonNegative = 0.05

    # Compute
    cycles_per_mb_importance: Positive = 20e9
    edge_hz: Positive = Field(100e9, description="at compute level 1")
    edge_compute_w: Positive = Field(150.0, description="at compute level 1")
    cloud_hz: Positive = 400e9
    cloud_compute_w: Positive = Field(600.0, description="the edges' joules per cycle at level 1")
    vehicle_hz: Positive = 5e9
    vehicle_compute_w: Positive = Field(7.5, description="the edges' joules per cycle at level 1")
    compute_levels: tuple[Level, ...] = Field((0.2, 0.4, 0.6, 0.8, 1.0), min_length=1, max_length=16)
    power_levels: tuple[Level, ...] = Field((0.2, 0.4, 0.6, 0.8, 1.0), min_length=1, max_length=16)

    # Score and reward
    qos_max: Positive = 1.0
    qos_alpha: Positive = Field(5.0, description="growth rate in eq. 3")
    weight_qos: NonNegative = 0.85
    weight_latency: NonNegative = Field(0.4, description="per second")
    weight_energy: NonNegative = Field(0.02, description="per joule")
    score_threshold: float = 0.6
    score_temperature: Positive = 0.1
    weight_cost: NonNegative = 0.1
    cost_energy_j: Positive = Field(10.0, description="energy per request that costs 1")
    cost_patches: Positive = Field(1.0, description="patches moved per request that cost 1")
    weight_gain: NonNegative = 1.0
    weight_excess: NonNegative = Field(0.5, description="per second above the limit")
    latency_limit_s: Positive = 1.0
    mask_invalid: bool = Field(
        True, description="False: the mask allows all that exists, and illegal choices pay weight_invalid"
    )
    weight_invalid: NonNegative = Field(0.5, description="times the share of choices that were illegal")

    # Faults
    edge_down_probability: Share = Field(0.0, description="per edge and slot that an outage starts")
    edge_down_slots: int = Field(5, ge=1, description="length of an outage")
    link_loss_probability: Share = Field(0.0, description="per edge and slot that its wires degrade")
    link_loss_slots: int = Field(5, ge=1)
    link_loss_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="of the rate that a degraded link loses")

    @model_validator(mode="after")
    def _probabilities_sum_to_one(self) -> VehicularScenario:
        total = sum(self.service_probabilities)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"service_probabilities sum to {total:g}, expected 1")
        return self

    @property
    def num_services(self) -> int:
        """K."""
        return len(self.service_probabilities)

    @property
    def store_slots(self) -> int:
        """P, patches that a vehicle can hold."""
        return min(self.vehicle_patch_slots or self.num_services, self.num_services)

    @property
    def num_versions(self) -> int:
        """V, versions that a model can reach in an episode: the first and one per cloud update."""
        return self.horizon_slots // self.update_period_slots + 1

    @property
    def patch_bits(self) -> float:
        return self.patch_mb * 8e6
