"""Runs a sweep on Ray Tune: every trial is a normal run folder, and what was interrupted goes on.

What has become of the trials stands in `trials.json` and in their run folders, not in Tune's own state: so a sweep whose driver
was killed resumes from folders that anyone can read. Finished trials are kept, unfinished ones go on from their checkpoint, and
missing ones are started. On a cluster the output folder must be on a file system that all nodes share, or there is a storage:
then trials work where they are, keep their run folders there, and the driver fetches what they have finished.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from envs.errors import InputError
from trainers.algorithms.team_algorithm import initialise_ray
from trainers.bundle import MANIFEST
from trainers.comparison import write_whole
from trainers.config import RunConfig, TrainingConfig
from trainers.figures import read_metrics
from trainers.storage import WAIT_S, Storage
from trainers.sweep_config import Asha, Draw, Pbt, SweepConfig, Trial, load_sweep, make_trials
from trainers.sweep_storage import SWEEP, TRIALS, TUNE, SweepKeeper
from trainers.train import BUNDLE, CHECKPOINTS, CONFIG, METRICS, train

MEMBER = "member"
"""File of a population's checkpoint: whose it is."""

TRACKERS = ("wandb", "mlflow")
SHARE = "share"
"""Share of a trial's budget that is used, in per cent."""

State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass
class Standing:
    """How far a trial is.

    Attributes:
        stopped: The scheduler saw that it would not become the best.
        share: Of its budget, in per cent.
        metric: The latest value, None before the first.
    """

    trial: Trial
    state: State = "waiting"
    share: float = 0.0
    metric: float | None = None

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        trial = {**asdict(self.trial), "searched": list(self.trial.searched)}
        return {**trial, "state": self.state, "share": round(self.share, 1), "metric": self.metric}


class SweepReporter(Protocol):
    """Hears what happened to which trial, and how all of them stand."""

    def __call__(self, event: str, of: Standing, standings: Mapping[str, Standing]) -> None: ...


def run_sweep(
    sweep: SweepConfig,
    out: Path,
    report: SweepReporter,
    resume: bool = False,
    track: str | None = None,
    storage: Storage | None = None,
    storage_wait_s: float = WAIT_S,
) -> list[Standing]:
    """Runs all trials that are not finished yet.

    Args:
        out: The sweep's folder; made here, or continued with `resume`.
        track: One of `TRACKERS`, beside TensorBoard.
        storage: The sweep's folder there, which all nodes reach.
        storage_wait_s: How long the end of a trial waits for a storage that cannot be written.

    Returns:
        How every trial ended. One that is neither finished, stopped nor failed was interrupted.

    Raises:
        InputError: The sweep, `out`, the storage or the machine does not allow it. Nothing has been created or changed then.
        Failure: The storage could not be written at the end.
    """
    trials = make_trials(sweep)
    callbacks = _tracker(track, sweep.name)
    keeper = None if storage is None else SweepKeeper(out, storage, storage_wait_s)
    if keeper is not None:
        keeper.begin(resume)
    initialise_ray((os.cpu_count() or 1) - 1)
    _check_resources(sweep, trials)
    standings = _resumed(sweep, trials, out) if resume else _begun(sweep, trials, out)
    unfinished = [standing.trial for standing in standings.values() if standing.state == "waiting"]
    _write_trials(out, standings.values())
    if keeper is not None:
        keeper.update()
    if unfinished:
        groups = {trial.name: trial.group for trial in trials}
        board = _Board(sweep, out, standings, report, keeper)
        _fit(sweep, out, unfinished, _scheduler(sweep, groups, out), [board, *callbacks], keeper)
    shutil.rmtree(out / TUNE, ignore_errors=True)
    for standing in standings.values():
        standing.state = "waiting" if standing.state == "running" else standing.state
        standing.trial = _as_changed(standing.trial, out)
    _write_trials(out, standings.values())
    if keeper is not None:
        keeper.finish()
    return list(standings.values())


