"""Trains one run: the loop, its run folder, its checkpoints."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from ray.exceptions import RayError
from torch.utils.tensorboard import SummaryWriter

from envs.errors import InputError
from envs.registry import make_simulator
from envs.team import TeamSpec, episode_seeds
from trainers.algorithms import find_algorithm
from trainers.algorithms.team_algorithm import (
    EVALUATION_SEED,
    FIGURES,
    TeamAlgorithm,
    TeamAlgorithmConfig,
    initialise_ray,
)
from trainers.comparison import compare
from trainers.config import RunConfig, TrainingConfig
from trainers.evaluate import evaluate
from trainers.figures import read_metrics
from trainers.learned_policy import build_module, export_policy, load_policy
from trainers.remote import Lost, Needs, Stuck, first_line, require_resources, within
from trainers.storage import CHECKPOINTS, CONFIG, Mirror

METRICS, BUNDLE = "metrics.jsonl", "bundle"
KEPT_CHECKPOINTS = 2


class Reporter(Protocol):
    """Hears of every iteration's record (the line of `metrics.jsonl`)."""

    def __call__(self, record: dict[str, Any]) -> None: ...


class Interrupted(Exception):
    """The user stopped the training; everything up to now is in the checkpoint."""


def train(config: RunConfig, folder: Path, report: Reporter, resume: bool = False, mirror: Mirror | None = None) -> Path:
    """Trains until the budget of environment steps is used, then evaluates and exports the policy.

    Args:
        folder: The run folder; made here, or continued from its last checkpoint with `resume`.
        mirror: Keeps a copy of the run folder in storage.

    Raises:
        InputError: The scenario cannot be simulated or does not have what network or algorithm ask for, `folder` is taken
            (or, to resume, has no checkpoint), or the storage is unusable. Nothing has been created or changed then.
        Failure: The storage could not be written at the end, or (`Lost`) no runner or not all learners are left: what was
            reached is in the last checkpoint.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written first.
    """
    simulator = make_simulator(config.scenario, 1)
    spec = simulator.spec
    simulator.close()
    config.algorithm.check(simulator)
    build_module(config.name, spec, config.network, config.algorithm)  # complains where network and problem do not fit together
    checkpoint = latest_checkpoint(folder) if resume else None
    if not resume and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: exists already: choose another --run, or --resume it")
    require_gpus(config.training)
    if mirror is not None:
        mirror.begin(resume)
    initialise_ray(config.training.runners + config.training.learners)
    require_resources(needs(config.training), config.training.timeout_s)
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / CONFIG)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    try:
        algorithm = build_algorithm(config, spec)
    except (Lost, RayError) as error:
        if checkpoint is None:  # nothing is in it yet
            shutil.rmtree(folder)
        raise lost(config, folder, error) from None
    try:
        if checkpoint is not None:
            algorithm.load_checkpoint(str(checkpoint))
            forget_after(folder, algorithm.env_steps)
        with interruptible() as interrupted:
            try:
                loop(config, folder, algorithm, report, interrupted, mirror)
            except (Lost, RayError) as error:
                save_what_is_left(folder, algorithm, mirror)
                raise lost(config, folder, error) from None
        finish(config, folder, spec, algorithm)
    finally:
        algorithm.stop()
        shutil.rmtree(algorithm.logdir, ignore_errors=True)  # RLlib makes an empty one of its own outside the run folder
    if mirror is not None:
        mirror.finish()
    return folder


def require_gpus(training: TrainingConfig) -> None:
    """Raises InputError where this process itself is to use a GPU and has none (Ray places the other processes)."""
    here = {
        "training.device": training.device != "cpu" and not training.runners,
        "training.learner_gpus": training.learner_gpus > 0 and not training.learners,
    }
    for key, wanted in here.items():
        if wanted and not torch.cuda.is_available():
            remote = "runners and training.runner_gpus" if key == "training.device" else "learners"
            raise InputError(f"{key}: this process sees no GPU: use the CPU, or remote processes with GPUs (training.{remote})")


def needs(training: TrainingConfig) -> list[Needs]:
    """The remote processes of a training."""
    return [
        Needs("runners", training.runners, training.runner_gpus),
        Needs("learners", training.learners, training.learner_gpus),
    ]


def build_algorithm(config: RunConfig, spec: TeamSpec) -> TeamAlgorithm:
    """The RLlib algorithm that the configuration describes, with its remote processes.

    Raises:
        Stuck: They have not started within `training.start_timeout_s`.
    """
    rllib, training = configure(config, spec), config.training
    if not training.runners + training.learners:
        return rllib.build_algo()
    return within(training.start_timeout_s, rllib.build_algo, "runners and learners have not started")


def configure(config: RunConfig, spec: TeamSpec) -> TeamAlgorithmConfig:
    """RLlib's configuration of it."""
    training = config.training
    rllib = (
        find_algorithm(config.name)
        .config_class()()
        .team(config.scenario, spec, config.network, config.algorithm, training.env_steps, training.device)
        .remote(training.asynchronous, training.in_flight, training.timeout_s)
        .env_runners(
            num_env_runners=training.runners,
            num_envs_per_env_runner=training.num_envs,
            num_gpus_per_env_runner=training.runner_gpus,
        )
        .learners(num_learners=training.learners, num_gpus_per_learner=training.learner_gpus)
        .evaluation(evaluation_interval=training.evaluation_interval)
        .debugging(seed=config.seed, log_level="ERROR")
    )
    rllib.evaluation_episodes = training.evaluation_episodes
    return rllib


