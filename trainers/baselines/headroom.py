"""How much there is to learn in a vehicular scenario, before anything is trained.

python -m trainers.baselines.headroom vehicular/v50-e6 --episodes 64
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from envs.errors import InputError
from envs.registry import make_scenario
from envs.team import episode_seeds
from envs.vehicular import compute, radio, service
from envs.vehicular.episode import Episode, EpisodeSource
from envs.vehicular.scenario import VehicularScenario
from envs.vehicular.simulator import VehicularSimulator, place
from trainers.baselines.headroom_command import run
from trainers.baselines.vehicular import HEURISTICS
from trainers.evaluate import evaluate

COLUMNS = ("return", "latency_s", "energy_j", "model_improvement", "service_score", "in_time_share", "patch_mb")


@torch.no_grad()
def upper_bound(scenario: VehicularScenario, seeds: Tensor) -> Tensor:
    """`[E]`: returns that no policy can exceed, by a relaxation of every coupling.

    Each request is scored as if it were alone in the system: the better of its vehicle (no radio, as if it held a patch), an
    edge at the best of its levels with the whole band for itself, and the cloud. All models are as good as the cloud's would be
    if every request of the past had been logged. Each vehicle's store fills up with such patches for free.
    """
    s = scenario
    trace, edges_m, _ = place(s)
    episode = EpisodeSource(s, trace, edges_m).draw(seeds)
    present = episode.present[: s.horizon_slots]
    capability = _best_capability(s, episode.importance, episode.service, episode.present)
    best = torch.full(present.shape, -torch.inf)
    for latency_s, energy_j in _alone(s, episode):
        quality = service.qos(capability, episode.demand_level[: s.horizon_slots], s.qos_max, s.qos_alpha)
        utility = s.weight_qos * quality - s.weight_latency * latency_s - s.weight_energy * energy_j
        score = service.task_score(utility, s.score_threshold, s.score_temperature)
        excess = (latency_s - s.latency_limit_s).clamp(min=0.0)
        best = torch.maximum(best, score - s.weight_excess * excess - s.weight_cost * energy_j / s.cost_energy_j)
    slots = (best * present).sum(2) / present.sum(2).clamp(min=1)
    last = capability.amax(dim=(0, 2))
    return slots.sum(0) + s.weight_gain * s.store_slots * last


def _best_capability(s: VehicularScenario, importance: Tensor, kind: Tensor, present: Tensor) -> Tensor:
    """`[T, E, N]`: of the requested services, if all earlier requests had been logged."""
    logged = torch.zeros(importance.shape[1], s.num_services)
    now = torch.full_like(logged, s.initial_capability)
    rows = []
    for slot in range(s.horizon_slots):
        rows.append(now.gather(1, kind[slot]))
        logged = logged.scatter_add(1, kind[slot], importance[slot] * present[slot])
        if (slot + 1) % s.update_period_slots == 0:
            now = service.tuned_capability(now, logged, s.learning_rate, s.max_capability)
            logged = torch.zeros_like(logged)
    return torch.stack(rows)


def _alone(s: VehicularScenario, episode: Episode) -> list[tuple[Tensor, Tensor]]:
    """Latency and energy `[T, E, N]` of every request, alone on each kind of server and level."""
    played = slice(s.horizon_slots)
    size, cycles, gain, own = episode.size_mb[played], episode.cycles[played], episode.gain[played], episode.own[played]
    bits = size * 8e6
    uplink_hz = s.radio_bandwidth_hz * s.uplink_share
    rate = radio.rate_bps(uplink_hz, radio.snr(s.vehicle_radio_w, gain, uplink_hz, s.noise_w_per_hz)).clamp(max=s.radio_cap_bps)
    macro = own == s.num_edges
    air_s = bits / rate.masked_fill(macro, s.macro_rate_bps)
    vehicle_j = compute.joules_per_cycle(s.vehicle_compute_w, s.vehicle_hz, 1.0)
    cloud_j = compute.joules_per_cycle(s.cloud_compute_w, s.cloud_hz, 1.0)
    choices = [
        (cycles / s.vehicle_hz, cycles * vehicle_j),
        (air_s + s.cloud_rtt_s + cycles / s.cloud_hz, air_s * s.vehicle_radio_w + cycles * cloud_j),
    ]
    for level in s.compute_levels:
        edge_j = compute.joules_per_cycle(s.edge_compute_w, s.edge_hz, level)
        latency_s = (air_s + cycles / (s.edge_hz * level)).masked_fill(macro, torch.inf)
        choices.append((latency_s, air_s * s.vehicle_radio_w + cycles * edge_j))
    return choices


def report(name: str, episodes: int, seed: int) -> None:
    """Prints a Markdown table of every heuristic and of the bound, all on the same episodes."""
    scenario = make_scenario(name)
    if not isinstance(scenario, VehicularScenario):
        raise InputError(f"scenario {name!r}: headroom is computed for the vehicular problem only")
    seeds = episode_seeds(seed, 0, episodes)
    spec = VehicularSimulator(scenario).spec
    print(f"\n{name}, {episodes} episodes of seed {seed}\n\n| policy | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for label, policy in HEURISTICS.items():
        results = evaluate(policy(spec), scenario, seeds, num_envs=min(episodes, 16))
        error = results.values["return"].std() / episodes**0.5
        figures = [f"{results.pooled(column):.3f}" for column in COLUMNS]
        print(f"| {label} | {figures[0]} ± {error:.2f} | {' | '.join(figures[1:])} |", flush=True)
    print(f"| upper bound | {upper_bound(scenario, seeds).mean():.3f} |{' |' * (len(COLUMNS) - 1)}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 on bad input."""
    return run(report, "an upper bound", "vehicular", arguments)


if __name__ == "__main__":
    sys.exit(main())
