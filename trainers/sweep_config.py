"""What a sweep file may say, and the trials that follow from it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from envs.errors import InputError
from envs.registry import make_simulator, parse
from trainers.config import RunConfig, make_run_config, merge

SWEEPS = Path(__file__).parent / "sweeps"
DIGITS = 4  # significant ones of a number drawn at random, so that people can read and repeat it

Overrides = dict[str, Any]
Range = tuple[float, float]


class Strict(BaseModel):
    """Refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Draw(Strict):
    """How a setting is drawn at random: exactly one of the four."""

    uniform: Range | None = None
    log_uniform: Range | None = None
    integers: tuple[int, int] | None = Field(None, description="both ends can be drawn")
    choice: list[Any] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(type(self).model_fields)}")
        bounds = self.uniform or self.log_uniform or self.integers
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"expected a lower and a higher bound, got {list(bounds)}")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError("log_uniform needs a lower bound above 0")
        return self

    def draw(self, rng: np.random.Generator) -> Any:
        """One value."""
        if self.choice is not None:
            return self.choice[int(rng.integers(len(self.choice)))]
        if self.integers is not None:
            return int(rng.integers(self.integers[0], self.integers[1] + 1))
        if self.uniform is not None:
            return _rounded(rng.uniform(*self.uniform))
        assert self.log_uniform is not None
        return _rounded(float(np.exp(rng.uniform(*np.log(self.log_uniform)))))


class NoScheduler(Strict):
    """Every trial uses its whole budget."""

    kind: Literal["none"] = "none"


class Asha(Strict):
    """Asynchronous successive halving (Li et al. 2020), among the trials of one algorithm on one scenario."""

    kind: Literal["asha"]
    grace: float = Field(0.25, gt=0, le=1, description="share of the budget that every trial gets")
    reduction: float = Field(3.0, gt=1, description="of this many trials one goes on at each rung")


class Pbt(Strict):
    """Population-based training (Jaderberg et al. 2017) of the `random` settings; the draws are the population."""

    kind: Literal["pbt"]
    interval: int = Field(20, ge=1, description="iterations between two looks at who copies whom")
    quantile: float = Field(0.25, gt=0, le=0.5, description="share of the population that copies, and that is copied")
    resample: float = Field(
        0.25, ge=0, le=1, description="probability to draw a setting anew instead of changing it by a fifth"
    )


class Resources(Strict):
    """Of each trial; Tune runs as many at a time as fit. Remote runners and learners need a CPU each on top."""

    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)


class ReportHints(Strict):
    """What `edgeflock report` takes from a sweep unless it is told otherwise."""

    claims: str | None = Field(None, description="name of a file of claims, see trainers/claims")
    heuristics: list[str] | None = Field(None, description="policies beside the learners; null: all of the problem's")
    evaluation: Overrides = Field({}, description="scenario.KEY: value, where evaluation differs from training")
    own: list[str] = Field([], description="scenario fields in which policies that are compared may differ")


