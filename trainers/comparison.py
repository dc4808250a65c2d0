"""Policies side by side on the same episodes: for the terminal, for programs, and for marl-eval."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from envs.errors import InputError
from envs.registry import parse
from envs.team import Metric
from trainers.evaluate import EpisodeResults
from trainers.statistics import DEFAULT, Interval, Resampling, bootstrap_interval, paired_difference, probability_of_improvement

EVALUATION = "evaluation.json"  # marl-eval layout, for others' tools
DETAILS = "evaluation_details.json"  # everything that is needed to rebuild the comparison
ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
STYLES = {"best": "bold green", "tied": "green", "": ""}
COLUMN_FRAME = 3  # characters between the columns of a table

Standing = Literal["best", "tied", ""]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class MetricSummary:
    """One policy's figure.

    Attributes:
        mean, iqm: Over episodes and runs.
        pooled: Over all episodes taken together (ratio of the sums), mean of the runs.
        standing: `best`; `tied` where the paired difference to the best does not exclude 0; else empty.
    """

    mean: Interval
    iqm: Interval
    pooled: float
    standing: Standing


@dataclass(frozen=True)
class Versus:
    """The paired difference in return to another policy, and the probability of a higher return on the same episode."""

    other: str
    difference: Interval
    improvement: Interval

    @property
    def verdict(self) -> str:
        """Whether this policy is better or worse than the other, as far as the interval shows."""
        if not self.difference.excludes(0.0):
            return "no difference shown"
        return "better" if self.difference.estimate > 0 else "worse"

    def reversed(self, other: str) -> Versus:
        """The same comparison seen from the other policy, which calls this one `other`."""
        difference, improvement = self.difference, self.improvement
        return Versus(
            other,
            Interval(-difference.estimate, -difference.high, -difference.low, difference.episodes),
            Interval(1 - improvement.estimate, 1 - improvement.high, 1 - improvement.low, improvement.episodes),
        )


@dataclass(frozen=True)
class PolicySummary:
    """One row of a comparison; `versus` is against the best policy, for the best against the next; None if it is alone."""

    label: str
    runs: int
    metrics: dict[str, MetricSummary]
    versus: Versus | None


@dataclass(frozen=True)
class Comparison:
    """Several policies on the same episodes of one scenario. `print` it to a rich console for the table.

    Attributes:
        metrics: In the order of the problem's specification; a policy may lack some that only other policies report.
        policies: By mean return, the highest first.
        results: What it was made from, label to runs.
    """

    scenario: str
    seeds: np.ndarray
    metrics: dict[str, Metric]
    policies: tuple[PolicySummary, ...]
    results: dict[str, list[EpisodeResults]]
    how: Resampling

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="bold")
        for table in self.tables(options.max_width):
            yield Text()
            yield table
        yield Text(f"\n{self.caption}", style="dim")

    @property
    def title(self) -> str:
        """The scenario, and how much was played on it."""
        fewest, most = (pick(policy.runs for policy in self.policies) for pick in (min, max))
        runs = f", {fewest} to {most} runs each" if fewest < most else f", {most} runs each" if most > 1 else ""
        return f"{self.scenario}: {len(self.seeds)} episode{'s' if len(self.seeds) > 1 else ''}{runs}"

    @property
    def caption(self) -> str:
        """How to read the cells."""
        direction = "; bold: best, green: best or not shown to differ from it" if len(self.policies) > 1 else ""
        return f"mean [{100 * self.how.confidence:g} % interval]; ↑ higher, ↓ lower is better{direction}"

    def tables(self, max_width: int) -> list[Table]:
        """The comparison as one table, or as several with the policies repeated where one would be wider than allowed."""
        columns = self._columns()
        labels, rest = columns[0], columns[1:]
        groups: list[list[list[Text]]] = [[]]
        width = first = _width(labels)
        for column in rest:
            if groups[-1] and width + _width(column) > max_width:
                groups.append([])
                width = first
            groups[-1].append(column)
            width += _width(column)
        return [_table([labels, *group]) for group in groups]

    def _columns(self) -> list[list[Text]]:
        """Columns of cells, the header first."""
        columns = [[Text("policy"), *(Text(policy.label, style="bold") for policy in self.policies)]]
        for name, metric in self.metrics.items():
            words, unit = heading(name, metric)
            head = Text(f"{words}\n{unit} {ARROWS[metric.better]}".rstrip())
            columns.append([head, *(_cell(policy.metrics.get(name)) for policy in self.policies)])
            if name == "return" and len(self.policies) > 1:
                versus = [_versus_cell(policy.versus) for policy in self.policies]
                columns.append([Text("return, paired\ndifference to"), *versus])
        return columns

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        best, *others = self.policies
        if not others:
            return f"{best.label} reaches a return of {format_interval(best.metrics['return'].mean)}."
        undecided = [policy.label for policy in others if policy.versus and policy.versus.verdict != "worse"]
        if undecided:
            return f"{best.label} has the highest mean return, but no difference is shown to {', '.join(undecided)}."
        return (
            f"{best.label} has the highest return and is better than {'every other policy' if others[1:] else others[0].label}."
        )

    def verdicts(self) -> list[str]:
        """The best policy against every other one, a sentence each, in plain words."""
        best = self.policies[0].label
        pairs = [policy.versus.reversed(policy.label) for policy in self.policies[1:] if policy.versus is not None]
        return [
            f"{best} against {versus.other}: {format_interval(versus.difference, signed=True)}, "
            f"paired over {versus.difference.episodes} episodes: {versus.verdict}"
            for versus in pairs
        ]

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-ready record per policy, the best first; None stands for what is undefined."""
        return [self._row(policy) for policy in self.policies]

    def _row(self, policy: PolicySummary) -> dict[str, Any]:
        metrics = {
            name: {
                "unit": self.metrics[name].unit,
                "better": self.metrics[name].better,
                "mean": asdict(summary.mean),
                "iqm": asdict(summary.iqm),
                "pooled": summary.pooled,
                "standing": summary.standing,
            }
            for name, summary in policy.metrics.items()
        }
        versus = None if policy.versus is None else {**asdict(policy.versus), "verdict": policy.versus.verdict}
        row = {"policy": policy.label, "scenario": self.scenario, "episodes": len(self.seeds), "runs": policy.runs}
        return _without_nan({**row, "metrics": metrics, "return_difference": versus})

    def marl_eval(self) -> dict[str, Any]:
        """environment -> task -> algorithm -> run -> step, as marl-eval reads it.

        Runs are numbered, because marl-eval looks for the same run names in every algorithm. It takes plain means, so
        episodes that do not define a metric are left out of that metric's list, and a metric that some run never defines is
        left out altogether: marl-eval wants the same metrics everywhere.
        """
        problem, task = problem_and_task(self.scenario)
        everything = [run.values for runs in self.results.values() for run in runs]
        shared = [name for name in self.metrics if all(np.isfinite(run.get(name, np.nan)).any() for run in everything)]

        def run_record(run: EpisodeResults) -> dict[str, Any]:
            figures = {name: run.values[name][np.isfinite(run.values[name])].tolist() for name in shared}
            return {"step_0": {"step_count": run.env_steps, **figures}, "absolute_metrics": figures}

        algorithms = {
            label: {f"seed_{index}": run_record(run) for index, run in enumerate(runs)} for label, runs in self.results.items()
        }
        return {problem: {task: algorithms}}

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes `evaluation.json` (marl-eval's layout) and `evaluation_details.json` (for `read_results`) into `folder`.

        Each file appears whole or not at all.
        """
        folder.mkdir(parents=True, exist_ok=True)
        details = {
            "format": "edgeflock-evaluation-1",
            "versions": versions(),
            "intervals": asdict(self.how),
            "summary": self.rows(),
            "results": {label: [_stored(run) for run in runs] for label, runs in self.results.items()},
        }
        return (
            write_whole(folder / EVALUATION, json.dumps(self.marl_eval(), allow_nan=False)),
            write_whole(folder / DETAILS, json.dumps(_without_nan(details), allow_nan=False)),
        )


def compare(results: Mapping[str, Sequence[EpisodeResults]], how: Resampling = DEFAULT) -> Comparison:
    """Compares policies that played the same episodes.

    Args:
        results: Label to the results of its training runs (one for a heuristic).

    Raises:
        InputError: There are no results, or they are of different scenarios, episodes or metrics.
    """
    labelled = {label: list(runs) for label, runs in results.items()}
    first = _check_comparable(labelled)
    metrics: dict[str, Metric] = {}
    for runs in labelled.values():
        metrics.update(runs[0].metrics)
    tables = {label: _tables(runs) for label, runs in labelled.items()}
    order = sorted(tables, key=lambda label: -np.nan_to_num(tables[label]["return"].mean(), nan=-np.inf))
    standings = {name: _standings(metric, tables, name, how) for name, metric in metrics.items()}
    versus = _against_best({label: tables[label]["return"] for label in order}, how)
    policies = tuple(
        PolicySummary(
            label=label,
            runs=len(labelled[label]),
            metrics={
                name: MetricSummary(
                    mean=bootstrap_interval(table, "mean", how),
                    iqm=bootstrap_interval(table, "iqm", how),
                    pooled=float(np.mean([run.pooled(name) for run in labelled[label]])),
                    standing=standings[name][label],
                )
                for name, table in tables[label].items()
            },
            versus=versus[label],
        )
        for label in order
    )
    return Comparison(first.scenario, first.seeds, metrics, policies, labelled, how)


def read_results(path: Path) -> dict[str, list[EpisodeResults]]:
    """What `Comparison.write` stored, label to runs.

    Args:
        path: The folder, or one of the two files in it.

    Raises:
        InputError: There is no such file, or it is not what `Comparison.write` writes.
    """
    path = path / DETAILS if path.is_dir() else path.with_name(DETAILS) if path.name == EVALUATION else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the evaluation: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: not a whole JSON file: {error}") from None
    stored = parse(_StoredComparison, values, str(path))
    return {label: [_restored(run, f"{path}: {label}") for run in runs] for label, runs in stored.results.items()}


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    try:
        return {"edgeflock": importlib.metadata.version("edgeflock"), **found}
    except importlib.metadata.PackageNotFoundError:  # run from its folder without being installed
        return found


def problem_and_task(scenario: str) -> tuple[str, str]:
    """`vehicular/v50-e6` to its two parts; a name without parts is both."""
    problem, *task = re.split(r"[/:]", scenario, maxsplit=1)
    return problem, task[0] if task else problem


def write_whole(path: Path, text: str) -> Path:
    """Writes a text file such that a reader never sees a part of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def heading(name: str, metric: Metric) -> tuple[str, str]:
    """A metric's name in words, and its unit, empty for plain numbers: `latency_s` is ("latency", "s")."""
    unit = "" if metric.unit == "1" else metric.unit
    return (name.removesuffix(f"_{unit.lower()}") if unit else name).replace("_", " "), unit


def format_interval(interval: Interval, separator: str = " ", signed: bool = False) -> str:
    """`0.80 [0.17, 1.43]`: two significant digits of the interval's half width; `-` where there is no estimate."""
    if math.isnan(interval.estimate):
        return "-"
    half_width = (interval.high - interval.low) / 2
    if not half_width > 1e-6 * abs(interval.estimate):  # a single value, or all values equal but for rounding
        return f"{interval.estimate:{'+' if signed else ''},.4g}"
    decimals = max(0, 1 - math.floor(math.log10(half_width)))
    estimate, low, high = (round(part, decimals) + 0.0 for part in (interval.estimate, interval.low, interval.high))
    if decimals > 6:
        return f"{estimate:{'+' if signed else ''}.3g}{separator}[{low:.3g}, {high:.3g}]"
    return f"{estimate:{'+' if signed else ''},.{decimals}f}{separator}[{low:,.{decimals}f}, {high:,.{decimals}f}]"


def _check_comparable(results: dict[str, list[EpisodeResults]]) -> EpisodeResults:
    """Returns the first of the results, which all others match."""
    runs = [(label, run) for label, of_label in results.items() for run in of_label]
    empty = [label for label, of_label in results.items() if not of_label]
    if not runs or empty:
        raise InputError(
            f"no results to compare{' for ' + ', '.join(empty) if empty else ''}: expected at least one evaluation"
        )
    first_label, first = runs[0]
    definitions: dict[str, Metric] = {}
    for label, run in runs:
        pair = f"{first_label} and {label} cannot be compared"
        if run.scenario != first.scenario:
            raise InputError(f"{pair}: they played different scenarios, {first.scenario!r} and {run.scenario!r}")
        if differing := _differing_fields(first.scenario_fields, run.scenario_fields):
            raise InputError(f"{pair}: their scenarios {first.scenario!r} differ in {', '.join(differing)}")
        if not np.array_equal(run.seeds, first.seeds):
            raise InputError(f"{pair}: they played different episodes ({len(first.seeds)} and {len(run.seeds)}, by seed)")
        if changed := [name for name, metric in run.metrics.items() if definitions.setdefault(name, metric) != metric]:
            raise InputError(f"{pair}: they define {', '.join(changed)} differently")
        if run.metrics.keys() != results[label][0].metrics.keys():
            raise InputError(f"the runs of {label} cannot be compared: they report different metrics")
    return first


def _differing_fields(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    if not one or not other:  # from a simulator factory: only the name is known
        return []
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _tables(runs: list[EpisodeResults]) -> dict[str, np.ndarray]:
    """Metric to `[R, E]`."""
    return {name: np.stack([run.values[name] for run in runs]) for name in runs[0].metrics}


def _standings(metric: Metric, tables: dict[str, dict[str, np.ndarray]], name: str, how: Resampling) -> dict[str, Standing]:
    """Who is best in a metric, and who is not shown to differ from the best; nobody where all are equal or none can be best."""
    standings: dict[str, Standing] = dict.fromkeys(tables, "")
    means = {label: bootstrap_interval(table[name], "mean", how).estimate for label, table in tables.items() if name in table}
    means = {label: mean for label, mean in means.items() if not math.isnan(mean)}
    if metric.better == "neither" or len(set(means.values())) < 2:
        return standings
    best = (max if metric.better == "higher" else min)(means, key=means.__getitem__)
    for label, mean in means.items():
        if mean == means[best]:
            standings[label] = "best"
        elif not paired_difference(tables[label][name], tables[best][name], how).excludes(0.0):
            standings[label] = "tied"
    return standings


def _against_best(returns: dict[str, np.ndarray], how: Resampling) -> dict[str, Versus | None]:
    """`returns` by mean, the highest first."""
    best, *others = returns
    versus: dict[str, Versus | None] = {best: None}
    for label in others:
        pair = returns[label], returns[best]
        versus[label] = Versus(best, paired_difference(*pair, how), probability_of_improvement(*pair, how))
    if others and (next_best := versus[others[0]]):
        versus[best] = next_best.reversed(others[0])
    return versus


def _cell(summary: MetricSummary | None) -> Text:
    return Text("-") if summary is None else Text(format_interval(summary.mean, "\n"), style=STYLES[summary.standing])


def _versus_cell(versus: Versus | None) -> Text:
    return Text("") if versus is None else Text(f"{format_interval(versus.difference, ' ', signed=True)}\n{versus.other}")


def _width(column: list[Text]) -> int:
    return COLUMN_FRAME + max(len(line) for cell in column for line in cell.plain.split("\n"))


def _table(columns: list[list[Text]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column[0], justify="left" if index == 0 else "right", no_wrap=True)
    for row in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*row)
    return table


class _StoredResults(BaseModel):
    model_config = ConfigDict(extra="forbid")

    policy: str
    scenario: str
    seeds: list[Seed] = Field(min_length=1)
    metrics: dict[str, Metric]
    sums: dict[str, list[FiniteFloat | None]]
    scenario_fields: dict[str, Any]
    env_steps: int
    run: str


class _StoredComparison(BaseModel):
    format: Literal["edgeflock-evaluation-1"]
    results: dict[str, list[_StoredResults]] = Field(min_length=1)


def _stored(run: EpisodeResults) -> dict[str, Any]:
    return {**asdict(run), "seeds": run.seeds.tolist(), "sums": {name: total.tolist() for name, total in run.sums.items()}}


def _restored(stored: _StoredResults, where: str) -> EpisodeResults:
    needed = {part for metric in stored.metrics.values() for part in (metric.numerator, metric.denominator) if part}
    if missing := sorted(needed - stored.sums.keys()):
        raise InputError(f"{where}: the sums lack {', '.join(missing)}, which the metrics need")
    if short := sorted(name for name, total in stored.sums.items() if len(total) != len(stored.seeds)):
        raise InputError(f"{where}: sums of {', '.join(short)}: expected {len(stored.seeds)} values, one per seed")
    return EpisodeResults(
        policy=stored.policy,
        scenario=stored.scenario,
        seeds=np.array(stored.seeds, dtype=np.int64),
        metrics=stored.metrics,
        sums={name: np.array(total, dtype=np.float64) for name, total in stored.sums.items()},
        scenario_fields=stored.scenario_fields,
        env_steps=stored.env_steps,
        run=stored.run,
    )


def _without_nan(value: Any) -> Any:
    """The same JSON value with None for every float that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
