"""A Ray cluster of several nodes on this machine, whose nodes can die as machines do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from ray._private.node import Node
from ray.cluster_utils import Cluster

QUICK_HEALTH = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
"""The head takes notice of a dead node within some two seconds; Ray's own settings need some fifteen."""


class Driver:
    """A command on a cluster; what it prints goes to files, so that it never waits for a reader."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._out, self._err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 - as long as this lives
        command = [sys.executable, "-m", "trainers.cli", *arguments]
        self.process = subprocess.Popen(command, stdout=self._out, stderr=self._err, text=True, env=environment)

    def finished(self, code: int) -> tuple[str, str]:
        """What it wrote to stdout and stderr until it ended with that code."""
        self.process.wait(timeout=200)
        time.sleep(0.2)  # what its death makes others say
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read())
        assert self.process.returncode == code, f"{self.process.returncode}: {texts[1]}"
        return texts[0], texts[1]

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Nodes:
    """A head without cores, which runs the drivers, and worker nodes."""

    def __init__(self, health: dict[str, int], **head: Any) -> None:
        self._health, self._head = health, head
        self.cluster = Cluster()
        self.start_head()

    def start_head(self, port: int | None = None) -> None:
        """The first head, or another one at the same port as before."""
        system = {"worker_niceness": 0, **self._health}
        given = {"num_cpus": 0, "include_dashboard": False, "_system_config": system, **self._head}
        if port is not None:
            given["gcs_server_port"] = port
        self.cluster.add_node(**given)
        self.address: str = self.cluster.address

    def add(self, **resources: Any) -> Node:
        """Another worker node; one core unless told otherwise."""
        return self.cluster.add_node(**resources)

    def kill(self, node: Node) -> None:
        """All processes of a node, at once and with SIGKILL, as when a machine loses its power."""
        workers = [process for process in psutil.process_iter() if _belongs(process, node)]
        self.cluster.remove_node(node, allow_graceful=False)
        for process in workers:
            with suppress(psutil.Error):
                process.kill()

    def restart(self, port: int) -> None:
        """A new head at the address of the one that died; what belonged to that one is gone."""
        for node in list(self.cluster.worker_nodes):
            self.kill(node)
        self.start_head(port)

    def has(self, process: psutil.Process) -> bool:
        """Whether a process belongs to one of the nodes."""
        return any(_belongs(parent, node) for parent in process.parents() for node in self.cluster.list_all_nodes())

    @property
    def environment(self) -> dict[str, str]:
        """Of a driver that is to join this cluster, as Ray sets it for a job."""
        return {**os.environ, "RAY_ADDRESS": self.address, "OMP_NUM_THREADS": "1"}

    def start(self, *arguments: str) -> Driver:
        """`edgeflock …` on this cluster."""
        return Driver(list(arguments), self.environment)


def _belongs(process: psutil.Process, node: Node) -> bool:
    try:
        return node._raylet_socket_name in " ".join(process.cmdline())
    except psutil.Error:  # gone meanwhile
        return False


@contextmanager
def nodes(workers: int, health: dict[str, int] = QUICK_HEALTH, **head: Any) -> Iterator[Nodes]:
    """A head and that many worker nodes of one core; all of it ends with the context."""
    with tempfile.TemporaryDirectory(prefix="ef", dir="/tmp", ignore_cleanup_errors=True) as folder:  # sockets: short paths
        before = os.environ.get("RAY_TMPDIR")
        os.environ["RAY_TMPDIR"] = folder  # or every `ray.init` on this machine would find this cluster and join it
        try:
            running = Nodes(health, **head)
            try:
                for _ in range(workers):
                    running.add()
                yield running
            finally:
                running.cluster.shutdown()
        finally:
            os.environ.pop("RAY_TMPDIR")
            if before is not None:
                os.environ["RAY_TMPDIR"] = before


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> float:
    """Seconds until the condition holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "what was waited for did not happen"
        time.sleep(0.05)
    return time.monotonic() - started


def records(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl` so far."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
