"""Reads run folders, plays their policies on common episodes, and gathers what a report shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import Tensor

from envs.errors import InputError
from envs.registry import Scenario, make_scenario, make_simulator, scenario_from_dict
from trainers.bundle import MANIFEST
from trainers.comparison import Comparison, compare, problem_and_task, write_whole
from trainers.config import RunConfig, make_run_config, merge, parse_overrides
from trainers.evaluate import EpisodeResults, evaluate
from trainers.figures import EVALUATION_KEY, read_metrics
from trainers.heuristics import heuristics, problem_report
from trainers.learned_policy import load_policy
from trainers.played import Played
from trainers.policy import Policy
from trainers.statistics import DEFAULT, Resampling
from trainers.sweep import SWEEP, is_finished, read_trials
from trainers.sweep_config import Overrides, ReportHints, load_sweep
from trainers.train import BUNDLE, CONFIG

MARL_EVAL = "marl_eval.json"
REACHED = 0.9
"""Normalised score from which on a training counts as having arrived."""

Warn = Callable[[str], None]
Progress = Callable[[float, int, str], None]
"""Called with policies played (the share of the present one included), policies in all, and what is played."""


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        label: What the report calls it and the runs that differ from it in the seed only.
        records: Of its `metrics.jsonl`.
    """

    folder: Path
    label: str
    config: RunConfig
    records: list[dict[str, Any]] = field(default_factory=list)

    def curve(self, key: str = EVALUATION_KEY) -> tuple[np.ndarray, np.ndarray]:
        """Environment steps and values `[P]` of a key of the records; empty where it never occurs."""
        points = [(record["env_steps"], record[key]) for record in self.records if key in record]
        steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        return steps, values


@dataclass(frozen=True)
class Group:
    """All that was played on one scenario.

    Attributes:
        runs: Label to trainings, which are also among the comparison's policies.
        fields: The scenario's, for figures over one of them.
        figures: What the problem adds to a comparison: a name to (caption, figure).
    """

    comparison: Comparison
    runs: dict[str, list[Run]]
    fields: dict[str, Any]
    figures: dict[str, tuple[str, Figure]] = field(default_factory=dict)

    @property
    def scenario(self) -> str:
        """Name and, where it was changed, how."""
        return self.comparison.scenario

    @property
    def anchors(self) -> tuple[float, float]:
        """Mean returns that count as 0 and as 1: of `random` (else of the worst policy) and of the best."""
        means = {policy.label: policy.metrics["return"].mean.estimate for policy in self.comparison.policies}
        low = means.get("random", min(means.values()))
        return low, max(means.values())

    def normalised(self, returns: np.ndarray) -> np.ndarray:
        """Returns in units of the distance between the anchors."""
        low, high = self.anchors
        return (returns - low) / ((high - low) or 1.0)

    def scores(self, label: str) -> np.ndarray:
        """`[R]` normalised mean returns of a policy's runs."""
        return self.normalised(np.array([run.values["return"].mean() for run in self.comparison.results[label]]))


# -- reading -------------------------------------------------------------------------------------------------------------


def read_runs(folders: Iterable[Path], warn: Warn) -> list[Run]:
    """The finished trainings among run folders and sweeps' folders; `warn` hears of every other one.

    Raises:
        InputError: None is finished, or a folder is not there.
    """
    runs: list[Run] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such run folder or sweep")
        trials = read_trials(folder)
        labels = {folder / trial["name"]: trial["label"] for trial in trials} or {folder: _label_in_sweep(folder)}
        for path, label in labels.items():
            try:
                runs.append(_read_run(path, label))
            except InputError as error:
                warn(f"skipped, not counted: {error}")
    if not runs:
        raise InputError("no finished run: nothing to report")
    return _told_apart(runs)


def read_hints(folders: Iterable[Path]) -> ReportHints:
    """What the first of the sweeps' folders says about its report."""
    for folder in folders:
        if (folder / SWEEP).exists():
            return load_sweep(folder / SWEEP).report
    return ReportHints()


def _label_in_sweep(folder: Path) -> str:
    """A trial's label, where the run folder is one of a sweep; else empty."""
    return next((trial["label"] for trial in read_trials(folder.parent) if trial["name"] == folder.name), "")


def _read_run(folder: Path, label: str) -> Run:
    if not folder.is_dir():
        raise InputError(f"{folder}: was not begun")
    config = RunConfig.load(folder / CONFIG)
    if not is_finished(folder):
        raise InputError(f"{folder}: its training has not finished")
    load_policy(folder)
    return Run(folder, label, config, read_metrics(folder))


