"""What agents see and choose in the vehicular problem, as data: fields, action heads and metrics."""

from __future__ import annotations

from torch import Tensor

from envs.registry import ScenarioSpec
from envs.team import ActionHead, Field, Metric
from envs.vehicular.scenario import VehicularScenario

MIN_GAIN_DB, MAX_GAIN_DB = -200.0, -40.0


class VehicularSpec(ScenarioSpec):
    """The contract of the problem and its scenario."""

    physics: VehicularScenario


def observation_fields(s: VehicularScenario) -> dict[str, Field]:
    """Field name to description; the order is that in which people should read them."""
    R, M, K = s.request_slots, s.num_edges, s.num_services
    vehicles = float(s.num_vehicles)
    max_gcycles = s.size_max_mb * s.cycles_per_mb_importance / 1e9

    def request(low: float, high: float, unit: str, scale: str, text: str) -> Field:
        return Field((R,), low, high, unit, scale, "request", text)  # type: ignore[arg-type]

    def count(shape: tuple[int, ...], text: str) -> Field:
        return Field(shape, 1.0, vehicles, "1", "log", description=text)

    return {
        "service": request(-1, K - 1, "1", "category", "requested service, -1 in an empty slot"),
        "size_mb": request(0.01, s.size_max_mb, "MB", "log", "request size"),
        "importance": request(0, 1, "1", "linear", "request importance"),
        "demand_level": request(0, s.demand_max, "1", "linear", "capability below which an answer is worth nothing"),
        "channel_gain_db": request(MIN_GAIN_DB, MAX_GAIN_DB, "dB", "linear", "gain between vehicle and edge, 0 if empty"),
        "displaced_capability": request(
            0, s.max_capability, "1", "linear", "capability of the patch that a new one pushes out of the vehicle, 0 if none"
        ),
        "edge": Field((), 0, M - 1, "1", "category", description="own number"),
        "capability": Field((K,), 0, s.max_capability, description="of own models, 0 where the service is not answerable"),
        "version": Field((K,), -1, s.num_versions - 1, description="of own models, -1 where there is none"),
        "idle_slots": Field((K,), 0, s.horizon_slots, "slot", description="since a fetched patch was last used, 0 if none"),
        "primary": Field((K,), 0, 1, description="1 for the service that this edge is an expert for"),
        "cloud_version": Field((K,), 0, s.num_versions - 1, description="of the cloud's models and the experts'"),
        "target_capability": Field((M + 1, K), 0, s.max_capability, description="of every edge and the cloud, 0 if it cannot"),
        "logged_importance": Field(
            (K,), 1.0, vehicles * s.update_period_slots, "1", "log", description="logged for the next fine-tuning, by service"
        ),
        "node_health": Field((M,), 0, 1, description="share of each edge's wire rate that works, 0 where the edge is down"),
        "last_tasks": count((M + 1,), "tasks on every edge and the cloud in the last slot"),
        "requests": count((), "requests to this edge in this slot, also those beyond the request slots"),
        "overflow": count((K,), "requests beyond the request slots, by service; they go to the service's expert"),
        "requested_gcycles": Field((), 0.1, max_gcycles * vehicles, "Gcycle", "log", description="of this edge's requests"),
        "vehicles": count((), "vehicles in this edge's radius"),
        "vehicle_answers": count((), "vehicles in this edge's radius that answer their request with a patch of their own"),
        "vehicle_score": Field((), 0.1, vehicles, "1", "log", description="sum of those answers' task scores"),
        "vehicle_excess_s": Field(
            (), 0.1, s.slot_s * vehicles, "s", "log", description="sum of those answers' latencies above the limit"
        ),
        "all_vehicles": count((), "vehicles on the road"),
        "macro_requests": count((), "requests that reach the cloud over the macro cell in this slot"),
        "slot": Field((), 0, s.horizon_slots, "slot", description="slots since the start"),
        "slots_to_update": Field((), 0, s.update_period_slots, "slot", description="until the cloud's next fine-tuning"),
    }


def action_heads(s: VehicularScenario) -> tuple[ActionHead, ...]:
    """Target of each request, compute level, power level, model to fetch."""
    targets = (*agent_names(s), "cloud")
    fetches = ("none", *(f"service_{k}" for k in range(s.num_services)))
    return (
        ActionHead("target", len(targets), s.request_slots, "request", targets),
        ActionHead("compute_level", len(s.compute_levels), labels=tuple(f"{level:g}" for level in s.compute_levels)),
        ActionHead("power_level", len(s.power_levels), labels=tuple(f"{level:g}" for level in s.power_levels)),
        ActionHead("fetch", len(fetches), labels=fetches),
    )


def agent_names(s: VehicularScenario) -> tuple[str, ...]:
    return tuple(f"edge_{m}" for m in range(s.num_edges))


def metrics() -> dict[str, Metric]:
    """Episode figures; the sums that they are made of are named in `simulator.py`."""
    return {
        "return": Metric("reward", None, "1", "higher", "sum of rewards"),
        "latency_s": Metric("latency_s", "requests", "s", "lower", "mean latency of a request"),
        "energy_j": Metric("energy_j", "requests", "J", "lower", "mean energy per request, with patches and fetches"),
        "model_improvement": Metric("gain", "requests", "1", "higher", "mean capability that vehicles gained per request"),
        "service_score": Metric("score", "requests", "1", "higher", "mean task score"),
        "qos": Metric("qos", "requests", "1", "higher", "mean quality of service"),
        "in_time_share": Metric("in_time", "requests", "1", "higher", "share of requests answered within the latency limit"),
        "vehicle_share": Metric("by_vehicle", "requests", "1", "neither", "share answered by the vehicle's patch"),
        "own_edge_share": Metric("by_own_edge", "requests", "1", "neither", "share answered by the vehicle's edge"),
        "peer_edge_share": Metric("by_peer_edge", "requests", "1", "neither", "share answered by another edge"),
        "cloud_share": Metric("by_cloud", "requests", "1", "neither", "share answered by the cloud"),
        "patch_mb": Metric("patch_mb", "requests", "MB", "lower", "patches moved per request, to vehicles and between edges"),
        "fetches": Metric("fetches", "steps", "1", "neither", "models that edges fetched per slot"),
        "illegal_share": Metric("illegal", "choices", "1", "lower", "share of choices that were illegal"),
    }


def team_spec(s: VehicularScenario, edges_m: Tensor) -> VehicularSpec:
    """The problem's contract."""
    return VehicularSpec(
        problem=s.problem,
        scenario=s.name,
        agents=agent_names(s),
        observation=observation_fields(s),
        heads=action_heads(s),
        state_size=state_size(s),
        max_steps=s.horizon_slots,
        metrics=metrics(),
        positions=tuple((float(x), float(y)) for x, y in edges_m),
        physics=s,
    )


def state_size(s: VehicularScenario) -> int:
    """S: 4 + K figures per edge, then 5 K + 8 of the whole system."""
    return s.num_edges * (4 + s.num_services) + 5 * s.num_services + 8
