"""A node dies under a server: the other replica answers, and soon there are as many replicas as before."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import ray
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.schema import ServeDeploySchema

from serve.cli import make_settings
from serve.config import PolicySources, Scaling
from serve.deployment import description, prepare
from serve.running import wait_until_running
from tests.cluster.nodes import Nodes, nodes, wait_for
from tests.ports import free_port
from tests.serve.serving import make_bundle, ready_replicas


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Nodes with room for one replica each."""
    ray.shutdown()  # of tests before, in the same process
    with nodes(2) as running:
        ray.init(running.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield running
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def url(cluster: Nodes, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    bundle = make_bundle(folder, "vdn", "games/two-step", [])
    settings = make_settings(None, folder / "key", folder / "metrics", ["limits.time_s=5"])
    sources = PolicySources(policies={"games": bundle})
    prepare(settings, sources)
    whole = ServeDeploySchema.model_validate(
        description(sources, settings, Scaling(replicas=2, num_cpus=0.6), "127.0.0.1", port)
    )
    client = serve_start(http_options=whole.http_options.model_dump(), proxy_location=whole.proxy_location)
    client.deploy_apps(whole)
    wait_until_running(client)
    return f"http://127.0.0.1:{port}"


def test_the_other_replica_answers_and_the_lost_one_comes_back(cluster: Nodes, url: str) -> None:
    answers: list[tuple[float, int]] = []  # when it came, and its status (0: none)
    stopped = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=10.0) as http:
            example = http.get("/v1/policies/games").json()["example"]
            while not stopped.wait(0.02):
                try:
                    status = http.post("/v1/policies/games/decide", json=example).status_code
                except httpx.HTTPError:
                    status = 0
                answers.append((time.monotonic(), status))

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for one in clients:
        one.start()
    try:
        assert ready_replicas() == 2
        wait_for(lambda: len(answers) > 50)
        assert {status for _, status in answers} == {200}
        killed = time.monotonic()
        cluster.kill(min(cluster.cluster.worker_nodes, key=lambda node: node.unique_id))
        wait_for(lambda: ready_replicas() == 1, 30)
        cluster.add()
        wait_for(lambda: ready_replicas() == 2, 90)
        there = len(answers)
        wait_for(lambda: len(answers) > there + 50, 30)
    finally:
        stopped.set()
        for one in clients:
            one.join()
    failed = [when - killed for when, status in answers if status != 200]
    print(f"{len(failed)} of {len(answers)} requests failed, the last {max(failed, default=0.0):.1f} s after the node died")
    assert all(seconds < 20 for seconds in failed)
    assert sum(when > killed and status == 200 for when, status in answers) > 100
    assert {status for _, status in answers[there:]} == {200}