class SweepConfig(Strict):
    """A sweep: every seed of every algorithm, scenario, variant and point of the grid (or random draw) is a trial."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    about: str = Field(description="what it is for, in a sentence")
    trial_minutes: float = Field(gt=0, description="estimate of a trial's minutes on one core, for the statement of the cost")
    algorithms: list[str] = Field(min_length=1)
    scenarios: list[str] = Field(min_length=1)
    seeds: int | list[int] = Field(1, description="a list, or how many, counted from 1")
    set: Overrides = Field({}, description="SECTION.KEY: value, for all trials")
    variants: dict[str, Overrides] | None = Field(None, min_length=1, description="name to overrides: ablations")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] | None = Field(None, min_length=1)
    random: dict[str, Draw] | None = Field(None, min_length=1)
    draws: int | None = Field(None, ge=1, description="how many points `random` draws; every algorithm gets the same ones")
    points: dict[str, Overrides] | None = Field(
        None, min_length=1, description="tried before the draws: name to a value for each key of `random`, e.g. the defaults"
    )
    draw_seed: int = Field(0, ge=0)
    scheduler: NoScheduler | Asha | Pbt = Field(NoScheduler(), discriminator="kind")
    metric: str = Field("evaluation_return_mean", description="of metrics.jsonl")
    mode: Literal["max", "min"] = "max"
    resources: Resources = Resources()
    max_failures: int = Field(2, ge=0, description="how often a failed trial goes on from its checkpoint")
    report: ReportHints = ReportHints()

    @property
    def seed_list(self) -> list[int]:
        """The seeds one by one."""
        return list(range(1, self.seeds + 1)) if isinstance(self.seeds, int) else self.seeds

    def save(self, path: Path) -> None:
        """Writes YAML that `load_sweep` reads back."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Attributes:
        name: Of its run folder.
        label: What a report calls the trials that differ from it in the seed or the scenario only.
        overrides: Dotted key to value.
        searched: The keys of `overrides` that a population may change.
    """

    name: str
    label: str
    algorithm: str
    scenario: str
    seed: int
    overrides: Overrides = field(default_factory=dict)
    searched: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """Trials of one group can be compared by their metric."""
        return f"{self.algorithm} on {self.place}"

    @property
    def place(self) -> str:
        """The scenario with what the sweep changes of it."""
        changes = [f"{key.removeprefix('scenario.')}={value}" for key, value in self.overrides.items() if _of_scenario(key)]
        return " ".join([self.scenario, *changes])

    def run_config(self) -> RunConfig:
        """The complete configuration.

        Raises:
            InputError: A name, a key or a value is unknown.
        """
        assignments = [f"{key}={json.dumps(value)}" for key, value in self.overrides.items()]
        try:
            return make_run_config(self.algorithm, self.scenario, self.seed, assignments)
        except InputError as error:
            raise InputError(f"trial {self.name}: {error}") from None

    def with_settings(self, values: Overrides) -> Trial:
        """The same trial with other values of what is searched."""
        return replace(self, overrides={**self.overrides, **values})


def find_sweep(given: str) -> Path:
    """The path of a sweep file, or of the ready sweep of that name.

    Raises:
        InputError: There is neither.
    """
    ready = SWEEPS / f"{given}.yaml"
    path = ready if ready.exists() else Path(given)
    if not path.is_file():
        known = ", ".join(sorted(sweep.stem for sweep in SWEEPS.glob("*.yaml")))
        raise InputError(f"{given!r} is neither a sweep file nor a ready sweep ({known})")
    return path


def load_sweep(path: Path, quick: bool = False) -> SweepConfig:
    """Reads a sweep file; `quick` puts its section of that name over the rest.

    Raises:
        InputError: The file is missing or no YAML, says something unknown, or has no quick size.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as a sweep: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a sweep: expected the keys {', '.join(SweepConfig.model_fields)}")
    small = values.pop("quick", None)
    if quick:
        if not isinstance(small, dict):
            raise InputError(f"{path}: has no `quick` section")
        values = merge(values, small)
        values["name"] = f"{values.get('name')}-quick"
    sweep = parse(SweepConfig, values, str(path))
    for complaint in _complaints(sweep):
        raise InputError(f"{path}: {complaint}")
    return sweep


def make_trials(sweep: SweepConfig) -> list[Trial]:
    """All trials, the first seed of everything first, so that an unfinished sweep compares like with like.

    Raises:
        InputError: A combination is no valid training, or two of them are the same. Nothing has been started.
    """
    combinations = itertools.product(sweep.seed_list, sweep.scenarios, sweep.algorithms, _variants(sweep), _points(sweep))
    trials = [_trial(sweep, *combination) for combination in combinations]
    names = [trial.name for trial in trials]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"sweep {sweep.name}: two trials would be called {twice}: expected every combination once")
    configs = [trial.run_config() for trial in trials]
    scenarios = {config.scenario.model_dump_json(): config.scenario for config in configs}
    for scenario in scenarios.values():
        make_simulator(scenario, 1).close()
    return trials


