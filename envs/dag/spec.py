"""What agents see and choose in the dag problem, as data: fields, the action head and metrics."""

from __future__ import annotations

import torch

from envs.dag.graphs import MODALITIES
from envs.dag.pool import GraphPool, hosts, seconds_per_bit
from envs.dag.radio import path_gain, shannon_bps
from envs.dag.scenario import DagScenario
from envs.registry import ScenarioSpec
from envs.team import ActionHead, Field, Metric

STATE_PER_SUBTASK = 7 + len(MODALITIES)
TIME_UNIT_S = 0.1


class DagSpec(ScenarioSpec):
    """The contract of the problem and its scenario."""

    physics: DagScenario


def observation_fields(s: DagScenario, pool: GraphPool) -> dict[str, Field]:
    """Field name to description; the order is that in which people should read them."""
    J, L = pool.places, s.num_locations
    uplink_bps, downlink_bps = (
        link_bounds_bps(s, s.device_w, s.cloud_uplink_bps),
        link_bounds_bps(s, s.edge_w, s.cloud_downlink_bps),
    )
    longest_service_s, longest_rank_s, horizon_s = time_bounds_s(s, pool)
    most_input, most_output = (float(bits.max().clamp(min=1e3)) for bits in (pool.input_bits, pool.output_bits))
    most_cycles = most_input * s.cycles_per_bit
    dearest = most_cycles * 1e-9 * max(s.location_usd_per_gcycle)

    def each(low: float, high: float, unit: str, scale: str, text: str, *shape: int) -> Field:
        # a hair of room: float32 may round a value up
        return Field((J, *shape), low, high * (1 + 1e-6), unit, scale, "subtask", text)  # type: ignore[arg-type]

    def flag(text: str) -> Field:
        return Field((J,), 0, 1, entity="subtask", description=text)

    def seconds(high: float, text: str, *shape: int) -> Field:
        return each(TIME_UNIT_S, max(high, TIME_UNIT_S), "s", "log", text, *shape)

    def rates(bounds: tuple[float, float], text: str) -> Field:
        low, high = bounds
        return Field((L,), low * (1 - 1e-6), high * (1 + 1e-6), "bit/s", "log", description=text)

    return {
        "subtask_modality": Field((J,), -1, len(MODALITIES) - 1, "1", "category", "subtask", ", ".join(MODALITIES)),
        "subtask_scheduled": flag("1 where it is scheduled"),
        "subtask_ready": flag("1 where it can be scheduled: all predecessors are, itself is not"),
        "subtask_input_bits": each(1e3, most_input, "bit", "log", "D, that the device sends"),
        "subtask_output_bits": each(1e3, most_output, "bit", "log", "R, for successors or the device"),
        "subtask_cycles": each(1e6, max(most_cycles, 1e6), "cycle", "log", "C"),
        "subtask_rank_s": seconds(longest_rank_s, "mean time from its start to the end of the task (HEFT's upward rank)"),
        "subtask_end_s": seconds(horizon_s, "EN, 0 where not scheduled"),
        "subtask_data_ready_s": seconds(horizon_s, "WT on each location, 0 where not ready", L),
        "subtask_service_s": seconds(longest_service_s, "input transfer and compute on each location, 0 where not hosted", L),
        "subtask_cost": each(0, dearest, "USD", "linear", "cost on each location, 0 where not hosted", L),
        "subtask_successors": Field((J, J), 0, 1, "1", "adjacency", "subtask", "1 where the column needs the row's output"),
        "server_free_s": Field(
            (L,), TIME_UNIT_S, max(horizon_s, TIME_UNIT_S), "s", "log", description="end of what it has accepted; cloud: 0"
        ),
        "server_up": Field((L,), 0, 1, description="0 where it accepts nothing in this step"),
        "server_speed_hz": Field((L,), min(1e9, *s.location_hz), max(s.location_hz), "Hz", "log", description="f"),
        "server_price": Field((L,), 0, max(s.location_usd_per_gcycle), "USD/Gcycle", description="lambda"),
        "server_hosts": Field((L * len(MODALITIES),), 0, 1, description=f"for each location: {', '.join(MODALITIES)}"),
        "uplink_bps": rates(uplink_bps, "from the task's device"),
        "downlink_bps": rates(downlink_bps, "to the task's device"),
        "step_share": Field((1,), 0, 1, description="steps played, of the longest episode"),
    }


