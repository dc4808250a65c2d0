"""A schedule of the dag problem as a Gantt chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from envs.dag.instance import Instance, Schedule
from trainers.figures import HATCHES, INK, PALETTE, STYLE, WIDTH_INCHES

BAR_HEIGHT = 0.8
MIN_LABELLED_SHARE = 0.02  # of the time axis: narrower bars carry no number
LIGHT = 0.6  # share of white in the transfer part

Lane = list[tuple[int, int]]


def gantt(instance: Instance, schedule: Schedule, locations: Sequence[str] = (), title: str = "") -> Figure:
    """When each location works on what: bars in the task's colour, with the subtask's number, their input transfer lighter.

    An edge is one row; the cloud, which runs subtasks side by side, has as many as it needs.

    Args:
        locations: Names of the L locations; by default `edge-0`, … and `cloud`.
    """
    names = list(locations) or [*(f"edge-{n}" for n in range(instance.cloud)), "cloud"]
    lanes = [lane for at in range(len(names)) for lane in _lanes(schedule, at)]
    ticks = _ticks(schedule, names)
    tasks = sorted({task for task, _ in schedule.order})
    end_s = max(float(schedule.end_s.max(initial=0.0)), instance.deadline_s) * 1.02
    with matplotlib.rc_context({**STYLE, "hatch.linewidth": 0.5}):
        legend_rows = -(-len(tasks) // 8)
        figure = Figure(figsize=(WIDTH_INCHES, 1.1 + 0.27 * len(lanes) + 0.22 * legend_rows), layout="constrained")
        axes = figure.add_subplot()
        for row, lane in enumerate(lanes):
            for task, subtask in lane:
                _draw_bar(axes, instance, schedule, row, task, subtask, MIN_LABELLED_SHARE * end_s)
        for first, _ in ticks[1:]:
            axes.axhline(first - 0.5, color=INK, linewidth=0.4, alpha=0.4)
        axes.axvline(instance.deadline_s, color=INK, linewidth=1.1, linestyle="--")
        axes.text(instance.deadline_s, -0.6, "deadline ", ha="right", va="bottom", fontsize=8)
        axes.set_xlim(0.0, end_s)
        axes.set_ylim(len(lanes) - 0.5, -0.5)
        axes.set_yticks([first for first, _ in ticks], [name for _, name in ticks])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("seconds (light: input transfer, full: compute)")
        axes.set_title(title.replace("$", r"\$"), loc="left", pad=14)
        if tasks:
            marks = [Patch(facecolor=_colour(task), hatch=_hatch(task), edgecolor=INK, label=f"task-{task}") for task in tasks]
            figure.legend(handles=marks, loc="outside lower center", ncols=min(8, len(tasks)), frameon=False, fontsize=8.5)
    return figure


def _lanes(schedule: Schedule, at: int) -> list[Lane]:
    """What runs at a location, in as few rows as do without overlaps; one empty row where nothing runs."""
    cells = sorted((cell for cell in schedule.order if schedule.location[cell] == at), key=lambda cell: schedule.start_s[cell])
    lanes: list[Lane] = []
    for cell in cells:
        free = next((lane for lane in lanes if schedule.end_s[lane[-1]] <= schedule.start_s[cell]), None)
        if free is None:
            lanes.append([cell])
        else:
            free.append(cell)
    return lanes or [[]]


def _ticks(schedule: Schedule, names: Sequence[str]) -> list[tuple[int, str]]:
    """First row of each location, with its name."""
    ticks, row = [], 0
    for at, name in enumerate(names):
        ticks.append((row, name))
        row += len(_lanes(schedule, at))
    return ticks


def _draw_bar(
    axes: Axes, instance: Instance, schedule: Schedule, row: int, task: int, subtask: int, labelled_from_s: float
) -> None:
    cell = (task, subtask)
    start_s, end_s = float(schedule.start_s[cell]), float(schedule.end_s[cell])
    input_s = float(instance.input_s[(*cell, schedule.location[cell])])
    colour = _colour(task)
    labelled = end_s - start_s >= labelled_from_s
    edge = INK if labelled else colour  # ink would hide the colour of a narrow bar
    look: dict[str, Any] = {"height": BAR_HEIGHT, "edgecolor": edge, "linewidth": 0.4, "hatch": _hatch(task)}
    axes.barh(row, input_s, left=start_s, color=_lighter(colour), **look)
    axes.barh(row, end_s - start_s - input_s, left=start_s + input_s, color=colour, **look)
    if labelled:
        middle_s = 0.5 * (start_s + end_s)
        box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
        axes.text(middle_s, row, str(subtask), ha="center", va="center", fontsize=7, bbox=box)


def _colour(task: int) -> str:
    return PALETTE[task % len(PALETTE)]


def _hatch(task: int) -> str:
    """Sets tasks of one colour apart, as far as hatches go."""
    return HATCHES[task // len(PALETTE) % len(HATCHES)]


def _lighter(colour: str) -> tuple[float, float, float]:
    red, green, blue = (LIGHT + (1.0 - LIGHT) * part for part in to_rgb(colour))
    return red, green, blue