def _told_apart(runs: list[Run]) -> list[Run]:
    """Runs without a label get their algorithm's name and those of its settings in which its runs differ."""
    changes = [_changes(run.config) for run in runs]
    named = []
    for run, own in zip(runs, changes, strict=True):
        others = [other for r, other in zip(runs, changes, strict=True) if r.config.name == run.config.name and not r.label]
        words = [f"{key}={value}" for key, value in own.items() if any(other.get(key) != value for other in others)]
        named.append(run if run.label else replace(run, label=" ".join([run.config.name, *words])))
    return named


def _changes(config: RunConfig) -> Overrides:
    """Last part of the key to value, of the algorithm's and network's settings that differ from the preset."""
    preset = make_run_config(config.name, config.scenario.name) if config.scenario.name else None
    if preset is None:
        return {}
    changed: Overrides = {}
    for section in ("algorithm", "network"):
        own, usual = (_leaves(getattr(of, section).model_dump(mode="json")) for of in (config, preset))
        changed |= {key.rpartition(".")[2]: value for key, value in own.items() if usual.get(key) != value}
    return changed


def _leaves(values: Mapping[str, Any], before: str = "") -> Overrides:
    flat: Overrides = {}
    for key, value in values.items():
        flat |= _leaves(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


# -- playing -------------------------------------------------------------------------------------------------------------


def play(
    runs: Sequence[Run],
    seeds: Tensor,
    hints: ReportHints,
    progress: Progress | None = None,
    how: Resampling = DEFAULT,
    played: Played | None = None,
) -> list[Group]:
    """Plays the same episodes with every run's policy and with the heuristics, scenario by scenario.

    Args:
        played: Keeps what is played, and has what was played before an interruption.

    Raises:
        InputError: An override of the evaluation or a heuristic is unknown.
    """
    passed_over = [*hints.own, *(key.removeprefix("scenario.") for key in hints.evaluation)]  # the same for all, or no matter
    places: dict[str, list[tuple[Run, Scenario]]] = {}
    for run in runs:
        scenario = _evaluated_on(run.config.scenario, hints.evaluation)
        places.setdefault(scenario_label(scenario, passed_over), []).append((run, scenario))
    players = {label: _players(of_place, hints) for label, of_place in places.items()}
    total, done = sum(map(len, players.values())), 0
    groups = []
    for place, of_place in places.items():
        results: dict[str, list[EpisodeResults]] = {}
        for label, player, scenario in players[place]:

            def report(episodes: float, of: int, before: int = done, what: str = f"{place}: {label}") -> None:
                if progress is not None and 0 < episodes < of:
                    progress(before + episodes / of, total, what)

            one = partial(_play_one, label, player, scenario, seeds, report)
            if progress is not None:
                progress(done, total, f"{place}: {label}")
            result = played.or_play(_identity(label, player), scenario, seeds, one) if played else one()
            results.setdefault(label, []).append(_comparable(result, place, player, hints.own))
            done += 1
        by_label: dict[str, list[Run]] = {}
        for run, _ in sorted(of_place, key=lambda pair: pair[0].config.seed):
            by_label.setdefault(run.label, []).append(run)
        scenario = of_place[0][1]
        results, figures = _with_the_problems(results, scenario, seeds)
        groups.append(Group(compare(results, how), by_label, scenario.model_dump(mode="json"), figures))
    return groups


def _with_the_problems(
    results: dict[str, list[EpisodeResults]], scenario: Scenario, seeds: Tensor
) -> tuple[dict[str, list[EpisodeResults]], dict[str, tuple[str, Figure]]]:
    """The results with the problem's further metrics (but not its slow optima), and what it draws of a comparison."""
    added = problem_report(scenario)
    if added is None:
        return results, {}
    results, _ = added.extend(results, scenario, seeds, 0.0)
    return results, added.figures({}, scenario, int(seeds[0]))


def _play_one(
    label: str, run: Run | None, scenario: Scenario, seeds: Tensor, progress: Callable[[float, int], None]
) -> EpisodeResults:
    return evaluate(_policy(label, run, scenario), scenario, seeds, progress=progress)


def _policy(label: str, run: Run | None, scenario: Scenario) -> Policy:
    if run is not None:
        return load_policy(run.folder)
    return heuristics(scenario.problem)[label](make_simulator(scenario, 1).spec)


def _identity(label: str, run: Run | None) -> str:
    """What tells a policy from every other one: a heuristic's name, or a bundle's manifest with the checksum of the weights."""
    return label if run is None else (run.folder / BUNDLE / MANIFEST).read_text(encoding="utf-8")


def scenario_label(scenario: Scenario, own: Sequence[str] = ()) -> str:
    """Name of a scenario, and the fields in which it differs from the preset of that name; `own` ones are passed over."""
    usual = make_scenario(scenario.name).model_dump(mode="json") if scenario.name else {}
    values = scenario.model_dump(mode="json")
    changes = {key: value for key, value in values.items() if usual.get(key) != value and key not in own}
    changed = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in changes.items()]
    return " ".join([scenario.name or scenario.problem, *changed])


