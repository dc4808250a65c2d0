"""A report as one HTML file: the paper's figures beside what was measured, then everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trainers.comparison import format_interval, heading, versions, write_whole
from trainers.figures import comparison_bars, save
from trainers.page import figure_of, render, table_of
from trainers.report import REACHED, Group, learners, share_to_arrive, training_minutes
from trainers.report_claims import FIRM_RUNS, MIN_RUNS, Claim, ClaimsFile, PaperFigure, Tested, examine, overall
from trainers.report_figures import curves, efficiency, improvement, paper_figure, profiles, wall_clock
from trainers.statistics import bootstrap_interval, stratified_interval
from trainers.sweep_config import Overrides

PAGE = "index.html"


def write_report(
    out: Path,
    groups: Sequence[Group],
    claims: ClaimsFile | None,
    skipped: Sequence[str],
    command: str = "",
    evaluation: Overrides | None = None,
) -> Path:
    """Writes the page, and every figure as SVG and PNG beside it.

    Args:
        skipped: What was left out, a line each.
        evaluation: Where the evaluation's scenarios differ from the trainings'.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, tuple[str, Figure]] = {}
    paper = [_paper_figure(figure, groups, drawn) for figure in claims.figures] if claims else []
    page = {
        "title": f"Report: {claims.paper}" if claims else "Report",
        "note": claims.note if claims else "",
        "facts": _facts(groups, command, evaluation or {}),
        "skipped": list(skipped),
        "paper": [figure for figure in paper if figure is not None],
        "summary": _summary(claims, groups) if claims else [],
        "min_runs": MIN_RUNS,
        "firm_runs": FIRM_RUNS,
        "together": _together(groups, drawn),
        "scores": _scores(groups),
        "reached": REACHED,
        "scenarios": [_scenario(index, group, drawn) for index, group in enumerate(groups)],
    }
    for name, (_, figure) in drawn.items():
        save(figure, out / "figures" / name)
    return write_whole(out / PAGE, render("report.html", page))


def _paper_figure(figure: PaperFigure, groups: Sequence[Group], drawn: dict[str, tuple[str, Figure]]) -> dict[str, Any] | None:
    of_figure = groups_of(figure, groups)
    tested = {claim.says: examine(claim, figure, [group.comparison for group in of_figure]) for claim in figure.claims}
    if any(claim.better for claim in figure.claims) and not any(tested.values()):
        return None
    canvas = paper_figure(figure, of_figure)
    if canvas is None and not any(tested.values()):
        return None
    key = f"paper-{_file_name(figure.name)}"
    shown = None
    if canvas is not None:
        caption = f"{figure.title}, measured here ({_how(figure)})"
        drawn[key] = caption, canvas
        shown = figure_of(key, caption, canvas)
    claims = [_claim(claim, tested[claim.says], of_figure) for claim in figure.claims]
    return {"name": figure.name, "title": figure.title, "figure": shown, "claims": claims}


def groups_of(figure: PaperFigure, groups: Sequence[Group]) -> list[Group]:
    """The scenarios of a paper's figure; for lines, those that differ from the one named in the field `over` at most."""
    chosen = []
    for group in groups:
        name, _, changes = group.scenario.partition(" ")
        changed = {change.partition("=")[0] for change in changes.split(" ") if change}
        if name in figure.scenarios and (figure.over is None or changed <= {figure.over}):
            chosen.append(group)
    return [group for group in chosen if figure.over is not None or not _swept(group, chosen)]


def _swept(group: Group, chosen: Sequence[Group]) -> bool:
    """Whether the scenario is a changed one beside the unchanged one of the same name."""
    name, _, changes = group.scenario.partition(" ")
    return bool(changes) and any(other.scenario == name for other in chosen)


def _how(figure: PaperFigure) -> str:
    return {
        "curves": "interquartile mean of the runs, 95 % band; level lines: heuristics",
        "bars": "mean of runs and common episodes, 95 % interval",
        "lines": "mean of runs and common episodes, 95 % interval",
    }[figure.chart]


def _claim(claim: Claim, tested: Sequence[Tested], groups: Sequence[Group]) -> dict[str, Any]:
    verdict = overall(claim, tested)
    learned = {label for group in groups for label in group.runs}
    counts = [n for pair in tested for n, label in zip(pair.runs, (claim.better, pair.other), strict=True) if label in learned]
    provisional = verdict in ("reproduced", "not reproduced", "contradicted") and min(counts, default=0) < FIRM_RUNS
    return {
        "says": claim.says,
        "numbers": claim.numbers,
        "verdict": verdict,
        "provisional": provisional,
        "pairs": [_pair(claim, pair, groups) for pair in tested],
    }