def is_finished(folder: Path) -> bool:
    """Whether a run folder's training has come to its end: its bundle carries the figures of the last evaluation."""
    try:
        manifest = json.loads((folder / BUNDLE / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return "evaluation" in manifest.get("metrics", {})


def used_share(training: TrainingConfig, record: Mapping[str, Any]) -> float:
    """Per cent of the budget of steps or of episodes, whichever is nearer its end, used by an iteration's record."""
    steps = record["env_steps"] / training.env_steps
    episodes = record["episodes"] / training.episodes if training.episodes else 0.0
    return 100.0 * min(1.0, max(steps, episodes))


# -- the trials ----------------------------------------------------------------------------------------------------------


def run_trial(
    config: dict[str, Any], trials: dict[str, Trial], out: Path, metric: str, population: bool, keeper: SweepKeeper | None
) -> None:
    """Tune's trainable: trains one trial in its run folder, from the last checkpoint if there is one."""
    planned = trials[tune.get_context().get_trial_name()]  # config["name"] is another's where a population copied it
    trial = planned.with_settings(config["trial"]["settings"])
    folder = out / trial.name
    mirror = None if keeper is None else keeper.begin_trial(trial.name)
    if population:
        _adopt_checkpoint(folder)
    resume = any(path.suffix != ".tmp" for path in (folder / CHECKPOINTS).glob("*"))
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that ended before its first checkpoint
    run = trial.run_config()
    train(run, folder, _TuneReport(run, folder, metric, population), resume, mirror)


class _TuneReport:
    """Passes on to Tune what the training reports, as soon as the metric is known."""

    def __init__(self, run: RunConfig, folder: Path, metric: str, population: bool) -> None:
        self._training = run.training
        self._folder, self._metric, self._population = folder, metric, population
        self._latest = _latest(folder, metric)

    def __call__(self, record: dict[str, Any]) -> None:
        self._latest = record.get(self._metric, self._latest)
        if self._latest is None:
            return
        figures = {**record, self._metric: self._latest, SHARE: used_share(self._training, record)}
        if self._population and record["iteration"] % self._training.checkpoint_interval == 0:
            with tempfile.TemporaryDirectory() as temporary:
                _copy_checkpoint(self._folder, Path(temporary))
                tune.report(figures, checkpoint=tune.Checkpoint.from_directory(temporary))
        else:
            tune.report(figures)


def _copy_checkpoint(folder: Path, into: Path) -> None:
    newest = max((folder / CHECKPOINTS).iterdir())
    shutil.copytree(newest, into / newest.name)
    (into / MEMBER).write_text(folder.name)


def _adopt_checkpoint(folder: Path) -> None:
    """Puts the checkpoint of the member that this one copies, if it was told to, in the place of its own."""
    given = tune.get_checkpoint()
    if given is None:
        return
    with given.as_directory() as source:
        if (Path(source) / MEMBER).read_text() == folder.name:
            return
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        copied = next(path for path in Path(source).iterdir() if path.is_dir())
        shutil.copytree(copied, folder / CHECKPOINTS / copied.name)


# -- Tune ----------------------------------------------------------------------------------------------------------------


def _fit(
    sweep: SweepConfig,
    out: Path,
    trials: list[Trial],
    scheduler: TrialScheduler,
    callbacks: list[Any],
    keeper: SweepKeeper | None,
) -> None:
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the run folders have logs and TensorBoard events
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # which ignores verbose=0
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths in scenarios are relative to where the user is
    shutil.rmtree(out / TUNE, ignore_errors=True)
    population = isinstance(sweep.scheduler, Pbt)
    trainable = tune.with_parameters(
        run_trial,
        trials={trial.name: trial for trial in trials},
        out=out.absolute(),
        metric=sweep.metric,
        population=population,
        keeper=keeper,
    )
    needs = {_bundles(sweep, trial.run_config().training) for trial in trials}
    largest = max(needs, key=lambda bundles: sum(sum(amounts) for amounts in bundles))
    resources = tune.PlacementGroupFactory([{"CPU": cpus, "GPU": gpus} for cpus, gpus in largest])
    points = [{"name": trial.name, "settings": {key: trial.overrides[key] for key in trial.searched}} for trial in trials]
    tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"trial": tune.grid_search(points)},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            trial_name_creator=lambda trial: trial.config["trial"]["name"],
            trial_dirname_creator=lambda trial: trial.config["trial"]["name"],
            reuse_actors=True,  # importing torch and RLlib takes longer than many a trial
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=str(out.absolute()) if keeper is None else keeper.storage.root,
            storage_filesystem=None if keeper is None else keeper.storage.files,
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=3),  # a population copies them a little later
            callbacks=callbacks,
            verbose=0,
        ),
    ).fit()


