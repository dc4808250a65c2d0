"""What `edgeflock compare` shows of the dag problem besides metrics: normalised objectives, gaps to the optimum, schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from envs.dag.scenario import DagScenario
from envs.dag.simulator import DagSimulator
from envs.dag.spec import location_names
from envs.team import Metric
from trainers.baselines.dag_comparison import NORMALISED_HIGH, NORMALISED_LOW, EpisodeOptima, optimality_gaps
from trainers.evaluate import EpisodeResults
from trainers.gantt import gantt
from trainers.policy import Policy

Results = dict[str, list[EpisodeResults]]

NORMALISED = Metric(
    "normalised_objective",
    "complete",
    better="lower",
    description="objective, all tasks completed, with the best policy's mean at 0.1 and the worst's at 1 (Figs. 6, 8)",
)
GAP = Metric(
    "optimality_gap",
    "complete",
    better="lower",
    description="by which share the objective exceeds the best schedule that the solver found, all tasks completed",
)


def extend(
    results: Results,
    scenario: DagScenario,
    seeds: Tensor,
    solver_s: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Results, list[str]]:
    """The results with the two metrics above, and what to say of the optimum.

    Args:
        solver_s: Time for each episode's optimum; 0 leaves the gap out.
    """
    results = _with_normalised(results, scenario.num_tasks)
    if solver_s <= 0:
        return results, []
    optima = optimality_gaps(scenario, seeds, solver_s, progress=progress)
    return {label: [_with_gap(run, optima, scenario) for run in runs] for label, runs in results.items()}, [_proofs(optima)]


def _with_normalised(results: Results, num_tasks: int) -> Results:
    objectives = {
        label: np.concatenate([run.sums["objective"][_complete(run, num_tasks) > 0] for run in runs])
        for label, runs in results.items()
    }
    means = [values.mean() for values in objectives.values() if values.size]
    if len(means) < 2:
        return results
    low, high = min(means), max(means)

    def extended(run: EpisodeResults) -> EpisodeResults:
        complete = _complete(run, num_tasks)
        share = (run.sums["objective"] - low) / ((high - low) or 1.0)
        return _with(run, NORMALISED, (NORMALISED_LOW + (NORMALISED_HIGH - NORMALISED_LOW) * share) * complete, complete)

    return {label: [extended(run) for run in runs] for label, runs in results.items()}


def _with_gap(run: EpisodeResults, optima: EpisodeOptima, scenario: DagScenario) -> EpisodeResults:
    complete = _complete(run, scenario.num_tasks)
    gaps = optima.gaps(run.sums["objective"], run.sums["completed"], scenario.num_tasks)
    return _with(run, GAP, np.nan_to_num(gaps), complete)


def _complete(run: EpisodeResults, num_tasks: int) -> np.ndarray:
    """`[episodes]`, 1 where all tasks were completed."""
    return (run.sums["completed"] >= num_tasks).astype(np.float64)


def _with(run: EpisodeResults, metric: Metric, values: np.ndarray, complete: np.ndarray) -> EpisodeResults:
    sums = {**run.sums, metric.numerator: values, "complete": complete}
    return replace(run, metrics={**run.metrics, metric.numerator: metric}, sums=sums)


def _proofs(optima: EpisodeOptima) -> str:
    proved, count = int(optima.proved.sum()), len(optima.episodes)
    orders = "orders that the steps allow" if optima.stepwise else "any order"
    text = f"optimum ({orders}): proved for {proved} of {count} episodes"
    if proved == count:
        return text + "."
    slack = (optima.objective / optima.bound - 1.0)[~optima.proved]
    return f"{text}; in the others the best schedule found is at most {100 * slack.max():.1f} % above the bound."


@torch.no_grad()
def figures(policies: Mapping[str, Policy], scenario: DagScenario, seed: int) -> dict[str, tuple[str, Figure]]:
    """One episode's schedule under each policy as a Gantt chart: a name for files to (caption, figure)."""
    drawn = {}
    for label, policy in policies.items():
        simulator = DagSimulator(scenario, 1)
        step, memory = simulator.reset(torch.tensor([seed])), policy.initial_state(1)
        while not bool(step.finished.all()):
            actions, memory = policy.act(step.observation, memory, step.action_mask)
            step = simulator.step(actions)
        figure = gantt(simulator.instance(0), simulator.schedule(0), location_names(scenario), label)
        drawn[f"schedule-{label}"] = (f"Schedule of the first episode under {label}", figure)
    return drawn
