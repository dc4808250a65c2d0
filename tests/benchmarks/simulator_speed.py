"""Steps per second of simulators on one core: `python -m tests.benchmarks.simulator_speed --scenarios dag/t5 dialogue/d8`.

Random legal actions; resets count, choosing the actions does not. Times are processor times of this process, so that other
work on the machine disturbs little. A step of E episodes counts as E env-steps.
"""

from __future__ import annotations

import argparse
import time

import torch

from envs.registry import make_scenario, make_simulator, scenario_names
from envs.team import TeamSimulator, episode_seeds, random_actions
from trainers.config import parse_overrides


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
    parser = argparse.ArgumentParser(description="Speed of simulators on one core.")
    parser.add_argument("--scenarios", nargs="+", default=scenario_names(), help="default: every preset of every problem")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 64, 512], help="parallel episodes")
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time for each figure")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="scenario.KEY=VALUE, repeatable")
    given = parser.parse_args()
    torch.set_num_threads(1)
    overrides = parse_overrides(given.overrides).get("scenario")
    print("| env-steps/s | " + " | ".join(f"E = {size}" for size in given.sizes) + " |")
    print("|---|" + "---|" * len(given.sizes))
    for name in given.scenarios:
        scenario = make_scenario(name, overrides)
        rates = [env_steps_per_second(make_simulator(scenario, size), given.seconds) for size in given.sizes]
        print(f"| {name} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
