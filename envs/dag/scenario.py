"""Everything that the dag problem assumes: one strict model, each number with its unit, bounds and source.

"Paper" is the UCB-COMA paper; its equations without numbers are cited by section.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from envs.dag.graphs import MODALITIES
from envs.dag.random_graphs import RandomGraphs
from envs.dag.templates import TEMPLATES
from envs.registry import Scenario

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Bits = Annotated[float, Field(ge=0, le=1e15)]
Range = tuple[Bits, Bits]
Modality = Literal["text", "image", "audio", "multimodal"]


class DagScenario(Scenario):
    """Fine-grained offloading of LLM inference tasks to edges and a cloud (the UCB-COMA paper, see README.md)."""

    problem: Literal["dag"] = "dag"

    # Tasks
    num_tasks: int = Field(5, ge=1, le=100, description="I")
    graphs: tuple[str, ...] = Field(
        tuple(TEMPLATES),
        min_length=1,
        max_length=1_000,
        description="templates or node-link JSON files; task i uses i mod their number",
    )
    random_graphs: RandomGraphs | None = Field(
        None, description="draws tasks from a pool of random graphs, instead of `graphs`"
    )
    graph_seed: int = Field(0, ge=0, description="random graphs: the pool")
    input_bits: tuple[Range, Range, Range, Range] = Field(
        ((1e3, 3e3), (0.1e6, 0.3e6), (0.2e6, 0.4e6), (0.3e6, 0.6e6)),
        description="D by modality (text, image, audio, multimodal), uniform (paper, Sec. 5.1)",
    )
    output_bits: tuple[Range, Range, Range, Range] = Field(
        ((1e3, 3e3), (2e3, 4e3), (3e3, 5e3), (2e3, 6e3)), description="R by modality, uniform (paper, Sec. 5.1)"
    )
    cycles_per_bit: Positive = Field(1_900.0, description="paper, Sec. 5.1")

    # Servers
    edge_hz: tuple[Positive, ...] = Field((2.0e9, 2.3e9, 2.5e9), min_length=1, max_length=64, description="f_n")
    edge_modalities: tuple[tuple[Modality, ...], ...] = Field(
        (("text",), ("image",), ("audio",)), description="Theta_n: what each edge hosts"
    )
    cloud_hz: Positive = 10e9
    cloud_modalities: tuple[Modality, ...] = MODALITIES  # type: ignore[assignment]
    edge_usd_per_gcycle: NonNegative = 0.01
    cloud_usd_per_gcycle: NonNegative = 0.03

    # Links
    bandwidth_hz: Positive = Field(6e6, description="W of a device's subchannel to the edges; the paper's sweep: 5, 5.5, 6 MHz")
    device_w: Positive = 0.3
    edge_w: Positive = 0.8
    noise_w: Positive = Field(10**-7.3, description="-43 dBm, as the paper has it")
    reference_gain: Positive = Field(1.127, description="at 1 m, extrapolated; see radio.py")
    path_loss_exponent: Positive = Field(2.9355, description="see radio.py")
    min_distance_m: Positive = 20.0
    max_distance_m: Positive = Field(100.0, description="a device's distance from the access point is uniform between the two")
    edge_link_bps: Positive = Field(22e6, description="r_e")
    edge_cloud_bps: Positive = Field(12e6, description="r_ec, both ways")
    cloud_uplink_bps: Positive = Field(3e6, description="device to cloud")
    cloud_downlink_bps: Positive = Field(12e6, description="cloud to device")
    cloud_round_trip_s: NonNegative = Field(
        0.5, description="added to the input transfer of what runs on the cloud: network and time to the first token; paper: 0"
    )

    # Score and reward
    deadline_s: Positive = Field(3.0, description="T_max; the paper's sweep: 2.5, 2.8, 3.0 s")
    weight: Share = Field(0.5, description="gamma, of latency against cost")
    legal_reward: NonNegative = Field(2.0, description="theta")
    penalty: NonNegative = Field(1.0, description="vartheta")
    mask_invalid: bool = Field(True, description="False: every pair of an existing subtask can be chosen, illegal ones pay")
    max_steps: int | None = Field(None, ge=1, le=100_000, description="None: J with masks, 40 without")

    # Faults
    failure_probability: Share = Field(0.0, description="per edge and step that it accepts nothing; paper's sweep: 0, 0.1, 0.2")

    @field_validator("input_bits", "output_bits")
    @classmethod
    def _ordered(cls, ranges: tuple[Range, ...]) -> tuple[Range, ...]:
        for name, (low, high) in zip(MODALITIES, ranges, strict=True):
            if low > high:
                raise ValueError(
                    f"the range of {name} begins at {low:g} and ends at {high:g}, expected an end above the beginning"
                )
        return ranges

    @model_validator(mode="after")
    def _consistent(self) -> DagScenario:
        if len(self.edge_modalities) != len(self.edge_hz):
            raise ValueError(
                f"edge_modalities has {len(self.edge_modalities)} entries, "
                f"expected one for each of the {len(self.edge_hz)} of edge_hz"
            )
        if self.min_distance_m > self.max_distance_m:
            raise ValueError(
                f"min_distance_m = {self.min_distance_m:g}, expected at most max_distance_m = {self.max_distance_m:g}"
            )
        missing = [name for name in self.hosted if name not in self.cloud_modalities]
        if missing and self.failure_probability:
            raise ValueError(f"failure_probability above 0 needs a cloud that hosts {missing[0]} too: the cloud never fails")
        return self

    @property
    def num_locations(self) -> int:
        """L."""
        return len(self.edge_hz) + 1

    @property
    def hosted(self) -> tuple[str, ...]:
        """Modalities that some location hosts."""
        return tuple(name for name in MODALITIES if any(name in names for names in self.location_modalities))

    @property
    def location_modalities(self) -> tuple[tuple[str, ...], ...]:
        """What each of the L locations hosts."""
        return (*self.edge_modalities, self.cloud_modalities)

    @property
    def location_hz(self) -> tuple[float, ...]:
        return (*self.edge_hz, self.cloud_hz)

    @property
    def location_usd_per_gcycle(self) -> tuple[float, ...]:
        return (*(self.edge_usd_per_gcycle for _ in self.edge_hz), self.cloud_usd_per_gcycle)
