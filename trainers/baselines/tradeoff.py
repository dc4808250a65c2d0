"""Charts of one metric against another with a point for each policy, and what else the problems' reports share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from envs.registry import Scenario
from envs.team import Metric
from trainers.evaluate import EpisodeResults, evaluate
from trainers.figures import INK, Look
from trainers.policy import Policy
from trainers.statistics import Interval, bootstrap_interval

Results = dict[str, list[EpisodeResults]]

_played: dict[tuple[str, int], Results] = {}
"""(scenario, first episode seed) to the comparison that was seen last, for its figure."""


def remember(results: Results, scenario: Scenario, seeds: Tensor) -> None:
    """Keeps a comparison for its figure, in place of the one before."""
    _played.clear()
    _played[scenario.model_dump_json(), int(seeds[0])] = results


def recall(policies: Mapping[str, Policy], scenario: Scenario, seed: int) -> Results:
    """The comparison that begins with episode `seed`, if it was remembered; else that episode, played now."""
    results = _played.get((scenario.model_dump_json(), seed))
    if results is None:
        seeds = Tensor([0]).long() + seed
        results = {label: [evaluate(policy, scenario, seeds)] for label, policy in policies.items()}
    return results


def with_gap(results: Results, gap: Metric, best: NDArray[np.float64], achieved: str) -> Results:
    """The results with one metric more: how far the sum `achieved` of each episode lies below `best [episodes]`."""

    def of_run(run: EpisodeResults) -> EpisodeResults:
        sums = {**run.sums, gap.numerator: best - run.sums[achieved]}
        return replace(run, metrics={**run.metrics, gap.numerator: gap}, sums=sums)

    return {label: [of_run(run) for run in runs] for label, runs in results.items()}


def interval(runs: list[EpisodeResults], metric: str) -> Interval:
    """95 % over runs and episodes."""
    return bootstrap_interval(np.stack([run.values[metric] for run in runs]))


def error_bars(of: Interval) -> list[list[float]] | None:
    """As matplotlib takes them; None where there is no interval."""
    if np.isnan(of.low):
        return None
    return [[of.estimate - of.low], [of.high - of.estimate]]


def draw_point(axes: Axes, label: str, x: Interval, y: Interval, look: Look, learned: bool, edge: float | None = None) -> None:
    """A policy's point with its error bars: a star for a learned one.

    Args:
        edge: Where `x` lies beyond the axis, the place of the arrow that stands for it.
    """
    axes.errorbar(
        x.estimate if edge is None else edge,
        y.estimate,
        xerr=error_bars(x) if edge is None else None,
        yerr=error_bars(y),
        fmt=">" if edge is not None else "*" if learned else "o",
        markersize=13 if learned else 6.5,
        color=look.colour,
        markeredgecolor=INK,
        markeredgewidth=0.6,
        fillstyle="full" if look.line == "-" else "left",
        ecolor=INK,
        elinewidth=0.9,
        capsize=2,
        zorder=4 if learned else 3,
        label=label,
    )


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for all panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
