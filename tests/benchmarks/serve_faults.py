"""What happens to requests when a replica is killed, when a new version is loaded, and when there are far too many of them.

python -m tests.benchmarks.serve_faults bundles/idmac --other bundles/idmac-2 --proxy haproxy
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.load import FAILED, Outcome, closed_loop, open_loop, several_teams

PORT = 8767


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--other", type=Path, required=True, help="bundle of another version of the same problem")
    parser.add_argument("--proxy", choices=["default", "haproxy"], default="default")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--teams", type=int, default=512, help="in each request of the overload")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="as for edgeflock serve")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    from serve.cli import keep_to_loopback, use_haproxy

    if asked.proxy == "haproxy":
        use_haproxy()
    else:
        keep_to_loopback()
    from serve.cli import make_settings
    from serve.config import PolicySources, Scaling
    from serve.deployment import description, prepare
    from serve.running import server

    sources = PolicySources(policies={"policy": asked.bundle.resolve()})
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(None, Path(folder) / "key", Path(folder) / "metrics", asked.overrides)
        prepare(settings, sources)
        host = "0.0.0.0" if asked.proxy == "haproxy" else "127.0.0.1"
        scaling = Scaling(replicas=asked.replicas, num_cpus=0.5)
        with server(description(sources, settings, scaling, host, PORT), asked.replicas):
            asyncio.run(measure(asked))


async def measure(asked: argparse.Namespace) -> None:
    """Capacity first; everything else is in terms of it."""
    url = f"http://127.0.0.1:{PORT}/v1/policies/policy/decide"
    body = (asked.bundle / "example.json").read_bytes()
    await closed_loop(url, body, 16, 2.0)
    full = await closed_loop(url, body, 16, 5.0)
    print(f"{asked.proxy} proxy, {asked.replicas} replicas\ncapacity, 16 clients: {full}")
    half = await open_loop(url, body, full.rate / 2, 10.0)
    print(f"half of capacity: {half}", flush=True)
    swapped = await disturbed(url, body, full.rate / 2, asked.seconds, lambda: swap(asked.other.resolve()))
    print(f"version swapped: {swapped}; {sum(status != 200 for *_, status in swapped.finished)} failed", flush=True)
    teams = several_teams(body, asked.teams)  # dear requests, so that it is not the generator that has too much to do
    full_teams = await closed_loop(url, teams, 16, 10.0)
    print(f"capacity for {asked.teams} teams a request, 16 clients: {full_teams}", flush=True)
    over = await open_loop(url, teams, full_teams.rate * 4, 20.0)
    print(f"4 x that capacity: {over}; {over.statuses[FAILED]} without an answer", flush=True)
    await asyncio.sleep(5)
    killed = await disturbed(url, body, full.rate / 2, asked.seconds, kill_replica)  # last: it takes a while until all is well
    failures = [sent for sent, _, status in killed.finished if status != 200]
    recovery = f", the last {max(failures) - asked.seconds / 3:.2f} s after the kill" if failures else ""
    print(f"one replica killed: {killed}; {len(failures)} of {len(killed.finished)} not answered{recovery}")


async def disturbed(url: str, body: bytes, rate: float, seconds: float, disturb: Callable[[], Any]) -> Outcome:
    """Traffic with one disturbance after a third of the time."""
    traffic = asyncio.create_task(open_loop(url, body, rate, seconds))
    await asyncio.sleep(seconds / 3)
    await asyncio.to_thread(disturb)
    return await traffic


def kill_replica() -> None:
    """SIGKILL to the process of one replica; ends when another one is ready in its place."""
    from tests.cluster.nodes import wait_for  # which imports Ray, whose environment has to be set before
    from tests.serve.serving import ready_replicas, replicas

    before = ready_replicas()
    replicas()[0].send_signal(signal.SIGKILL)
    noticed = wait_for(lambda: ready_replicas() < before)
    replaced = noticed + wait_for(lambda: ready_replicas() == before)
    print(f"(noticed after {noticed:.1f} s, another one ready after {replaced:.1f} s)")


def swap(bundle: Path) -> None:
    """The other version, as `edgeflock serve-update` deploys it."""
    from serve.running import exchange_policies

    started = time.perf_counter()
    exchange_policies({"policy": bundle})
    print(f"(the swap took {time.perf_counter() - started:.1f} s)")


if __name__ == "__main__":
    main()
