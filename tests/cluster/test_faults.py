"""Nodes of a real cluster die under a training, a sweep and a server: what goes on, what is lost, what is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.cluster.nodes import Nodes, nodes, records, wait_for

SMALL = [
    *("--scenario", "games/two-step", "--num-envs", "4", "--set", "algorithm.batch_episodes=4"),
    *("--set", "algorithm.learning_starts=4", "--set", "algorithm.updates=2", "--set", "algorithm.replay_capacity=16"),
    *("--set", "training.evaluation_interval=1000", "--set", "training.evaluation_episodes=4"),
    *("--set", "training.checkpoint_interval=5", "--set", "training.timeout_s=20", "--json"),
]
ENDLESS = ["--env-steps", "100000000"]
ROUND = 2 * 4 * 2
"""Environment steps of an iteration with two runners: four episodes of two steps each."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(2) as running:
        yield running


def latest(run: Path) -> dict[str, float]:
    return records(run)[-1]


def runners(cluster: Nodes) -> set[psutil.Process]:
    """The processes of remote runners."""
    return {process for process in psutil.process_iter(["name"]) if "TeamEnvRunner" in process.name() and cluster.has(process)}


def test_a_training_outlives_its_runners_nodes_and_says_when_none_is_left(cluster: Nodes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with cluster.start("train", "vdn", *SMALL, *ENDLESS, "--runners", "2", "--run", str(run)) as process:
        wait_for(lambda: len(records(run)) > 10)
        cluster.kill(min(cluster.cluster.worker_nodes, key=lambda node: node.unique_id))
        print(f"runner's node: an iteration without it after {wait_for(lambda: latest(run)['runners_mean'] == 1, 30):.1f} s")
        there = len(records(run))
        wait_for(lambda: len(records(run)) > there + 20, 30)  # it does not wait for the lost one, in no iteration
        steps = [record["env_steps"] for record in records(run)]
        assert {after - before for before, after in pairwise(steps)} == {ROUND, ROUND // 2}
        cluster.add()
        print(f"new node: its runner samples after {wait_for(lambda: latest(run)['runners_mean'] == 2, 60):.1f} s")
        for node in list(cluster.cluster.worker_nodes):
            cluster.kill(node)
        _, said = process.finished(1)
    (line,) = [line for line in said.splitlines() if line.startswith("edgeflock:")]
    assert "no runner has delivered episodes for 20 s" in line
    assert f"edgeflock train vdn --run {run} --resume" in line
    assert "Traceback" not in said
    reached = latest(run)["env_steps"]
    for _ in range(2):
        cluster.add()
    with cluster.start("train", "vdn", "--run", str(run), "--resume", "--json"):
        wait_for(lambda: len(records(run)) > 0 and latest(run)["env_steps"] > reached)
    steps = [record["env_steps"] for record in records(run)]
    assert steps == sorted(set(steps))


def test_asynchronous_runners_are_replaced_when_their_node_dies_or_when_they_hang(cluster: Nodes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asynchronous = ["--set", "training.asynchronous=true", "--set", "training.timeout_s=5"]
    others = runners(cluster)  # of trainings that have just been killed
    with cluster.start("train", "vdn", *SMALL, *ENDLESS, *asynchronous, "--runners", "2", "--run", str(run)) as process:
        wait_for(lambda: len(records(run)) > 10 and latest(run)["runners_mean"] == 2)
        hanging = min(runners(cluster) - others, key=lambda runner: runner.pid)
        hanging.send_signal(signal.SIGSTOP)
        print(f"runner hangs: an iteration without it after {wait_for(lambda: latest(run)['runners_mean'] == 1, 30):.1f} s")
        print(f"and another in its place after {wait_for(lambda: latest(run)['runners_mean'] == 2, 60):.1f} s")
        assert not hanging.is_running() or hanging.status() == psutil.STATUS_ZOMBIE
        cluster.kill(min(cluster.cluster.worker_nodes, key=lambda node: node.unique_id))
        wait_for(lambda: latest(run)["runners_mean"] == 1, 30)
        there = len(records(run))
        wait_for(lambda: len(records(run)) > there + 10, 30)
        cluster.add()
        wait_for(lambda: latest(run)["runners_mean"] == 2, 60)
        process.process.send_signal(signal.SIGINT)
        process.finished(130)


def test_a_learner_that_dies_ends_the_training_and_its_checkpoint_goes_on(cluster: Nodes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with cluster.start("train", "vdn", *SMALL, *ENDLESS, "--set", "training.learners=1", "--run", str(run)) as process:
        wait_for(lambda: len(records(run)) > 10)
        started = time.monotonic()
        for node in list(cluster.cluster.worker_nodes):
            cluster.kill(node)
        _, said = process.finished(1)
    took = time.monotonic() - started
    for _ in range(2):
        cluster.add()
    print(f"learner's node: the training has ended after {took:.1f} s")
    assert took < 40
    (line,) = [line for line in said.splitlines() if line.startswith("edgeflock:")]
    assert "a learner is lost" in line or "learners did not answer" in line
    last = latest(run)["iteration"]
    assert f"to go on from iteration {last - last % 5}: edgeflock train vdn --run {run} --resume" in line
    with cluster.start("train", "vdn", "--run", str(run), "--resume", "--json"):
        wait_for(lambda: latest(run)["iteration"] > last)


def test_a_node_that_dies_before_its_runner_has_started_ends_the_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    soon = ["--set", "training.start_timeout_s=20"]
    command = ["train", "vdn", *SMALL, *ENDLESS, *soon, "--runners", "1", "--run", str(run)]
    with nodes(1) as cluster, cluster.start(*command) as process:
        wait_for((run / "config.yaml").exists)  # there was room for the runner, and it is being started
        cluster.kill(next(iter(cluster.cluster.worker_nodes)))
        started = time.monotonic()
        _, said = process.finished(1)
    print(f"node of a runner that was starting: the training has ended after {time.monotonic() - started:.1f} s")
    (line,) = [line for line in said.splitlines() if line.startswith("edgeflock:")]
    assert "runners and learners have not started within 20 s" in line
    assert "Traceback" not in said
    assert not run.exists()


def test_a_head_that_dies_takes_the_driver_along_which_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with nodes(1) as cluster:
        port = int(cluster.address.rpartition(":")[2])
        with cluster.start("train", "vdn", *SMALL, *ENDLESS, "--runners", "1", "--run", str(run)) as process:
            wait_for(lambda: len(records(run)) > 10)
            killed = time.monotonic()
            cluster.kill(cluster.cluster.head_node)
            _, said = process.finished(1)
            print(f"head: the driver has ended after {time.monotonic() - killed:.1f} s")
        reached = latest(run)["iteration"]
        assert f"to go on from its last checkpoint: edgeflock train vdn --run {run} --resume" in said
        cluster.restart(port)
        cluster.add()
        with cluster.start("train", "vdn", "--run", str(run), "--resume", "--json"):
            wait_for(lambda: any(record["iteration"] == reached + 1 for record in records(run)))
    iterations = [record["iteration"] for record in records(run)]
    assert iterations == list(range(1, len(iterations) + 1))  # what was after the checkpoint has been trained again


def test_a_sweep_goes_on_when_the_node_of_a_trial_dies(cluster: Nodes, tmp_path: Path) -> None:
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(
        "name: faults\nabout: a node dies\ntrial_minutes: 1\nalgorithms: [vdn]\nscenarios: [games/two-step]\nseeds: 2\n"
        "set: {training.env_steps: 16000, training.num_envs: 4, training.checkpoint_interval: 5, algorithm.updates: 1,\n"
        "  training.evaluation_interval: 1000, algorithm.batch_episodes: 4, algorithm.learning_starts: 4}\n"
    )
    with cluster.start("sweep", str(file), "--out", str(out), "--json") as process:
        runs = [out / f"vdn-two-step-seed{seed}" for seed in (1, 2)]
        wait_for(lambda: all(len(records(run)) > 12 for run in runs))
        cluster.kill(min(cluster.cluster.worker_nodes, key=lambda node: node.unique_id))
        cluster.add()
        printed, _ = process.finished(0)
    events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert sum(event.get("event") == "retried" for event in events) == 1
    assert events[-1]["states"] == {"finished": 2}
    for run in runs:
        iterations = [record["iteration"] for record in records(run)]
        assert iterations == list(range(1, len(iterations) + 1))


def test_last_words_are_said_only_by_those_who_die(tmp_path: Path) -> None:
    program = "import os, sys\nfrom trainers.last_words import last_words\nwith last_words('farewell'):\n    "
    for end, said in {"pass": "", "sys.exit(3)": "", "os.kill(os.getpid(), 9)": "farewell\n"}.items():
        done = subprocess.run([sys.executable, "-c", program + end], capture_output=True, text=True, env=os.environ)
        assert done.stderr == said