def _evaluated_on(scenario: Scenario, overrides: Overrides) -> Scenario:
    given = parse_overrides([f"{key}={json.dumps(value)}" for key, value in overrides.items()])
    if set(given) - {"scenario"}:
        raise InputError(f"evaluation: only scenario.* can be set, got {', '.join(sorted(set(given) - {'scenario'}))}")
    return scenario_from_dict(merge(scenario.model_dump(mode="json"), given.get("scenario")))


def _players(of_place: list[tuple[Run, Scenario]], hints: ReportHints) -> list[tuple[str, Run | None, Scenario]]:
    """(label, run or None for a heuristic, scenario), the runs by seed."""
    scenario = of_place[0][1]
    known = heuristics(scenario.problem)
    wanted = list(known) if hints.heuristics is None else hints.heuristics
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"unknown heuristic {', '.join(unknown)}: {scenario.problem} has {', '.join(known)}")
    learners = [(run.label, run, own) for run, own in sorted(of_place, key=lambda pair: pair[0].config.seed)]
    return [*learners, *((name, None, scenario) for name in wanted)]


def _comparable(result: EpisodeResults, place: str, run: Run | None, own: Sequence[str]) -> EpisodeResults:
    fields = {key: value for key, value in result.scenario_fields.items() if key not in own}
    steps = int(run.records[-1]["env_steps"]) if run and run.records else 0
    return replace(result, scenario=place, scenario_fields=fields, env_steps=steps, run=str(run.folder) if run else "")


# -- figures of a training -----------------------------------------------------------------------------------------------


def training_minutes(run: Run) -> float:
    """Wall-clock minutes of all processes that worked on a run, evaluations and checkpoints included.

    Each process wrote an event file of its own: its time is that from the file's first event to its last.
    """
    seconds = 0.0
    for file in run.folder.glob("events.out.tfevents.*"):
        times = [event.wall_time for event in EventFileLoader(str(file)).Load()]
        seconds += max(times) - min(times) if times else 0.0
    return seconds / 60.0


def share_to_arrive(group: Group, run: Run) -> float:
    """Share of the training's steps after which an evaluation first reached `REACHED`; infinite if none did."""
    steps, returns = run.curve()
    arrived = steps[group.normalised(returns) >= REACHED] / run.records[-1]["env_steps"]
    return float(arrived[0]) if len(arrived) else float("inf")


def learners(groups: Sequence[Group]) -> list[str]:
    """Labels of the policies that were trained, in every scenario of the report."""
    first, *others = [list(group.runs) for group in groups]
    return [label for label in first if all(label in other for other in others)]


def write_marl_eval(groups: Sequence[Group], path: Path) -> Path:
    """All scenarios in marl-eval's layout, with the returns of the evaluations during training as steps."""
    together: dict[str, Any] = {}
    for group in groups:
        problem, task = problem_and_task(group.scenario)
        stored = group.comparison.marl_eval()[problem][task]
        for label, runs in group.runs.items():
            for index, run in enumerate(runs):
                last = stored[label][f"seed_{index}"].pop("step_0")
                steps, returns = run.curve()
                points = [
                    {"step_count": int(step), "return": [float(value)]}
                    for step, value in zip(steps, returns, strict=True)
                    if step < last["step_count"]
                ]
                numbered = {f"step_{place}": point for place, point in enumerate([*points, last])}
                stored[label][f"seed_{index}"] = {**numbered, **stored[label][f"seed_{index}"]}
        together.setdefault(problem, {})[task] = stored
    return write_whole(path, json.dumps(together, allow_nan=False))