def _scheduler(sweep: SweepConfig, groups: dict[str, str], out: Path) -> TrialScheduler:
    how = sweep.scheduler
    if isinstance(how, Asha):
        halving = GroupedAsha(groups, sweep.metric, sweep.mode, how)
        halving.remember(out)
        return halving
    if isinstance(how, Pbt):
        draws = sweep.random or {}
        return PopulationBasedTraining(
            time_attr="iteration",
            metric=sweep.metric,
            mode=sweep.mode,
            perturbation_interval=how.interval,
            quantile_fraction=how.quantile,
            resample_probability=how.resample,
            hyperparam_mutations={"trial": {"settings": {key: _domain(draw) for key, draw in draws.items()}}},
            custom_explore_fn=lambda config: _within(config, draws),
            synch=True,  # who is compared with whom does not depend on the machine's speed
        )
    return FIFOScheduler()


class GroupedAsha(FIFOScheduler):
    """Tune's ASHA, one for each group of trials whose metrics can be compared; it knows trials by their names."""

    def __init__(self, groups: dict[str, str], metric: str, mode: str, how: Asha) -> None:
        super().__init__()
        self._metric = metric
        self._groups = groups
        self._halvings = {
            group: AsyncHyperBandScheduler(
                time_attr=SHARE,
                metric=metric,
                mode=mode,
                max_t=100,
                grace_period=100 * how.grace,
                reduction_factor=how.reduction,
                stop_last_trials=False,  # a training that has used its budget still has to evaluate and to export its policy
            )
            for group in set(groups.values())
        }

    def remember(self, out: Path) -> None:
        """Takes in what trials of an interrupted sweep have reached, so that the others are held to it."""
        for name in self._groups:
            if not (out / name / METRICS).exists():
                continue
            training, latest = RunConfig.load(out / name / CONFIG).training, None
            self._of(name).on_trial_add(None, SimpleNamespace(trial_id=name))
            for record in read_metrics(out / name):
                latest = record.get(self._metric, latest)
                if latest is not None:
                    result = {SHARE: used_share(training, record), self._metric: latest}
                    self._of(name).on_trial_result(None, SimpleNamespace(trial_id=name), result)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(str(trial)).on_trial_add(tune_controller, SimpleNamespace(trial_id=str(trial)))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self._of(str(trial)).on_trial_result(tune_controller, SimpleNamespace(trial_id=str(trial)), result)

    def _of(self, name: str) -> AsyncHyperBandScheduler:
        return self._halvings[self._groups[name]]


def _domain(draw: Draw) -> Any:
    if draw.choice is not None:
        return list(draw.choice)
    if draw.integers is not None:
        return tune.randint(draw.integers[0], draw.integers[1] + 1)
    return tune.uniform(*draw.uniform) if draw.uniform is not None else tune.loguniform(*(draw.log_uniform or ()))


def _within(config: dict[str, Any], draws: dict[str, Draw]) -> dict[str, Any]:
    """Settings that PBT changed by a fifth, brought back into the ranges of the sweep."""
    settings = config["trial"]["settings"]
    for key, draw in draws.items():
        bounds = draw.uniform or draw.log_uniform or draw.integers
        if bounds is not None:
            settings[key] = min(max(settings[key], bounds[0]), bounds[1])
        if draw.integers is not None:
            settings[key] = round(settings[key])
    return config


def _bundles(sweep: SweepConfig, training: TrainingConfig) -> tuple[tuple[float, float], ...]:
    """(CPUs, GPUs) of a trial's process, and of each of its remote runners and learners."""
    own = (sweep.resources.cpus, sweep.resources.gpus)
    return (own, *[(1.0, training.runner_gpus)] * training.runners, *[(1.0, training.learner_gpus)] * training.learners)


def _check_resources(sweep: SweepConfig, trials: list[Trial]) -> None:
    there = ray.cluster_resources()
    for bundles in {_bundles(sweep, trial.run_config().training) for trial in trials}:
        for kind, wanted in zip(("CPU", "GPU"), (sum(amounts) for amounts in zip(*bundles, strict=True)), strict=True):
            if wanted > there.get(kind, 0.0):
                raise InputError(f"a trial of {sweep.name} needs {wanted:g} {kind}s, but there are {there.get(kind, 0.0):g}")