def location_names(s: DagScenario) -> tuple[str, ...]:
    return (*(f"edge-{n}" for n in range(len(s.edge_hz))), "cloud")


def agent_names(s: DagScenario) -> tuple[str, ...]:
    return tuple(f"task-{i}" for i in range(s.num_tasks))


def action_head(s: DagScenario, places: int) -> ActionHead:
    """One choice: subtask * L + location."""
    labels = tuple(f"subtask-{j} at {name}" for j in range(places) for name in location_names(s))
    return ActionHead("decision", places * s.num_locations, labels=labels, members="subtask")


def metrics() -> dict[str, Metric]:
    """Episode figures; the sums that they are made of are named in `simulator.py`."""
    return {
        "return": Metric("reward", None, "1", "higher", "sum of rewards"),
        "objective": Metric(
            "objective",
            None,
            "1",
            "lower",
            "weighted latency and cost, summed over completed tasks: compare where all complete",
        ),
        "completed_tasks": Metric("completed", None, "1", "higher", "tasks whose subtasks are all scheduled"),
        "deadline_violations": Metric("violations", None, "1", "lower", "completed tasks that took longer than the deadline"),
        "latency_s": Metric("latency_s", "completed", "s", "lower", "mean T of a completed task"),
        "cost_usd": Metric("cost_usd", "completed", "USD", "lower", "mean cost of a completed task"),
        "illegal_share": Metric("illegal", "choices", "1", "lower", "share of choices that were illegal"),
        "server_wait_s": Metric("wait_s", "accepted", "s", "lower", "mean wait of a subtask, data ready, for its edge"),
        "cloud_share": Metric("on_cloud", "accepted", "1", "neither", "share of subtasks on the cloud"),
    }


def team_spec(s: DagScenario, pool: GraphPool) -> DagSpec:
    """The problem's contract."""
    return DagSpec(
        problem=s.problem,
        scenario=s.name,
        agents=agent_names(s),
        observation=observation_fields(s, pool),
        heads=(action_head(s, pool.places),),
        state_size=s.num_tasks * pool.places * STATE_PER_SUBTASK + 2 * (s.num_locations - 1) + 1,
        max_steps=s.max_steps or (pool.places if s.mask_invalid else 40),
        metrics=metrics(),
        physics=s,
    )


def link_bounds_bps(s: DagScenario, power_w: float, cloud_bps: float) -> tuple[float, float]:
    """Least and largest rate of a device's links in one direction."""
    distances = torch.tensor([s.min_distance_m, s.max_distance_m], dtype=torch.float64)
    gain = path_gain(distances, s.reference_gain, s.path_loss_exponent)
    edges = shannon_bps(s.bandwidth_hz, power_w, gain, s.noise_w).tolist()
    return min(*edges, cloud_bps), max(*edges, cloud_bps)


def time_bounds_s(s: DagScenario, pool: GraphPool) -> tuple[float, float, float]:
    """Largest service time of a subtask, largest upward rank, and a time at which every schedule has ended.

    Going back from the last end, one follows either the server or a predecessor's output to a subtask that ended just before,
    and meets no subtask twice. So no schedule lasts longer than the services and transfers of all subtasks one after the other.
    """
    uplink_bps = torch.full((s.num_locations,), link_bounds_bps(s, s.device_w, s.cloud_uplink_bps)[0], dtype=torch.float64)
    uplink_bps[-1] = s.cloud_uplink_bps
    bits = pool.input_bits[..., 1, None].cpu()
    service_s = bits / uplink_bps + bits * s.cycles_per_bit / torch.tensor(s.location_hz, dtype=torch.float64)
    service_s[..., -1] += s.cloud_round_trip_s
    allowed = hosts(s)[pool.modality.cpu()]
    service_s = (service_s * allowed).amax(2)
    task_s = (service_s + pool.output_bits[..., 1].cpu() * seconds_per_bit(s).max()).sum(1)
    tasks_s = task_s[torch.arange(s.num_tasks) % len(task_s)] if s.random_graphs is None else task_s.max() * s.num_tasks
    return float(service_s.max()), float(task_s.max()), float(tasks_s.sum())
