"""Steps per second of the dialogue simulator on one core: `python -m tests.benchmarks.dialogue_speed`.

Measured as `tests.benchmarks.dag_speed` does.
"""

from __future__ import annotations

import argparse

import torch

from envs.registry import make_scenario, make_simulator
from tests.benchmarks.dag_speed import env_steps_per_second

SCENARIOS = ("d1", "d8", "d64")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the dialogue simulator on one core.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 64, 512], help="parallel episodes")
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time for each figure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| env-steps/s | " + " | ".join(f"E = {size}" for size in given.sizes) + " |")
    print("|---|" + "---|" * len(given.sizes))
    for name in SCENARIOS:
        scenario = make_scenario(f"dialogue/{name}")
        rates = [env_steps_per_second(make_simulator(scenario, size), given.seconds) for size in given.sizes]
        print(f"| {name} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
