"""Figures of a report: the paper's, and those over all scenarios (Agarwal et al. 2021)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from envs.errors import InputError
from trainers.comparison import heading
from trainers.figures import (
    CURVE_RESAMPLING,
    INK,
    STYLE,
    WIDTH_INCHES,
    Look,
    draw_bars,
    draw_curve,
    error_bars,
    looks,
    plain,
    read_curves,
)
from trainers.report import Group, Run, learners, training_minutes
from trainers.report_claims import PaperFigure
from trainers.statistics import (
    Interval,
    bootstrap_interval,
    performance_profile,
    stratified_improvement,
    stratified_interval,
)

POINTS = 60
"""Of a curve over scores or over shares of the training."""

UNITS = {"hz": "Hz", "s": "s", "w": "W", "bps": "bit/s", "m": "m"}
"""Of scenarios' fields, by the end of their names."""

DASHES = [(0, (1, 1.5)), (0, (5, 2)), (0, (5, 2, 1, 2)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1))]
"""Of the level lines of heuristics."""


def paper_figure(figure: PaperFigure, groups: Sequence[Group]) -> Figure | None:
    """The paper's figure with what was measured here; None where nothing of it was."""
    if not groups:
        return None
    drawn = {"curves": curves, "bars": bars, "lines": lines}[figure.chart]
    return drawn(figure, groups)


def curves(figure: PaperFigure, groups: Sequence[Group]) -> Figure | None:
    """A panel per scenario: the metric's interquartile mean during training; heuristics as level lines."""
    shown = [(group, labels) for group in groups if (labels := [label for label in group.runs if _drawn(figure, label)])]
    if not shown:
        return None
    look_of = looks({label for group, _ in shown for label in group.comparison.results if _drawn(figure, label)})
    heuristics = sorted(label for label in look_of if not any(label in group.runs for group, _ in shown))
    levels = dict(zip(heuristics, itertools.cycle(DASHES), strict=False))
    with matplotlib.rc_context(STYLE):
        canvas, panels = _panels(len(shown), 2.5)
        for axes, (group, labels) in zip(panels, shown, strict=True):
            try:
                series = read_curves({label: [run.folder for run in group.runs[label]] for label in labels}, figure.metric)
            except InputError:  # a metric that is known of final evaluations only
                return None
            for label in labels:
                draw_curve(axes, label, look_of[label], series.series[label], "iqm")
            for policy in group.comparison.policies:
                if policy.label in levels and figure.metric in policy.metrics:
                    value, dashes = policy.metrics[figure.metric].mean.estimate, levels[policy.label]
                    colour = look_of[policy.label].colour
                    axes.axhline(value, color=colour, linewidth=1.3, linestyle=dashes, label=plain(policy.label))
            axes.set_title(plain(group.scenario), loc="left")
            axes.set_xlabel("environment steps")
            axes.set_ylabel(_axis(group, figure.metric))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.grid(alpha=0.25, linewidth=0.6)
        _legend(canvas, panels)
    return canvas


def bars(figure: PaperFigure, groups: Sequence[Group]) -> Figure | None:
    """A panel per scenario: the metric's mean on the common episodes, with its interval."""
    shown = [group for group in groups if figure.metric in group.comparison.metrics]
    if not shown:
        return None
    look_of = looks({policy.label for group in shown for policy in group.comparison.policies})
    most = max(len(group.comparison.policies) for group in shown)
    with matplotlib.rc_context(STYLE):
        canvas, panels = _panels(len(shown), 0.9 + 0.22 * most)
        for axes, group in zip(panels, shown, strict=True):
            draw_bars(axes, group.comparison, figure.metric, look_of)
            words = heading(figure.metric, group.comparison.metrics[figure.metric])[0]
            axes.set_title(plain(group.scenario if len(shown) > 1 else f"{group.scenario}: {words}"), loc="left")
    return canvas


