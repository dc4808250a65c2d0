"""Sweeps on a real Ray Tune: killed, resumed, with a trial's process killed, and with a population."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from ray.tune.schedulers import TrialScheduler
from safetensors.torch import load_file

from envs.errors import InputError
from trainers.config import RunConfig
from trainers.sweep import SHARE, GroupedAsha, _within, is_finished, read_trials, run_sweep, used_share
from trainers.sweep_config import Asha, Draw, load_sweep, make_trials
from trainers.train import train

SMALL = {
    "training.num_envs": 4,
    "training.env_steps": 240,
    "training.evaluation_interval": 5,
    "training.evaluation_episodes": 4,
    "training.checkpoint_interval": 5,
}
GRID: dict[str, Any] = {
    "name": "grid",
    "about": "a test",
    "trial_minutes": 1,
    "algorithms": ["vdn", "qmix"],
    "scenarios": ["games/two-step"],
    "seeds": 2,
    "set": SMALL,
    "max_failures": 1,
}


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def start(file: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainers.cli", "sweep", str(file), "--out", str(out), "--json", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)


def records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def iterations(folder: Path) -> list[int]:
    return [record["iteration"] for record in records(folder)]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A sweep whose driver was killed, then, resumed, lost the process of a trial. Its folder, and the second's events."""
    folder = tmp_path_factory.mktemp("sweep")
    long = {**GRID, "set": {**SMALL, "training.env_steps": 800}}  # so that a trial still runs when it is to be killed
    file, out = write(folder / "grid.yaml", long), folder / "out"
    driver = start(file, out)
    trials = make_trials(load_sweep(file))
    try:
        wait_for(lambda: any(is_finished(out / trial.name) for trial in trials))
        wait_for(lambda: any(5 < len(iterations(out / trial.name)) < 70 for trial in trials))
        processes = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.kill()
        driver.communicate()
    psutil.wait_procs(processes, timeout=60)
    assert not [process for process in processes if process.is_running() and "ImplicitFunc" in " ".join(process.cmdline())]
    finished_before = [trial.name for trial in trials if is_finished(out / trial.name)]
    assert len(finished_before) < len(trials)
    again = start(file, out, "--resume")
    last = next(out / trial.name for trial in reversed(trials) if trial.name not in finished_before)
    try:
        wait_for(lambda: len(iterations(last)) > 2)
        for process in psutil.Process(again.pid).children(recursive=True):  # one alone may have just ended
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ImplicitFunc" in " ".join(process.cmdline()):
                    process.kill()
        output, errors = again.communicate(timeout=300)
    finally:
        again.kill()
    assert again.returncode == 0, errors
    events = [json.loads(line) for line in output.splitlines()]
    assert not {event["trial"] for event in events if event.get("event") == "started"} & set(finished_before)
    return out, events


def test_every_trial_is_there_once_and_whole(resumed: tuple[Path, list[dict[str, Any]]]) -> None:
    out, events = resumed
    expected = [f"{algorithm}-two-step-seed{seed}" for seed in (1, 2) for algorithm in ("vdn", "qmix")]
    assert [trial["name"] for trial in read_trials(out)] == expected
    assert {trial["state"] for trial in read_trials(out)} == {"finished"}
    assert {path.name for path in out.iterdir()} == {*expected, "sweep.yaml", "trials.json"}
    for name in expected:
        assert iterations(out / name) == list(range(1, 101))  # 800 steps, 8 in each iteration
        assert is_finished(out / name)
    assert events[-1]["states"] == {"finished": 4}
    places = [event for event in events if "place" in event]
    assert [place["metric"] for place in places] == sorted((place["metric"] for place in places), reverse=True)


def test_a_trial_whose_process_died_was_retried(resumed: tuple[Path, list[dict[str, Any]]]) -> None:
    assert "retried" in [event.get("event") for event in resumed[1]]


