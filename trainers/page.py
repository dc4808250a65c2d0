"""A comparison as one HTML file that needs nothing else (no network, no scripts), and the parts that such pages share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from trainers.comparison import ARROWS, Comparison, MetricSummary, format_interval, heading, versions, write_whole
from trainers.figures import INK, LearningCurves, comparison_bars, learning_curves, svg_text
from trainers.statistics import Statistic

TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    path: Path,
    comparison: Comparison,
    title: str = "",
    command: str = "",
    curves: LearningCurves | None = None,
    statistic: Statistic = "mean",
    extras: Mapping[str, tuple[str, Figure]] | None = None,
) -> Path:
    """Writes `render_page`'s page to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, render_page(comparison, title, command, curves, statistic, extras))


def render_page(
    comparison: Comparison,
    title: str = "",
    command: str = "",
    curves: LearningCurves | None = None,
    statistic: Statistic = "mean",
    extras: Mapping[str, tuple[str, Figure]] | None = None,
) -> str:
    """The page as HTML.

    Args:
        title: Heading; by default the scenario and how many policies are compared.
        command: The command line that made the page, for whoever wants to repeat it.
        curves: Learning curves of the compared policies, drawn with `statistic` over the runs.
        extras: Further figures: a name to (caption, figure).
    """
    figures = [figure_of("bars", "Mean of each metric with its interval, one bar per policy", comparison_bars(comparison))]
    if curves is not None:
        caption = "Return during training, one line per algorithm, with a 95 % band over its runs"
        figures.append(figure_of("curves", caption, learning_curves(curves, statistic)))
    for index, (caption, figure) in enumerate((extras or {}).values()):
        figures.append(figure_of(f"extra{index}", caption, figure))
    count = len(comparison.policies)
    page = {
        "title": title or f"{comparison.scenario}: {count} {'policies' if count > 1 else 'policy'}",
        **table_of(comparison),
        "figures": figures,
        "facts": _facts(comparison, command),
    }
    return render("comparison.html", page)


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page from one of the templates."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(values)


def table_of(comparison: Comparison, key: str = "") -> dict[str, Any]:
    """What the template `results.html` shows; `key` tells several tables of one page apart."""
    return {
        "key": key,
        "comparison": comparison,
        "columns": [_column(comparison, name) for name in comparison.metrics],
        "rows": [_row(comparison, index) for index in range(len(comparison.policies))],
    }


def _column(comparison: Comparison, name: str) -> dict[str, str]:
    metric = comparison.metrics[name]
    words, unit = heading(name, metric)
    return {
        "name": words,
        "unit": unit,
        "arrow": ARROWS[metric.better],
        "better": metric.better,
        "description": metric.description,
    }


def _row(comparison: Comparison, index: int) -> dict[str, Any]:
    policy = comparison.policies[index]
    versus = policy.versus
    return {
        "label": policy.label,
        "runs": policy.runs,
        "cells": [_cell(policy.metrics.get(name)) for name in comparison.metrics],
        "versus": versus
        and {
            "other": versus.other,
            "difference": format_interval(versus.difference, signed=True),
            "improvement": f"{100 * versus.improvement.estimate:.0f}",
            "verdict": versus.verdict,
        },
    }


def _cell(summary: MetricSummary | None) -> dict[str, str]:
    """The mean and, apart from it, the bounds in brackets, which are empty where there are none."""
    if summary is None:
        return {"mean": "-", "bounds": "", "standing": ""}
    mean, _, bounds = format_interval(summary.mean, "\n").partition("\n")
    return {"mean": mean, "bounds": bounds, "standing": summary.standing}


def figure_of(prefix: str, caption: str, figure: Figure) -> dict[str, Any]:
    """A caption, and an SVG to stand inside the page: ids made unique there, text in the page's colour, the page's size."""
    svg = svg_text(figure)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
    return {"caption": caption, "svg": Markup(svg)}  # made by matplotlib, which escapes the labels


def _facts(comparison: Comparison, command: str) -> list[tuple[str, str]]:
    """What someone needs who wants to make the same page again."""
    how = comparison.how
    trained = [
        f"{label}: " + ", ".join(f"{run.run or run.policy} ({run.env_steps:,} steps)" for run in runs)
        for label, runs in comparison.results.items()
        if any(run.env_steps for run in runs)
    ]
    facts = [
        ("Scenario", comparison.scenario),
        ("Command", command),
        ("Episodes", f"{len(comparison.seeds)}{', the same for every policy' if len(comparison.policies) > 1 else ''}"),
        ("Episode seeds", _seeds_text(comparison.seeds)),
        ("Trained policies", "; ".join(trained)),
        ("Intervals", f"{100 * how.confidence:g} % percentile bootstrap over runs and episodes"),
        ("Resamples", f"{how.resamples:,}, seed {how.seed}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
    ]
    return [(name, text) for name, text in facts if text]


def _seeds_text(seeds: np.ndarray) -> str:
    if len(seeds) > 2 and (np.diff(seeds) == 1).all():
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(str(seed) for seed in seeds)