def lines(figure: PaperFigure, groups: Sequence[Group]) -> Figure | None:
    """The metric over a field of the scenario, a line per policy with an interval at every point."""
    assert figure.over is not None
    field = figure.over
    known = [group for group in groups if figure.metric in group.comparison.metrics]
    ordered = sorted(known, key=lambda group: group.fields[field])
    labels = sorted({label for group in ordered for label in group.comparison.results if _drawn(figure, label)})
    if not labels or len(ordered) < 2:
        return None
    look_of = looks(labels)
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(WIDTH_INCHES, 4.0), layout="constrained")
        axes = canvas.add_subplot()
        for place, label in enumerate(labels):
            points = [
                (position + 0.2 * (place / max(1, len(labels) - 1) - 0.5), policy.metrics[figure.metric].mean)
                for position, group in enumerate(ordered)
                for policy in group.comparison.policies
                if policy.label == label and figure.metric in policy.metrics
            ]
            if points:
                _dots(axes, label, points, look_of[label])
        axes.set_xticks(range(len(ordered)), [EngFormatter(sep="")(group.fields[field]) for group in ordered])
        axes.set_xlabel(_field_words(field))
        axes.set_ylabel(_axis(ordered[0], figure.metric))
        axes.grid(alpha=0.25, linewidth=0.6, axis="y")
        _legend(canvas, [axes])
    return canvas


def profiles(groups: Sequence[Group]) -> Figure:
    """Performance profiles: the share of trainings that score above a threshold, scenarios weighted equally."""
    labels = learners(groups)
    scores = {label: [group.scores(label) for group in groups] for label in labels}
    everything = np.concatenate([values for of_label in scores.values() for values in of_label])
    thresholds = np.linspace(min(0.0, max(-1.0, everything.min())), max(1.0, everything.max()), POINTS)
    look_of = looks(labels)
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
        axes = canvas.add_subplot()
        for label in labels:
            share, low, high = performance_profile(scores[label], thresholds, CURVE_RESAMPLING)
            look = look_of[label]
            axes.plot(thresholds, share, look.line, color=look.colour, linewidth=1.6, label=plain(label))
            axes.fill_between(thresholds, low, high, color=look.colour, alpha=0.15, linewidth=0)
        axes.set_xlabel("normalised score (0: random, 1: best policy of the scenario)")
        axes.set_ylabel("share of trainings above it")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.25, linewidth=0.6)
        _legend(canvas, [axes])
    return canvas


def improvement(groups: Sequence[Group]) -> Figure | None:
    """Probability that a training of one algorithm beats one of another; None for a single algorithm."""
    labels = learners(groups)
    pairs = list(itertools.combinations(labels, 2))[:28]
    if not pairs:
        return None
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(WIDTH_INCHES, 0.9 + 0.26 * len(pairs)), layout="constrained")
        axes = canvas.add_subplot()
        for row, (one, other) in enumerate(pairs):
            first, second = ([group.scores(label) for group in groups] for label in (one, other))
            chance = stratified_improvement(first, second, CURVE_RESAMPLING)
            axes.errorbar(chance.estimate, row, xerr=error_bars(chance), fmt="o", color="#0072B2", capsize=2.5, markersize=4)
        axes.axvline(0.5, color=INK, linewidth=0.6, linestyle="--")
        axes.set_yticks(range(len(pairs)), [plain(f"{one} over {other}") for one, other in pairs])
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("probability that a training of the first scores higher (0.5: no difference)")
        axes.grid(alpha=0.25, linewidth=0.6, axis="x")
    return canvas