def _tracker(track: str | None, project: str) -> list[Any]:
    """Ray's callback for an experiment tracker whose package is installed."""
    if track is None:
        return []
    from importlib.util import find_spec

    if track not in TRACKERS:
        raise InputError(f"--track {track}: expected one of {', '.join(TRACKERS)}")
    if find_spec(track) is None:
        raise InputError(f"--track {track}: the package {track} is not installed")
    if track == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        return [WandbLoggerCallback(project=f"edgeflock-{project}")]
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return [MLflowLoggerCallback(experiment_name=f"edgeflock-{project}")]


# -- what has become of the trials ---------------------------------------------------------------------------------------


class _Board(tune.Callback):
    """Keeps the standings by what Tune tells, and passes the events on."""

    def __init__(
        self, sweep: SweepConfig, out: Path, standings: dict[str, Standing], report: SweepReporter, keeper: SweepKeeper | None
    ) -> None:
        self._metric, self._out, self._standings, self._report = sweep.metric, out, standings, report
        self._keeper = keeper

    def __reduce__(self) -> Any:
        # Tune stores its callbacks for a `Tuner.restore` that is not used here, and bars on screens cannot be stored.
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("started", trial, "running")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        standing = self._standings[str(trial)]
        standing.share = result.get(SHARE, standing.share)
        standing.metric = result.get(self._metric, standing.metric)
        self._tell("result", trial, "running")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self._keeper is not None and not is_finished(self._out / str(trial)):
            self._keeper.fetch(str(trial))
        state: State = "finished" if is_finished(self._out / str(trial)) else "stopped"
        self._tell(state, trial, state)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("retried", trial, "waiting")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("failed", trial, "failed")

    def _tell(self, event: str, trial: Any, state: State) -> None:
        standing = self._standings[str(trial)]
        standing.state = state
        if event != "result":
            _write_trials(self._out, self._standings.values())
            if self._keeper is not None:
                self._keeper.update()
        self._report(event, standing, self._standings)


def _begun(sweep: SweepConfig, trials: list[Trial], out: Path) -> dict[str, Standing]:
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: exists already: choose another --out, or --resume it")
    out.mkdir(parents=True, exist_ok=True)
    sweep.save(out / SWEEP)
    return {trial.name: Standing(trial) for trial in trials}


def _resumed(sweep: SweepConfig, trials: list[Trial], out: Path) -> dict[str, Standing]:
    if not (out / SWEEP).exists():
        raise InputError(f"{out}: no sweep to resume: expected its {SWEEP}")
    begun = load_sweep(out / SWEEP)
    if changed := [name for name in SweepConfig.model_fields if getattr(begun, name) != getattr(sweep, name)]:
        raise InputError(f"{out}: was begun with another {', '.join(changed)}: resume with the same file, or use another --out")
    before = {record["name"]: record for record in read_trials(out)}
    return {trial.name: _stands(_as_changed(trial, out), sweep.metric, out, before.get(trial.name, {})) for trial in trials}


def _stands(trial: Trial, metric: str, out: Path, before: dict[str, Any]) -> Standing:
    folder = out / trial.name
    if is_finished(folder):
        return Standing(trial, "finished", 100.0, _latest(folder, metric))
    if before.get("state") == "stopped":
        return Standing(trial, "stopped", before["share"], before["metric"])
    return Standing(trial)


def _as_changed(trial: Trial, out: Path) -> Trial:
    """The trial with the settings that its population has given it meanwhile."""
    path = out / trial.name / CONFIG
    if not trial.searched or not path.exists():
        return trial
    current = RunConfig.load(path).model_dump(mode="json")
    return trial.with_settings({key: _at(current, key) for key in trial.searched})


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def read_trials(out: Path) -> list[dict[str, Any]]:
    """The records of a sweep's trials, in its order; empty where the folder is no sweep's.

    Raises:
        InputError: `trials.json` is damaged.
    """
    path = out / TRIALS
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text())["trials"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as a sweep's trials: {error}") from None


def _write_trials(out: Path, standings: Iterable[Standing]) -> None:
    write_whole(out / TRIALS, json.dumps({"trials": [standing.record() for standing in standings]}, indent=1))


def _latest(folder: Path, metric: str) -> float | None:
    """The last value of a metric in a run folder's metrics."""
    if not (folder / METRICS).exists():
        return None
    return next((record[metric] for record in reversed(read_metrics(folder)) if metric in record), None)
