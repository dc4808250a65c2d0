"""Steps per second of the dag simulator on one core: `python -m tests.benchmarks.dag_speed`.

Random legal actions; resets count, choosing the actions does not. Times are processor times of this process, so that other
work on the machine disturbs little. A step of E episodes counts as E env-steps.
"""

from __future__ import annotations

import argparse
import time

import torch

from envs.registry import make_scenario, make_simulator
from envs.team import TeamSimulator, episode_seeds, random_actions

SCENARIOS = ("paper", "t5", "t20", "t50", "random-t10-n20")


def env_steps_per_second(simulator: TeamSimulator, seconds: float) -> float:
    """Of the fastest episode: the others show what else runs on the machine."""
    seeds, generator = episode_seeds(0, 0, simulator.num_envs), torch.Generator().manual_seed(0)
    fastest, stop = float("inf"), time.process_time() + seconds
    while time.process_time() < stop:
        begin = time.process_time()
        result = simulator.reset(seeds)
        spent = time.process_time() - begin
        for _ in range(simulator.spec.max_steps):
            actions = random_actions(result.action_mask, generator)
            begin = time.process_time()
            result = simulator.step(actions)
            spent += time.process_time() - begin
        fastest = min(fastest, spent)
    return simulator.spec.max_steps * simulator.num_envs / fastest


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the dag simulator on one core.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 64, 512], help="parallel episodes")
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time for each figure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| env-steps/s | " + " | ".join(f"E = {size}" for size in given.sizes) + " |")
    print("|---|" + "---|" * len(given.sizes))
    for name in given.scenarios:
        scenario = make_scenario(f"dag/{name}")
        rates = [env_steps_per_second(make_simulator(scenario, size), given.seconds) for size in given.sizes]
        print(f"| {name} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
