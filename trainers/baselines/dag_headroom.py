"""How much there is to learn in a dag scenario, before anything is trained.

python -m trainers.baselines.dag_headroom dag/t5 --episodes 32
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from envs.dag.instance import Instance, Schedule, task_cost_usd, task_latency_s
from envs.dag.scenario import DagScenario
from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from envs.team import episode_seeds
from trainers.baselines.dag import HEURISTICS
from trainers.baselines.dag_comparison import EpisodeOptima, instances, normalised, optimality_gaps
from trainers.baselines.headroom_command import run
from trainers.evaluate import EpisodeResults, evaluate

COLUMNS = (
    *("objective", "normalised", "latency_s", "cost_usd", "completed_tasks", "deadline_violations", "illegal_share"),
    *("cloud_share", "return"),
)


@dataclass(frozen=True)
class Line:
    """One row of the table.

    Attributes:
        figures: Metric to mean over the episodes.
        objective, completed: `[episodes]`.
    """

    label: str
    figures: dict[str, float]
    objective: NDArray[np.float64]
    completed: NDArray[np.float64]


def schedule_return(scenario: DagScenario, instance: Instance, schedule: Schedule) -> float:
    """The sum of rewards (paper, Sec. 4.1.2) of a complete schedule without any illegal choice."""
    s = scenario
    reward = 0.0
    for i, j in schedule.order:
        at = schedule.location[i, j]
        late_s = max(0.0, float(schedule.end_s[i, j]) - s.deadline_s)
        toll = s.weight * instance.service_s[i, j, at] + (1.0 - s.weight) * instance.cost_usd[i, j, at]
        reward += s.legal_reward - s.penalty * late_s - float(toll)
    return reward


def best_return(scenario: DagScenario, instance: Instance) -> float:
    """A bound of the return: every subtask where its own reward is highest, none of them late."""
    toll = scenario.weight * instance.service_s + (1.0 - scenario.weight) * instance.cost_usd
    least = np.where(instance.allowed, toll, np.inf).min(2)
    return float((scenario.legal_reward - least[instance.exists]).sum())


def heuristic_line(results: EpisodeResults) -> Line:
    figures = {name: results.pooled(name) for name in results.metrics}
    return Line(results.policy, figures, results.values["objective"], results.values["completed_tasks"])


def optimum_line(label: str, scenario: DagScenario, problems: list[Instance], optima: EpisodeOptima) -> Line:
    """The best schedules found, as if a policy had made them."""
    pairs = [(problem, found.schedule) for problem, found in zip(problems, optima.episodes, strict=True) if found.schedule]
    latency_s = np.array([task_latency_s(*pair) for pair in pairs])
    subtasks = [(schedule.location[problem.exists] == problem.cloud).mean() for problem, schedule in pairs]
    figures = {
        "objective": float(optima.objective.mean()),
        "latency_s": float(latency_s.mean()),
        "cost_usd": float(np.mean([task_cost_usd(*pair) for pair in pairs])),
        "completed_tasks": float(scenario.num_tasks),
        "deadline_violations": float((latency_s > scenario.deadline_s).sum(1).mean()),
        "illegal_share": 0.0,
        "cloud_share": float(np.mean(subtasks)),
        "return": float(np.mean([schedule_return(scenario, *pair) for pair in pairs])),
    }
    return Line(label, figures, optima.objective, np.full(len(pairs), float(scenario.num_tasks)))


def report(name: str, episodes: int, seed: int, time_limit_s: float, workers: int) -> None:
    """Prints a Markdown table of every heuristic and of the optimum, all on the same episodes."""
    scenario = make_scenario(name)
    if not isinstance(scenario, DagScenario):
        raise InputError(f"scenario {name!r}: this headroom is computed for the dag problem only")
    seeds = episode_seeds(seed, 0, episodes)
    lines = [heuristic_line(results) for results in _play_heuristics(scenario, seeds)]
    steps, anyhow = (optimality_gaps(scenario, seeds, time_limit_s, stepwise, workers) for stepwise in (True, False))
    problems = instances(scenario, seeds)
    lines.append(optimum_line("optimum, by steps", scenario, problems, steps))
    lines.append(optimum_line("optimum, any order", scenario, problems, anyhow))
    reference = steps if scenario.mask_invalid else anyhow
    kind = "by steps" if reference is steps else "any order"
    print(f"\n{name}, {episodes} episodes of seed {seed}; gaps are to the optimum, {kind}")
    print(f"\n| policy | {' | '.join(COLUMNS)} | gap to optimum |\n|---|{'---|' * (len(COLUMNS) + 1)}")
    complete = [line.figures["objective"] if (line.completed >= scenario.num_tasks).all() else np.nan for line in lines]
    for line, share in zip(lines, normalised(complete), strict=True):
        figures = {**line.figures, "normalised": share}
        gaps = reference.gaps(line.objective, line.completed, scenario.num_tasks)
        gap = "-" if np.isnan(gaps).all() else f"{100 * np.nanmean(gaps):+.2f} %"
        print(f"| {line.label} | {' | '.join(_figure(figures[column]) for column in COLUMNS)} | {gap} |")
    best = np.mean([best_return(scenario, problem) for problem in problems])
    print(f"\nNo return is above {best:.3f} on average.")
    for label, optima in (("by steps", steps), ("any order", anyhow)):
        print(f"Optimum, {label}: {_proof(optima)}")
    print(
        f"The best order by steps equals the best of any order in {(steps.objective - anyhow.objective < 1e-5).sum()} episodes."
    )


def _play_heuristics(scenario: DagScenario, seeds: Tensor) -> list[EpisodeResults]:
    spec = make_simulator(scenario, 1).spec
    return [evaluate(policy(spec), scenario, seeds, num_envs=min(len(seeds), 64)) for policy in HEURISTICS.values()]


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"


def _proof(optima: EpisodeOptima) -> str:
    seconds = np.array([found.seconds for found in optima.episodes])
    gaps = np.array([found.gap for found in optima.episodes])
    return (
        f"proved in {optima.proved.sum()} of {len(gaps)} episodes; remaining gap {100 * gaps.mean():.3f} % on average, "
        f"{100 * gaps.max():.3f} % at most; bound {optima.bound.mean():.4f}; "
        f"{np.median(seconds):.1f} s per episode in the middle, {seconds.max():.1f} s at most"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 on bad input."""
    more = {
        "--time-limit": {
            "dest": "time_limit_s",
            "type": float,
            "default": 60.0,
            "help": "seconds for the optimum of one episode",
        },
        "--workers": {"type": int, "default": 1, "help": "processes that solve at the same time"},
    }
    return run(report, "the exact optimum", "dag", arguments, episodes=32, more=more)


if __name__ == "__main__":
    sys.exit(main())