def _pair(claim: Claim, pair: Tested, groups: Sequence[Group]) -> dict[str, Any]:
    metric = next(group.comparison.metrics[pair.metric] for group in groups if group.scenario == pair.scenario)
    words, unit = heading(pair.metric, metric)
    return {
        "scenario": pair.scenario,
        "pair": f"{claim.better} - {pair.other}",
        "metric": words,
        "difference": f"{format_interval(pair.difference, ' ', signed=True)} {unit}".strip(),
        "relative": "" if math.isnan(pair.relative) else f"{100 * pair.relative:+.1f} %",
        "improvement": "" if math.isnan(pair.improvement.estimate) else f"wins {100 * pair.improvement.estimate:.0f} %",
        "runs": " / ".join(map(str, pair.runs)),
        "verdict": pair.verdict,
    }


def _summary(claims: ClaimsFile, groups: Sequence[Group]) -> list[dict[str, str]]:
    rows = []
    for figure in claims.figures:
        comparisons = [group.comparison for group in groups_of(figure, groups)]
        for claim in figure.claims:
            rows.append(
                {"name": figure.name, "says": claim.says, "verdict": overall(claim, examine(claim, figure, comparisons))}
            )
    return rows


def _together(groups: Sequence[Group], drawn: dict[str, tuple[str, Figure]]) -> list[dict[str, Any]]:
    """Figures over all scenarios."""
    figures: list[tuple[str, str, Figure | None]] = []
    if learners(groups):
        figures = [
            ("profiles", "Performance profiles, 95 % bands, scenarios weighted equally", profiles(groups)),
            ("improvement", "Probability of improvement, 95 % intervals, mean of the scenarios", improvement(groups)),
            (
                "efficiency",
                "Sample efficiency: return of evaluations during training, interquartile mean, 95 % band",
                efficiency(groups),
            ),
        ]
    figures.append(("wall-clock", "Wall-clock time of a training, evaluations and checkpoints included", wall_clock(groups)))
    shown = []
    for key, caption, canvas in figures:
        if canvas is not None:
            drawn[key] = caption, canvas
            shown.append(figure_of(key, caption, canvas))
    return shown


def _scores(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Every learner over all scenarios."""
    rows = []
    for label in learners(groups):
        score = stratified_interval([group.scores(label) for group in groups])
        runs = [(group, run) for group in groups for run in group.runs[label]]
        arrived = float(np.median([share_to_arrive(group, run) for group, run in runs]))
        minutes = bootstrap_interval(np.array([[training_minutes(run)] for _, run in runs]))
        rows.append(
            {
                "label": label,
                "runs": str(len(runs)),
                "score": format_interval(score),
                "arrived": f"{100 * arrived:.0f} %" if math.isfinite(arrived) else "not reached",
                "minutes": format_interval(minutes),
                "order": str(-score.estimate),
            }
        )
    return sorted(rows, key=lambda row: float(row["order"]))


def _scenario(index: int, group: Group, drawn: dict[str, tuple[str, Figure]]) -> dict[str, Any]:
    """Table, bars, learning curves, and what the problem draws, of one scenario."""
    training = PaperFigure(name="", title="", chart="curves", scenarios=[group.scenario])
    figures: dict[str, tuple[str, Figure | None]] = {
        "curves": ("Return of the evaluations during training (interquartile mean)", curves(training, [group])),
        "bars": ("Mean of each metric with its 95 % interval, one bar per policy", comparison_bars(group.comparison)),
        **group.figures,
    }
    shown = []
    for name, (caption, canvas) in figures.items():
        if canvas is not None:
            drawn[f"scenario{index}-{name}"] = caption, canvas
            shown.append(figure_of(f"scenario{index}-{name}", caption, canvas))
    return {"title": group.comparison.title, **table_of(group.comparison, str(index)), "figures": shown}


def _facts(groups: Sequence[Group], command: str, evaluation: Overrides) -> list[tuple[str, str]]:
    how, seeds = groups[0].comparison.how, groups[0].comparison.seeds
    runs = [
        f"{group.scenario}, {label}: {', '.join(str(run.folder) for run in of_label)}"
        for group in groups
        for label, of_label in group.runs.items()
    ]
    facts = [
        ("Command", command),
        ("Evaluated with", ", ".join(f"{key}={value}" for key, value in evaluation.items())),
        ("Episodes", f"{len(seeds)} in each scenario, the same for every policy, seeds {seeds[0]} to {seeds[-1]}"),
        ("Intervals", f"{100 * how.confidence:g} % percentile bootstrap, {how.resamples:,} resamples, seed {how.seed}"),
        ("Runs", " · ".join(runs)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
    ]
    return [(name, text) for name, text in facts if text]


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")
