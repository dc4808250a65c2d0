"""`edgeflock serve` and `edgeflock serve-update` as users run them, and replicas that come with the load."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from serve.policies import bundle_version
from tests.benchmarks.load import closed_loop
from tests.cluster.nodes import wait_for
from tests.ports import free_port
from tests.serve.serving import make_bundle, replicas

EDGEFLOCK = [sys.executable, "-m", "trainers.cli"]


@contextmanager
def serving(bundle: Path, folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process of the server, its address, and what it printed until it was ready."""
    port = str(free_port())
    command = [*EDGEFLOCK, "serve", f"policy={bundle}", "--port", port, "--key-file", str(folder / "key"), *options]
    with tempfile.TemporaryDirectory(prefix="ef", dir="/tmp", ignore_cleanup_errors=True) as sockets:  # short paths
        environment = {**os.environ, "RAY_TMPDIR": sockets, "XDG_STATE_HOME": str(folder)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        try:
            yield process, f"http://127.0.0.1:{port}", [process.stdout.readline() for _ in range(2)]
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


class Listening(NamedTuple):
    """A port on which one of the server's processes listens."""

    process: str
    host: str


def listening(server: int) -> list[Listening]:
    """All of them; a replica has one for requests of other deployments, which Ray opens on all interfaces."""
    found = []
    for process in [psutil.Process(server), *psutil.Process(server).children(recursive=True)]:
        with suppress(psutil.Error):
            found += [Listening(process.name(), at.laddr.ip) for at in process.net_connections() if at.status == "LISTEN"]
    return found


def own_address(at: Listening) -> bool:
    """Whether only this machine reaches it."""
    return at.host.removeprefix("::ffff:").startswith("127.")


@pytest.mark.parametrize("options", [["--max-replicas", "2", "--set", "scaling.target_ongoing=1"]])
def test_the_server_scales_by_load_and_is_updated(options: list[str], bundles: dict[str, Path], tmp_path: Path) -> None:
    quick = ["--set", "scaling.upscale_s=0.5"]
    with serving(bundles["dialogue"], tmp_path, *options, *quick) as (process, url, printed):
        assert printed[0].startswith(f"serving policy at {url} (page /, API /docs, metrics /metrics)")
        assert len(replicas(process.pid)) == 1
        ports = [one for one in listening(process.pid) if "ServeReplica" not in one.process]
        assert len(ports) > 5
        assert all(own_address(one) for one in ports)
        example = httpx.get(f"{url}/v1/policies/policy").json()["example"]

        async def load_until_two() -> float:
            traffic = asyncio.create_task(
                closed_loop(f"{url}/v1/policies/policy/decide", json.dumps(example).encode(), 8, 60.0)
            )
            try:
                return await asyncio.to_thread(wait_for, lambda: len(replicas(process.pid)) == 2, 60.0)
            finally:
                traffic.cancel()

        print(f"two replicas after {asyncio.run(load_until_two()):.1f} s of load")

        update = printed[1].removeprefix("to change what is served: edgeflock ").split()
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
        for seed, command in ((5, update[:-1]), (6, ["serve-update"])):  # by the address that was printed, and without any
            other = make_bundle(tmp_path / str(seed), "mappo", "dialogue/d8", [], seed)
            arguments = [*EDGEFLOCK, *command, f"policy={other}"]
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment)
            assert (done.returncode, done.stdout) == (0, "serving policy\n"), done.stderr
            assert httpx.get(f"{url}/v1/policies/policy").json()["version"] == bundle_version(other)
        nobody = [*EDGEFLOCK, "serve-update", "--address", "127.0.0.1:1", str(other)]
        refused = subprocess.run(nobody, capture_output=True, text=True, timeout=60)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert "expected HOST:PORT of a Ray" in refused.stderr
    assert process.returncode == 0
