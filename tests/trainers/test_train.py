"""Run folders, checkpoints, interruption and resumption, on the real command line in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from trainers.cli import main
from trainers.config import RunConfig

SMALL = [
    *("--scenario", "vehicular/v50-e6", "--num-envs", "4", "--set", "scenario.num_vehicles=12"),
    *("--set", "algorithm.batch_episodes=4", "--set", "algorithm.learning_starts=4", "--set", "algorithm.updates=2"),
    *("--set", "algorithm.lr_end=1e-5"),
    *("--set", "algorithm.replay_capacity=16", "--set", "training.checkpoint_interval=2"),
    *("--set", "training.evaluation_interval=3", "--set", "training.evaluation_episodes=4", "--json"),
]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainers.cli", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return out


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)


def records(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_kill_and_resume_equals_never_having_stopped(tmp_path: Path) -> None:
    algorithm = "idmac"  # has all that QMIX has, and more
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    budget = ["--env-steps", str(4 * 60 * 8)]
    finished(start(algorithm, *SMALL, *budget, "--run", str(whole)))
    process = start(algorithm, *SMALL, *budget, "--run", str(broken))
    wait_for(lambda: len(records(broken)) >= 5)
    process.kill()
    process.wait()
    assert not (broken / "bundle").exists()
    finished(start(algorithm, "--run", str(broken), "--resume", "--json"))
    assert records(whole) == records(broken)
    one, other = (load_file(run / "bundle" / "policy.safetensors") for run in (whole, broken))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_interrupt_saves_a_checkpoint_and_says_how_to_resume(tmp_path: Path) -> None:
    process = start("vdn", *SMALL, "--env-steps", "1000000", "--run", str(tmp_path / "run"))
    wait_for(lambda: len(records(tmp_path / "run")) >= 1)
    process.send_signal(signal.SIGINT)
    last = json.loads(finished(process, 130).splitlines()[-1])
    assert last["resume"] == f"edgeflock train vdn --run {tmp_path / 'run'} --resume"
    iteration = records(tmp_path / "run")[-1]["iteration"]
    assert (tmp_path / "run" / "checkpoints" / f"{iteration:08d}").is_dir()


def test_training_survives_the_death_of_a_remote_runner(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("vdn", *SMALL, "--env-steps", str(2 * 4 * 60 * 12), "--runners", "2", "--run", str(run))
    wait_for(lambda: len(records(run)) >= 2)
    runners = [p for p in psutil.Process(process.pid).children(recursive=True) if "TeamEnvRunner" in " ".join(p.cmdline())]
    assert runners
    assert {p.nice() for p in runners} == {psutil.Process(process.pid).nice()}  # or a busy machine starves them
    before = len(records(run))
    os.kill(runners[0].pid, signal.SIGKILL)
    finished(process)
    after = records(run)
    assert len(after) > before
    assert after[-1]["env_steps"] >= 2 * 4 * 60 * 12
    # Both runners sampled again at the end: an iteration adds two runners' episodes.
    assert after[-1]["env_steps"] - after[-2]["env_steps"] == 2 * 4 * 60


def test_run_folder_is_complete_and_reloadable(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finished(start("qplex", *SMALL, "--env-steps", "480", "--run", str(run)))
    names = {path.name.split(".")[0] for path in run.iterdir()}
    assert names == {"config", "metrics", "events", "checkpoints", "bundle", "evaluation", "evaluation_details"}
    config = RunConfig.load(run / "config.yaml")
    assert config.name == "qplex"
    assert config.scenario.model_dump()["num_vehicles"] == 12
    again = tmp_path / "again.yaml"
    config.save(again)
    assert RunConfig.load(again) == config


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "qmix", "--scenario", "vehicular/v51-e6"], "unknown scenario 'vehicular/v51-e6'"),
        (["train", "qmix", "--scenario", "vehicle/v50-e6"], "unknown problem 'vehicle'"),
        (["train", "qmxi", "--scenario", "games/two-step"], "unknown algorithm 'qmxi'"),
        (["train", "qmix"], "give the problem with --scenario"),
        (["train", "qmix", "--scenario", "games/two-step", "--set", "algorithm.lrr=1"], "unknown key 'lrr'"),
        (["train", "qmix", "--scenario", "games/two-step", "--set", "algorithm.lr=fast"], "lr = 'fast'"),
        (["train", "qmix", "--scenario", "games/two-step", "--set", "lr=1"], "expected SECTION.KEY=VALUE"),
        (["train", "qmix", "--scenario", "games/two-step", "--set", "network.hidden=[1"], "not YAML"),
        (["train", "qmix", "--scenario", "vehicular/v50-e6", "--set", "scenario.num_edges=0"], "num_edges = 0"),
        (["train", "qmix", "--scenario", "vehicular/v50-e6", "--traces", "missing.xml"], "missing.xml"),
        (["train", "qmix", "--env", "pettingzoo:no.such_module"], "no.such_module"),
        (["train", "qmix", "--run", "nowhere", "--resume"], "nowhere"),
        (["compare", "--scenario", "games/two-step", "--policies", "rnadom"], "'rnadom' is neither"),
        (["compare", "--scenario", "games/two-step", "--policies", "random,random"], "each label once"),
        (["compare", "--scenario", "games/two-step", "--policies", "q=no/such/*"], "no run matches"),
        (["evaluate", "random", "--scenario", "games/two-step", "--set", "algorithm.lr=1"], "only scenario.*"),
        (["traces", "show", "nothing_here"], "nothing_here"),
        (["train", "qmix", "--scenario", "games/two-step", "--seed", "-1"], "seed"),
    ],
)
def test_bad_input_is_one_line_and_creates_nothing(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["edgeflock", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    complaint = capsys.readouterr().err
    assert says in complaint
    assert len([line for line in complaint.splitlines() if not line.startswith(("Usage", "Try", ""))]) <= 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_problem_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    finished(start("vdn", "--scenario", "games/two-step", "--env-steps", "64", "--run", str(run), "--json"))
    out = tmp_path / "out"
    arguments = ["compare", "--scenario", "games/climb", "--policies", f"vdn={run}", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["edgeflock", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "was made for 'games/two-step'" in capsys.readouterr().err
    assert not out.exists()
    damaged = run / "bundle" / "policy.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    monkeypatch.setattr(sys, "argv", ["edgeflock", "evaluate", str(run), "--scenario", "games/two-step"])
    with pytest.raises(SystemExit):
        main()
    assert "checksum" in capsys.readouterr().err
