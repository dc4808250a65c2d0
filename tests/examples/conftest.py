"""A real server with two small policies, for all tests of this folder."""

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch

from envs.registry import make_simulator
from tests.examples.running import ENVIRONMENT, ROOT
from tests.ports import free_port
from trainers.config import make_run_config
from trainers.learned_policy import build_module, export_policy

SMALL = ["scenario.num_vehicles=12", "scenario.horizon_slots=6", "network.hidden=32"]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> Path:
    """Folder with the bundles `talking` (vehicular, intents) and `talker` (dialogue), with fresh weights."""
    folder = tmp_path_factory.mktemp("bundles")
    for name, algorithm, scenario, overrides in (
        ("talking", "idmac", "vehicular/v50-e6", SMALL),
        ("talker", "mappo", "dialogue/d8", []),
    ):
        config = make_run_config(algorithm, scenario, overrides=overrides)
        torch.manual_seed(0)
        spec = make_simulator(config.scenario).spec
        export_policy(config, spec, build_module(algorithm, spec, config.network, config.algorithm), folder / name, {})
    return folder


@pytest.fixture(scope="session")
def server(bundles: Path, tmp_path_factory):
    """URL of `edgeflock serve`."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        sys.executable,
        "-m",
        "trainers.cli",
        "serve",
        str(bundles / "talking"),
        str(bundles / "talker"),
        "--port",
        str(port),
    ]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/v2/health/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"the server does not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def example():
    """Runs an example as a user does and returns what it printed."""

    def run(name: str, *arguments: str, fails: bool = False) -> str:
        command = [sys.executable, f"examples/{name}", *arguments]
        result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert (result.returncode != 0) == fails, result.stderr
        return result.stderr if fails else result.stdout

    return run