def loop(
    config: RunConfig,
    folder: Path,
    algorithm: TeamAlgorithm,
    report: Reporter,
    interrupted: list[bool],
    mirror: Mirror | None = None,
) -> None:
    """Iterates until the budget is used; writes metrics, events and checkpoints."""
    training = config.training
    started, steps_before = time.monotonic(), algorithm.env_steps
    writer = SummaryWriter(str(folder), purge_step=algorithm.env_steps or None)
    with writer, (folder / METRICS).open("a") as metrics:
        while not used_up(training, algorithm):
            record = {**flatten(algorithm.train(), algorithm.env_steps), "episodes": algorithm.episodes}
            elapsed = time.monotonic() - started
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()
            for name, value in record.items():
                writer.add_scalar(name, value, algorithm.env_steps)
            done = used_up(training, algorithm)
            if done or interrupted or algorithm.training_iteration % training.checkpoint_interval == 0:
                save_checkpoint(folder, algorithm)
                if mirror is not None:
                    mirror.update()
            report({**record, "env_steps_per_s": (algorithm.env_steps - steps_before) / elapsed})
            if interrupted and not done:
                raise Interrupted


def used_up(training: TrainingConfig, algorithm: TeamAlgorithm) -> bool:
    """Whether the budget of environment steps or of episodes is."""
    return algorithm.env_steps >= training.env_steps or algorithm.episodes >= (training.episodes or math.inf)


def flatten(result: dict[str, Any], env_steps: int) -> dict[str, float]:
    """One flat record of an iteration: sampled episodes (`*_mean`), the learner's figures, and the evaluation's, if any."""
    record: dict[str, float] = {"iteration": result["training_iteration"], "env_steps": env_steps}
    for name, value in result.get("env_runners", {}).items():  # empty where every runner died
        if name.endswith("_mean"):
            record["return_mean" if name == "episode_return_mean" else name] = value
    for name, value in result.get("learners", {}).get("default_policy", {}).get(FIGURES, {}).items():
        record[f"learner/{name}"] = value
    for name, value in result.get("evaluation", {}).items():
        record["evaluation_return_mean" if name == "return" else f"evaluation/{name}"] = value
    return {name: float(value) if name not in ("iteration", "env_steps") else int(value) for name, value in record.items()}


def finish(config: RunConfig, folder: Path, spec: TeamSpec, algorithm: TeamAlgorithm) -> None:
    """Exports the bundle, and evaluates what was exported on the fixed seeds."""
    module = algorithm.env_runner_group.local_env_runner.module
    export_policy(config, spec, module, folder / BUNDLE, {"env_steps": algorithm.env_steps})
    seeds = episode_seeds(EVALUATION_SEED, 0, config.training.evaluation_episodes)
    results = evaluate(load_policy(folder), config.scenario, seeds)
    compare({config.name: [results]}).write(folder)
    figures = {name: results.pooled(name) for name in results.metrics}
    export_policy(config, spec, module, folder / BUNDLE, {"env_steps": algorithm.env_steps, "evaluation": figures})


# -- checkpoints ---------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, algorithm: TeamAlgorithm) -> None:
    """Writes a checkpoint that is whole or absent, and removes old ones."""
    checkpoints = folder / CHECKPOINTS
    checkpoints.mkdir(exist_ok=True)
    for leftover in checkpoints.glob("*.tmp"):
        shutil.rmtree(leftover)
    name = f"{algorithm.training_iteration:08d}"
    temporary = checkpoints / f"{name}.tmp"
    temporary.mkdir()
    algorithm.save_checkpoint(str(temporary.absolute()))
    os.replace(temporary, checkpoints / name)
    for old in sorted(p for p in checkpoints.iterdir() if p.suffix != ".tmp")[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def save_what_is_left(folder: Path, algorithm: TeamAlgorithm, mirror: Mirror | None) -> None:
    """A checkpoint of what there is when an iteration has failed, unless the learner is lost or there is one already."""
    if not (folder / CHECKPOINTS / f"{algorithm.training_iteration:08d}").exists():
        with suppress(Lost, RayError):
            save_checkpoint(folder, algorithm)
            if mirror is not None:
                mirror.update()


def lost(config: RunConfig, folder: Path, error: Exception) -> Lost:
    """The error, and what can be done about it."""
    found = whole_checkpoints(folder)
    again = shlex.join(["edgeflock", "train", config.name, "--run", str(folder), "--resume"])
    kept = f"to go on from iteration {int(found[-1].name)}: {again}" if found else "there is no checkpoint yet"
    said = f"{first_line(error)}; {kept}"
    return Stuck(said, error.code) if isinstance(error, Stuck) else Lost(said)


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, the oldest first."""
    return sorted(p for p in (folder / CHECKPOINTS).glob("*") if p.suffix != ".tmp")


def latest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint of a run folder, or an `InputError`."""
    found = whole_checkpoints(folder)
    if not found:
        raise InputError(f"{folder}: no checkpoint to resume from")
    return found[-1].absolute()


def forget_after(folder: Path, env_steps: int) -> None:
    """Drops the metrics of iterations that the checkpoint does not know, so that they are not counted twice."""
    kept = [record for record in read_metrics(folder) if record["env_steps"] <= env_steps]
    temporary = folder / f"{METRICS}.tmp"
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    os.replace(temporary, folder / METRICS)


@contextmanager
def interruptible() -> Iterator[list[bool]]:
    """A list that is no longer empty once SIGINT or SIGTERM has come; a second signal acts as usual.

    Only a main thread hears signals: in another one (a trial of a sweep) the list stays empty.
    """
    came: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    usual: dict[int, Any] = {}
    numbers = (int(signal.SIGINT), int(signal.SIGTERM))

    def note(number: int, frame: FrameType | None) -> None:
        came.append(True)
        signal.signal(number, usual[number])

    for number in numbers:
        usual[number] = signal.signal(number, note)
    try:
        yield came
    finally:
        for number in numbers:
            signal.signal(number, usual[number])
