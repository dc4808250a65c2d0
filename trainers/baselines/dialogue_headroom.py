"""How much there is to learn in a dialogue scenario, before anything is trained.

python -m trainers.baselines.dialogue_headroom dialogue/d1 --episodes 256
"""

from __future__ import annotations

import sys

import numpy as np

from envs.dialogue.scenario import DialogueScenario
from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from envs.team import episode_seeds
from trainers.baselines.dialogue import HEURISTICS
from trainers.baselines.dialogue_optimum import Plan, best_plans, best_returns
from trainers.baselines.headroom_command import run
from trainers.evaluate import evaluate

COLUMNS = (
    *("return", "quality", "latency_s", "cost_usd", "budget_exceeded", "lost_turns", "cloud_share", "views", "association"),
    "wait_s",
)


def optimum_figures(plans: list[list[Plan]]) -> dict[str, float]:
    """Means over the conversations, as far as plans and not only bounds are known."""
    figures = {"return": float(best_returns(plans).mean())}
    every = [plan for of_episode in plans for plan in of_episode]
    if all(plan.exact for plan in every):
        figures["quality"] = float(np.average([p.quality for p in every], weights=[max(len(p.choices), 1) for p in every]))
        figures["latency_s"] = float(np.mean([plan.latency_s for plan in every]))
        figures["cost_usd"] = float(np.mean([plan.usd for plan in every]))
        figures["cloud_share"] = float(np.mean([choice > 0 for plan in every for choice in plan.choices]))
    return figures


def report(name: str, episodes: int, seed: int, exact_up_to: int) -> None:
    """Prints a Markdown table of every heuristic and of the optimum, all on the same episodes."""
    scenario = make_scenario(name)
    if not isinstance(scenario, DialogueScenario):
        raise InputError(f"scenario {name!r}: this headroom is computed for the dialogue problem only")
    seeds, spec = episode_seeds(seed, 0, episodes), make_simulator(scenario, 1).spec
    lines: dict[str, dict[str, float]] = {}
    for label, policy in HEURISTICS.items():
        results = evaluate(policy(spec), scenario, seeds, num_envs=min(episodes, 64))
        lines[label] = {column: results.pooled(column) for column in COLUMNS}
    plans = best_plans(scenario, seeds, exact_up_to=exact_up_to)
    exact = [plan.exact for of_episode in plans for plan in of_episode]
    lines["optimum" if scenario.num_devices == 1 and all(exact) else "upper bound"] = optimum_figures(plans)
    print(f"\n{name}, {episodes} episodes of seed {seed}; optimum exact for {sum(exact)} of {len(exact)} conversations")
    print(f"\n| policy | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for label, figures in lines.items():
        print(f"| {label} | {' | '.join(_figure(figures.get(column, np.nan)) for column in COLUMNS)} |")


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4g}" if abs(value) < 1_000 else f"{value:,.0f}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 on bad input."""
    more = {"--exact-up-to": {"type": int, "default": 5_000, "help": "conversations; with more, the bound alone"}}
    return run(report, "the clairvoyant optimum", "dialogue", arguments, more=more)


if __name__ == "__main__":
    sys.exit(main())
