"""How much there is to learn in a velo scenario, before anything is trained.

python -m trainers.baselines.velo_headroom velo/n3 velo/n3-test --episodes 64
"""

from __future__ import annotations

import sys

from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from envs.team import episode_seeds
from envs.velo.scenario import VeloScenario
from trainers.baselines.headroom_command import run
from trainers.baselines.velo import HEURISTICS
from trainers.baselines.velo_bound import Clairvoyant
from trainers.evaluate import evaluate

COLUMNS = (
    "return",
    "reward",
    "satisfaction",
    "delay_s",
    "direct_share",
    "hit_share",
    "wrong_hit_share",
    "augmented_share",
    "wait_s",
)


def report(name: str, episodes: int, seed: int) -> None:
    """Prints a Markdown table of every heuristic, the expert and the upper bound, all on the same episodes."""
    scenario = make_scenario(name)
    if not isinstance(scenario, VeloScenario):
        raise InputError(f"scenario {name!r}: this headroom is computed for the velo problem only")
    seeds, spec = episode_seeds(seed, 0, episodes), make_simulator(scenario, 1).spec
    parts = tuple(f"{part}_reward" for part in scenario.parts if len(scenario.parts) > 1)
    print(f"\n{name}, {episodes} episodes of seed {seed}\n\n| policy | {' | '.join(COLUMNS + parts)} |")
    print(f"|---|{'---|' * len(COLUMNS + parts)}")
    for label, policy in HEURISTICS.items():
        results = evaluate(policy(spec), scenario, seeds, num_envs=min(episodes, 32))
        figures = [f"{results.pooled(column):.4g}" for column in COLUMNS + parts]
        print(f"| {label} | {' | '.join(figures)} |", flush=True)
    bound = Clairvoyant(scenario).bounds(seeds).mean()
    print(f"| upper bound | {bound:.4g} | {bound / scenario.measured_steps:.4g} |{' - |' * (len(COLUMNS + parts) - 2)}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 on bad input."""
    return run(report, "the expert and an upper bound", "velo", arguments)


if __name__ == "__main__":
    sys.exit(main())