def cost(sweep: SweepConfig, trials: list[Trial]) -> str:
    """What the sweep takes, in words."""
    steps = sum(trial.run_config().training.env_steps for trial in trials)
    hours = len(trials) * sweep.trial_minutes / 60
    amount = f"{hours:.1f} core-hours" if hours >= 1 else f"{60 * hours:.0f} core-minutes"
    return f"{len(trials)} trials, at most {steps:,} environment steps, about {amount}"


def _complaints(sweep: SweepConfig) -> Iterator[str]:
    """What does not fit together, though every field by itself is good."""
    if (sweep.random is None) != (sweep.draws is None):
        yield "random and draws: expected both or neither"
    for name, values in (sweep.points or {}).items():
        if set(values) != set(sweep.random or {}):
            yield f"points: {name}: expected a value for each key of random ({', '.join(sweep.random or {}) or 'none'})"
    seeds = sweep.seed_list
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        yield f"seeds = {sweep.seeds}: expected different numbers from 0, at least one, or how many"
    if isinstance(sweep.scheduler, Pbt):
        if sweep.random is None or (sweep.draws or 0) < 2:
            yield "scheduler pbt: expected random settings, and at least 2 draws as its population"
        elif len(sweep.algorithms) * len(sweep.scenarios) * len(seeds) > 1 or sweep.variants or sweep.grid:
            yield "scheduler pbt: expected one algorithm, scenario and seed, and neither variants nor grid"


def _trial(
    sweep: SweepConfig,
    seed: int,
    scenario: str,
    algorithm: str,
    variant: tuple[str, Overrides],
    point: tuple[str, Overrides],
) -> Trial:
    parts = [part for part in (variant[0], point[0]) if part]
    place = scenario.partition("/")[2] if len({name.partition("/")[0] for name in sweep.scenarios}) == 1 else scenario
    name = "-".join(_file_name(part) for part in [algorithm, *parts, place or scenario, f"seed{seed}"])
    overrides = {**sweep.set, **variant[1], **point[1]}
    told = [words for words, changes in (variant, point) if words and any(_tells(sweep, key) for key in changes)]
    if isinstance(sweep.scheduler, Pbt):  # who is copied must have been saved at that moment
        overrides["training.checkpoint_interval"] = sweep.scheduler.interval
    return Trial(name, " ".join([algorithm, *told]), algorithm, scenario, seed, overrides, tuple(sweep.random or ()))


def _of_scenario(key: str) -> bool:
    return key.startswith("scenario.")


def _tells(sweep: SweepConfig, key: str) -> bool:
    """Whether a change makes another policy of an algorithm, and not the same one on another scenario."""
    return not _of_scenario(key) or key.removeprefix("scenario.") in sweep.report.own


def _variants(sweep: SweepConfig) -> list[tuple[str, Overrides]]:
    """(words, overrides); one that changes nothing needs no words."""
    return [(name if overrides else "", overrides) for name, overrides in (sweep.variants or {"": {}}).items()]


def _points(sweep: SweepConfig) -> list[tuple[str, Overrides]]:
    """(words, overrides) of the grid, times the points that are given and drawn."""
    grid = sweep.grid or {}
    points = []
    for values in itertools.product(*grid.values()):
        words = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in zip(grid, values, strict=True))
        points.append((words, dict(zip(grid, values, strict=True))))
    return [
        (" ".join(filter(None, (words, drawn))), {**point, **values})
        for (words, point), (drawn, values) in itertools.product(points, _draws(sweep))
    ]


def _draws(sweep: SweepConfig) -> Iterator[tuple[str, Overrides]]:
    if sweep.random is None:
        yield "", {}
        return
    yield from (sweep.points or {}).items()
    for index in range(sweep.draws or 0):
        rng = np.random.default_rng([sweep.draw_seed, index])
        yield f"draw{index:02d}", {key: draw.draw(rng) for key, draw in sweep.random.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=_]+", "-", text).strip("-")
