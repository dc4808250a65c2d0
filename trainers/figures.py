"""Figures of a comparison: bars with intervals and learning curves, as SVG and PNG."""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from envs.errors import InputError
from trainers.comparison import Comparison, heading
from trainers.statistics import Interval, Resampling, Statistic, band_over_runs

INK = "#1b1b1b"  # of text and axes; the page replaces it by the colour of its own text
# Okabe and Ito 2008, with grey for their black, which would hide intervals; yellow is last because it is faint on white
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A", "#F0E442")
LINES, HATCHES = ("-", "--", ":", "-."), ("", "///", "...", "xxx")  # set apart what has to share a colour
# places in the palette: the same algorithm has the same colour in every figure
PLACES = {
    **{"idmac": 0, "dlrs": 0, "ucb-coma": 0},
    **{"qmix": 1, "lrs": 1, "coma": 1},
    **{"qplex": 2, "greedy": 3, "mappo": 4, "vdn": 5, "random": 6},
}
WIDTH_INCHES = 8.3  # about the width of a README column at 100 dots per inch
DOTS_PER_INCH = 200
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "edgeflock",  # the same figure is the same file
}
CURVE_RESAMPLING = Resampling(resamples=2_000)  # a band needs less precision than a table
CURVE_POINTS = 200
EVALUATION_KEY, TRAINING_KEY = "evaluation_return_mean", "return_mean"

Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class LearningCurves:
    """Algorithm to its runs, each (environment steps `[P]`, return `[P]`), and what kind of return it is."""

    series: dict[str, list[Curve]]
    value_label: str


