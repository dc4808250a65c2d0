"""Steps per second of the vehicular simulator on one core: `python -m tests.benchmarks.simulator_speed`.

Random legal actions; resets count, choosing the actions does not. Times are processor times of this process, so that other
work on the machine disturbs little. A step of E episodes counts as E env-steps.
"""

from __future__ import annotations

import argparse
import time

import torch

from envs.registry import make_scenario, make_simulator
from envs.team import episode_seeds, random_actions


def env_steps_per_second(name: str, num_envs: int, overrides: dict[str, object] | None = None, slots: int = 60) -> float:
    """Of the fastest of three episodes: the others show what else runs on the machine."""
    simulator = make_simulator(make_scenario(name, {"horizon_slots": slots, **(overrides or {})}), num_envs)
    seeds, generator = episode_seeds(0, 0, num_envs), torch.Generator().manual_seed(0)
    fastest = float("inf")
    for _ in range(3):
        begin = time.process_time()
        result = simulator.reset(seeds)
        spent = time.process_time() - begin
        for _ in range(slots):
            actions = random_actions(result.action_mask, generator)
            begin = time.process_time()
            result = simulator.step(actions)
            spent += time.process_time() - begin
        fastest = min(fastest, spent)
    return slots * num_envs / fastest


def table(title: str, rows: dict[str, float]) -> None:
    """Rates, and each as a multiple of the first."""
    first = next(iter(rows.values()))
    print(f"\n| {title} | env-steps/s | ratio |\n|---|---|---|")
    for label, rate in rows.items():
        print(f"| {label} | {rate:,.0f} | {rate / first:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the vehicular simulator on one core.")
    parser.add_argument("--num-envs", type=int, default=256)
    envs = parser.parse_args().num_envs
    torch.set_num_threads(1)
    presets = ("v50-e6", "v100-e6", "v200-e6", "v200-e12")
    table(f"scenario, E = {envs}", {name: env_steps_per_second(f"vehicular/{name}", envs) for name in presets})
    sizes = (1, 8, 64, 256, 512)
    table("E, v50-e6", {str(size): env_steps_per_second("vehicular/v50-e6", size) for size in sizes})
    counts = (3, 6, 12, 24)
    edges = {str(m): env_steps_per_second("vehicular/v50-e6", envs // 4, {"num_edges": m}) for m in counts}
    table(f"M, 50 vehicles, E = {envs // 4}", edges)
    counts = (50, 100, 200, 400)
    vehicles = {str(n): env_steps_per_second("vehicular/v50-e6", envs // 4, {"num_vehicles": n}) for n in counts}
    table(f"N, 6 edges, E = {envs // 4}", vehicles)


if __name__ == "__main__":
    main()
