"""A Ray cluster as users start it: `ray start` for a head without cores and for a worker, protected by a token."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A cluster: the address of its dashboard, the file with its token, and the home of its user."""

    address: str
    token_file: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of a user elsewhere, who has no token."""
        return _environment(self.home / "elsewhere")

    def edgeflock(self, *arguments: str, cwd: Path, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        """`edgeflock SUBCOMMAND …` with the cluster's address and token."""
        first, *others = arguments
        command = [BIN / "edgeflock", first, "--address", self.address, "--token-file", self.token_file, *others]
        return subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=timeout)


@contextmanager
def started(cpus: int) -> Iterator[Head]:
    """A head and a worker with so many cores."""
    with tempfile.TemporaryDirectory(prefix="ef", dir="/tmp", ignore_cleanup_errors=True) as name, ExitStack() as ending:
        folder = Path(name)
        (folder / "elsewhere").mkdir()
        (folder / ".ray").mkdir()
        token_file = folder / ".ray" / "auth_token"
        token_file.write_text("a-token-of-32-characters-or-more")
        port, dashboard = free_port(), free_port()
        head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
        ending.enter_context(_node(folder, "head", [*head, "--num-cpus=0"]))
        _until_healthy(f"http://127.0.0.1:{dashboard}", folder / "head.log")
        ending.enter_context(_node(folder, "worker", [f"--address=127.0.0.1:{port}", f"--num-cpus={cpus}"]))
        yield Head(f"http://127.0.0.1:{dashboard}", token_file, folder)


@contextmanager
def _node(folder: Path, name: str, options: list[str]) -> Iterator[None]:
    """`ray start` in a process group of its own. Nodes of one machine must not share a folder for the files of jobs."""
    command = [BIN / "ray", "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats", *options]
    ports = [f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0"]
    command += [*ports, f"--temp-dir={folder / name}"]
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, env=_environment(folder), stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)


def _environment(home: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EDGEFLOCK_"))}
    more = {"RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    return {**ours, **more, "HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}


def _until_healthy(address: str, log: Path) -> None:
    ends = time.monotonic() + 120
    while True:
        try:
            if requests.get(f"{address}/api/gcs_healthz", timeout=5).ok:
                return
        except requests.ConnectionError:
            pass
        assert time.monotonic() < ends, log.read_text()
        time.sleep(0.3)