@dataclass(frozen=True)
class Look:
    """How one algorithm is drawn."""

    colour: str
    line: str
    hatch: str


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`, one per training iteration.

    A last line that a killed run left incomplete is skipped.

    Raises:
        InputError: There is no such file, or another line is not a JSON object.
    """
    path = run_dir / "metrics.jsonl"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot read the training metrics: {error.strerror}") from None
    lines = text.split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _json_object(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):  # the last line has no newline after it
            raise InputError(f"{path}, line {number}: expected a JSON object, got {line[:40]!r}")
    return records


def read_curves(runs: Mapping[str, Sequence[Path]], metric: str = "return") -> LearningCurves:
    """The learning curves of run folders, label to the runs of one algorithm.

    The return of evaluation episodes is taken where every run has it, else that of the training episodes.

    Args:
        metric: Of the problem's; others than the return are known of evaluation episodes only.

    Raises:
        InputError: A run has no usable metrics.
    """
    records = {label: [(folder, read_metrics(folder)) for folder in folders] for label, folders in runs.items()}
    if metric != "return":
        key = f"evaluation/{metric}"
        series = {label: [_curve(folder, rows, key) for folder, rows in of_label] for label, of_label in records.items()}
        return LearningCurves(series, f"{metric} of evaluation episodes")
    everything = [rows for of_label in records.values() for _, rows in of_label]
    evaluated = all(any(_number(row.get(EVALUATION_KEY)) for row in rows) for rows in everything)
    key, kind = (EVALUATION_KEY, "evaluation episodes") if evaluated else (TRAINING_KEY, "training episodes")
    series = {label: [_curve(folder, rows, key) for folder, rows in of_label] for label, of_label in records.items()}
    return LearningCurves(series, f"return of {kind}")


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Colour, line and hatch of every label: that of its name where it is free, else the next free one."""
    free = [Look(colour, line, hatch) for line, hatch in zip(LINES, HATCHES, strict=True) for colour in PALETTE]
    names = sorted(set(labels), key=lambda name: (name not in PLACES, name))
    if len(names) > len(free):
        raise InputError(f"{len(names)} policies in one figure: expected at most {len(free)}")
    chosen: dict[str, Look] = {}
    for name in names:
        place = PLACES.get(name, zlib.crc32(name.encode()) % (len(PALETTE) - 1))
        wanted = (*PALETTE[place:-1], *PALETTE[:place], PALETTE[-1])
        chosen[name] = min(free, key=lambda look: (LINES.index(look.line), wanted.index(look.colour)))
        free.remove(chosen[name])
    return chosen


def learning_curves(curves: LearningCurves, statistic: Statistic = "mean", title: str = "") -> Figure:
    """One line per algorithm over environment steps, with a 95 % band over its runs where it has several.

    Raises:
        InputError: There are no curves.
    """
    if not any(curves.series.values()):
        raise InputError("no learning curves: expected at least one run")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 4.2), layout="constrained")
        axes = figure.add_subplot()
        look_of = looks(curves.series)
        for label, runs in curves.series.items():
            if runs:
                draw_curve(axes, label, look_of[label], runs, statistic)
        centre = {"mean": "mean", "iqm": "interquartile mean"}[statistic]
        axes.set_xlabel("environment steps")
        axes.set_ylabel(f"{curves.value_label}\n({centre} of runs, 95 % band)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_title(plain(title), loc="left")
        figure.legend(loc="outside lower center", ncols=min(4, len(curves.series)), frameon=False)
    return figure


def comparison_bars(comparison: Comparison, metrics: Sequence[str] = ()) -> Figure:
    """One panel per metric, one bar per policy with the interval of its mean, the best return at the top.

    Args:
        metrics: Which to show; by default those that have a better direction and in which the policies differ.

    Raises:
        InputError: The comparison has no metric of that name.
    """
    if unknown := [name for name in metrics if name not in comparison.metrics]:
        raise InputError(f"unknown metric {', '.join(unknown)}: expected some of {', '.join(comparison.metrics)}")
    labels = [policy.label for policy in comparison.policies]
    panels = list(metrics) or _contested(comparison)
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    look_of = looks(labels)
    with matplotlib.rc_context(STYLE):
        height = rows * (0.95 + 0.27 * len(labels)) + 0.3
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, name in zip(grid.flat, panels, strict=False):
            draw_bars(axes, comparison, name, look_of)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        figure.suptitle(plain(comparison.title), x=0.01, ha="left", fontsize=10.5)
    return figure


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Writes `stem.svg` and `stem.png`."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    svg, png = (stem.with_name(stem.name + suffix) for suffix in (".svg", ".png"))
    svg.write_text(svg_text(figure), encoding="utf-8")
    with matplotlib.rc_context(STYLE):
        figure.savefig(png, dpi=DOTS_PER_INCH, facecolor="white")
    return svg, png


def svg_text(figure: Figure) -> str:
    """The figure as an SVG document with a transparent background, always the same for the same figure."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _curve(folder: Path, rows: list[dict[str, Any]], key: str) -> Curve:
    points = sorted((row["env_steps"], row[key]) for row in rows if _number(row.get("env_steps")) and _number(row.get(key)))
    if not points:
        raise InputError(f"{folder / 'metrics.jsonl'}: no line has both env_steps and {key}")
    steps, values = np.array(points, dtype=np.float64).T
    return steps, values


def draw_curve(axes: Axes, label: str, look: Look, runs: list[Curve], statistic: Statistic) -> None:
    """One line over the environment steps that all runs have in common, with a band where there are several runs."""
    first, last = max(steps[0] for steps, _ in runs), min(steps[-1] for steps, _ in runs)
    if first >= last:  # they have no part of the training in common
        first, last = min(steps[0] for steps, _ in runs), max(steps[-1] for steps, _ in runs)
    points = np.linspace(first, last, CURVE_POINTS)
    if len(runs) == 1:  # nothing to average: every recorded point as it is
        points = runs[0][0]
    values = np.stack([np.interp(points, steps, value, left=np.nan, right=np.nan) for steps, value in runs])
    centre, low, high = band_over_runs(values, statistic, CURVE_RESAMPLING)
    name = f"{label} ({len(runs)} run{'s' if len(runs) > 1 else ''})"
    axes.plot(points, centre, look.line, color=look.colour, linewidth=1.6, label=plain(name))
    if len(runs) > 1:
        axes.fill_between(points, low, high, color=look.colour, alpha=0.2, linewidth=0)


def _contested(comparison: Comparison) -> list[str]:
    """Metrics with a better direction in which policies differ; all of them where nothing can be compared."""
    directed = [name for name, metric in comparison.metrics.items() if metric.better != "neither"]
    standings = {name: [p.metrics[name].standing for p in comparison.policies if name in p.metrics] for name in directed}
    return [name for name in directed if any(standings[name])] or directed or list(comparison.metrics)


def draw_bars(axes: Axes, comparison: Comparison, name: str, look_of: dict[str, Look]) -> None:
    """One bar per policy with the interval of its mean, in a panel of its own."""
    metric = comparison.metrics[name]
    means = [policy.metrics[name].mean if name in policy.metrics else None for policy in comparison.policies]
    drawn = [(row, mean) for row, mean in enumerate(means) if mean is not None and not math.isnan(mean.estimate)]
    for row, mean in drawn:
        look = look_of[comparison.policies[row].label]
        axes.barh(row, mean.estimate, 0.72, color=look.colour, hatch=look.hatch, edgecolor=INK, linewidth=0.4)
        axes.errorbar(mean.estimate, row, xerr=error_bars(mean), color=INK, capsize=2.5, linewidth=1.1)
    axes.set_yticks(range(len(means)), [plain(policy.label) for policy in comparison.policies])
    axes.set_ylim(len(means) - 0.5, -0.5)
    axes.axvline(0.0, color=INK, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if max((abs(mean.estimate) for _, mean in drawn), default=0.0) >= 1e4:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(axis="y", length=0)
    words, unit = heading(name, metric)
    axes.set_title(plain(words), loc="left")
    better = "" if metric.better == "neither" else f"{metric.better} is better"
    axes.set_xlabel(plain(f"{unit} ({better})" if unit and better else unit or better))


def error_bars(interval: Interval) -> list[list[float]] | None:
    """Distances below and above the estimate; None where there are no bounds."""
    if math.isnan(interval.low):
        return None
    return [[max(0.0, interval.estimate - interval.low)], [max(0.0, interval.high - interval.estimate)]]


def plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")