def efficiency(groups: Sequence[Group]) -> Figure | None:
    """Normalised return during training over the share of it; None where no return was evaluated on the way."""
    labels = learners(groups)
    look_of = looks(labels)
    shares = np.linspace(0.0, 1.0, POINTS)
    drawn = False
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
        axes = canvas.add_subplot()
        for label in labels:
            on_the_way = [np.stack([_on_the_way(group, run, shares) for run in group.runs[label]]) for group in groups]
            known = ~np.isnan(np.concatenate(on_the_way)).any(axis=0)
            if not known.any():
                continue
            drawn = True
            bands = [
                stratified_interval([table[:, p] for table in on_the_way], CURVE_RESAMPLING) for p in np.flatnonzero(known)
            ]
            look = look_of[label]
            centre, low, high = (np.array([getattr(band, part) for band in bands]) for part in ("estimate", "low", "high"))
            axes.plot(shares[known], centre, look.line, color=look.colour, linewidth=1.6, label=plain(label))
            axes.fill_between(shares[known], low, high, color=look.colour, alpha=0.15, linewidth=0)
        axes.set_xlabel("share of the training")
        axes.set_ylabel("normalised score")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.25, linewidth=0.6)
        _legend(canvas, [axes])
    return canvas if drawn else None


def wall_clock(groups: Sequence[Group]) -> Figure:
    """Minutes of a training, a panel per scenario."""
    look_of = looks({label for group in groups for label in group.runs})
    most = max(len(group.runs) for group in groups)
    with matplotlib.rc_context(STYLE):
        canvas, panels = _panels(len(groups), 0.9 + 0.24 * most)
        for axes, group in zip(panels, groups, strict=True):
            for row, (label, runs) in enumerate(group.runs.items()):
                minutes = bootstrap_interval(np.array([[training_minutes(run)] for run in runs]), "mean", CURVE_RESAMPLING)
                look = look_of[label]
                axes.barh(row, minutes.estimate, 0.72, color=look.colour, hatch=look.hatch, edgecolor=INK, linewidth=0.4)
                axes.errorbar(minutes.estimate, row, xerr=error_bars(minutes), color=INK, capsize=2.5, linewidth=1.1)
            axes.set_yticks(range(len(group.runs)), [plain(label) for label in group.runs])
            axes.set_ylim(len(group.runs) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.set_title(plain(group.scenario), loc="left")
            axes.set_xlabel("minutes of a training")
    return canvas


def _on_the_way(group: Group, run: Run, shares: np.ndarray) -> np.ndarray:
    """`[POINTS]` normalised returns at shares of a training; NaN before its first evaluation."""
    steps, returns = run.curve()
    if not len(steps):
        return np.full(len(shares), np.nan)
    last = run.records[-1]["env_steps"]
    return np.interp(shares * last, steps, group.normalised(returns), left=np.nan)


def _drawn(figure: PaperFigure, label: str) -> bool:
    return figure.policies is None or label in figure.policies


def _axis(group: Group, metric: str) -> str:
    described = group.comparison.metrics.get(metric)
    if described is None:
        return metric.replace("_", " ")
    words, unit = heading(metric, described)
    return plain(f"{words} ({unit})" if unit else words)


def _field_words(field: str) -> str:
    """`bandwidth_hz` to "bandwidth (Hz)"."""
    words, _, unit = field.rpartition("_")
    return f"{words.replace('_', ' ')} ({UNITS[unit]})" if unit in UNITS else field.replace("_", " ")


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = 1 if count == 1 else 2
    rows = math.ceil(count / columns)
    canvas = Figure(figsize=(WIDTH_INCHES, rows * height + 0.6), layout="constrained")
    grid = list(canvas.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    return canvas, grid[:count]


def _legend(canvas: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    entries = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    canvas.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(4, len(entries)), frameon=False)


def _dots(axes: Axes, label: str, points: list[tuple[float, Interval]], look: Look) -> None:
    places, means = zip(*points, strict=True)
    estimates = [mean.estimate for mean in means]
    errors = np.array([error_bars(mean) or [[0.0], [0.0]] for mean in means]).squeeze(-1).T
    how: dict[str, Any] = {"color": look.colour, "linestyle": look.line, "marker": "o", "markersize": 4, "capsize": 2.5}
    axes.errorbar(places, estimates, yerr=errors, label=plain(label), **how)