def test_a_trial_is_the_same_as_a_training_of_its_own(resumed: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    for name in ("vdn-two-step-seed1", "qmix-two-step-seed2"):
        trial = resumed[0] / name
        alone = train(RunConfig.load(trial / "config.yaml"), tmp_path / name, lambda record: None)
        one, other = (load_file(run / "bundle" / "policy.safetensors") for run in (trial, alone))
        assert all((one[key] == other[key]).all() for key in one)
        assert records(trial) == records(alone)


def test_a_finished_sweep_has_nothing_left_to_do(resumed: tuple[Path, list[dict[str, Any]]]) -> None:
    out = resumed[0]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    standings = run_sweep(load_sweep(out / "sweep.yaml"), out, lambda *event: pytest.fail("a trial was started"), resume=True)
    assert [standing.state for standing in standings] == ["finished"] * 4
    assert {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")} == before


def test_another_sweep_does_not_touch_the_folder(resumed: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    out = resumed[0]
    other = load_sweep(write(tmp_path / "other.yaml", {**GRID, "seeds": 3}))
    with pytest.raises(InputError, match="begun with another seeds"):
        run_sweep(other, out, lambda *event: None, resume=True)
    with pytest.raises(InputError, match="exists already"):
        run_sweep(load_sweep(out / "sweep.yaml"), out, lambda *event: None)
    with pytest.raises(InputError, match="no sweep to resume"):
        run_sweep(other, tmp_path, lambda *event: None, resume=True)


@pytest.mark.parametrize(
    ("changes", "track", "says"),
    [
        ({"resources": {"cpus": 4000}}, None, "needs 4000 CPUs"),
        ({"resources": {"gpus": 64}}, None, "needs 64 GPUs"),
        ({}, "papyrus", "expected one of wandb, mlflow"),
        ({}, "wandb", "the package wandb is not installed"),
        ({"scenarios": ["chess/x"]}, None, "unknown problem"),
    ],
)
def test_what_cannot_run_starts_nothing(changes: dict[str, Any], track: str | None, says: str, tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path / "x.yaml", {**GRID, **changes}))
    with pytest.raises(InputError, match=says):
        run_sweep(sweep, tmp_path / "out", lambda *event: None, track=track)
    assert not (tmp_path / "out").exists()


def test_a_population_copies_its_best(tmp_path: Path) -> None:
    """At a rate of 1e-12 nothing is learned: the member that has it must take over weights and rate of the other."""
    changes = {
        "algorithms": ["qmix"],
        "seeds": [1],
        "set": {**SMALL, "training.env_steps": 320},
        "random": {"algorithm.lr": {"choice": [1e-12, 1e-3]}},
        "draws": 2,
        "draw_seed": 1,
        "scheduler": {"kind": "pbt", "interval": 20, "quantile": 0.5, "resample": 0.0},
    }
    sweep = load_sweep(write(tmp_path / "x.yaml", {**GRID, **changes}))
    assert {trial.overrides["algorithm.lr"] for trial in make_trials(sweep)} == {1e-12, 1e-3}
    standings = run_sweep(sweep, tmp_path / "out", lambda *event: None)
    assert [standing.state for standing in standings] == ["finished"] * 2
    for standing in standings:
        folder = tmp_path / "out" / standing.trial.name
        config = RunConfig.load(folder / "config.yaml")
        assert config.training.checkpoint_interval == 20
        assert standing.trial.overrides["algorithm.lr"] == config.algorithm.lr
        assert iterations(folder) == list(range(1, 41))
        assert json.loads((folder / "bundle" / "manifest.json").read_text())["metrics"]["evaluation"]["return"] > 6
    assert read_trials(tmp_path / "out")[0]["overrides"] == standings[0].trial.overrides


def test_asha_halves_each_group_by_itself() -> None:
    """Rungs at 25 % and 50 %: a trial below the median of those that came before it stops; other groups do not count."""
    groups = {"a1": "a", "a2": "a", "a3": "a", "b1": "b"}
    halving = GroupedAsha(groups, "metric", "max", Asha(kind="asha", grace=0.25, reduction=2.0))

    class Named(SimpleNamespace):
        def __str__(self) -> str:
            return self.name

    def reached(name: str, share: float, metric: float) -> str:
        return halving.on_trial_result(None, Named(name=name), {SHARE: share, "metric": metric})

    for name in groups:
        halving.on_trial_add(None, Named(name=name))
    go, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    assert reached("a1", 10, -5.0) == go  # no rung yet
    assert [reached("a1", 26, 3.0), reached("a2", 25, 1.0), reached("a3", 30, 5.0)] == [go, stop, go]
    assert reached("b1", 25, -100.0) == go
    assert [reached("a1", 50, 3.0), reached("a3", 51, 2.9)] == [go, stop]
    assert reached("a1", 100, 0.0) == go  # who has used the budget comes to a proper end


def test_the_nearer_end_of_the_budget_counts() -> None:
    training = RunConfig.model_fields["training"].annotation(env_steps=1000, episodes=20)  # type: ignore[union-attr, misc]
    assert used_share(training, {"env_steps": 100, "episodes": 5}) == 25.0
    assert used_share(training, {"env_steps": 900, "episodes": 5}) == 90.0
    assert used_share(training, {"env_steps": 1100, "episodes": 5}) == 100.0


def test_a_population_keeps_to_the_ranges_of_its_sweep() -> None:
    draws = {"a": Draw(uniform=(0.0, 1.0)), "b": Draw(integers=(1, 3)), "c": Draw(choice=["x", "y"])}
    config = {"trial": {"settings": {"a": 1.2, "b": 2.4, "c": "y"}}}
    assert _within(config, draws)["trial"]["settings"] == {"a": 1.0, "b": 2, "c": "y"}
