"""The whole server on Ray Serve: real proxies, replicas and processes."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from click.testing import CliRunner
from ray import serve

from envs.errors import InputError
from serve import exchange
from serve.cli import make_settings, serve_command
from serve.config import PolicySources, Scaling
from serve.deployment import APPLICATION, description, prepare
from serve.policies import bundle_version
from serve.running import exchange_policies, server
from tests.ports import free_port
from tests.serve.episodes import body_of, numbers_of, played
from tests.serve.serving import make_bundle, replicas
from trainers.bundle import WEIGHTS
from trainers.learned_policy import load_policy

pytestmark = pytest.mark.anyio
TOKEN = "a-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def url(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "token").write_text(TOKEN)
    port = free_port()
    limits = ["limits.ongoing=8", "limits.queued=8", "limits.time_s=30", "limits.wait_s=30"]
    settings = make_settings(folder / "token", folder / "key", folder / "metrics", limits)
    sources = PolicySources(policies={name: bundles[name] for name in ("dialogue", "greedy")})
    prepare(settings, sources)
    whole = description(sources, settings, Scaling(replicas=2, num_cpus=0.1), "127.0.0.1", port)
    ray.shutdown()  # of tests before, in the same process
    with server(whole, cores=2):
        yield f"http://127.0.0.1:{port}"


def client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=200)
    return httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=60.0, limits=limits)


async def test_episodes_over_two_replicas_are_the_evaluators(url: str, bundles: dict[str, Path]) -> None:
    spec, rows = load_policy(bundles["dialogue"]).spec, range(4)
    async with client(url) as http:
        session = (await http.post("/v1/policies/dialogue/sessions")).json()["session"]
        memory: list[dict[str, str | None]] = [{"session": session}, *({"state": None} for _ in rows[1:])]
        for result, actions in played(bundles["dialogue"], len(rows)):
            bodies = [{**body_of(result, spec, row), **memory[row]} for row in rows]
            asked = [http.post("/v1/policies/dialogue/decide", json=body) for body in bodies]
            answers = [answer.json() for answer in await asyncio.gather(*asked)]
            assert [numbers_of(answer["choices"], spec) for answer in answers] == actions.tolist()
            memory[1:] = [{"state": answer["state"]} for answer in answers[1:]]


async def test_figures_of_all_replicas_are_together(url: str) -> None:
    async with client(url) as http:
        assert (await http.get("/metrics", headers={"Authorization": "none"})).status_code == 401
        before, after = -1.0, -2.0
        for _ in range(2):
            await asyncio.gather(*(http.post("/v1/policies/greedy/decide", json={}) for _ in range(20)))
            lines = (await http.get("/metrics")).text.splitlines()
            (line,) = [line for line in lines if line.startswith('edgeflock_invalid_requests_total{policy="greedy"}')]
            before, after = after, float(line.split()[1])
        assert after - before == 20


async def test_whoever_is_too_many_is_told_when_to_come_again(url: str) -> None:
    async def slow() -> object:
        yield b"{"
        await asyncio.sleep(3.0)
        yield b"}"

    async with client(url) as http:
        asked = [http.post("/v1/policies/dialogue/decide", content=slow()) for _ in range(60)]
        answers = await asyncio.gather(*asked)
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {422, 503}
        assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 503} == {"1"}
        assert (await http.get("/v1/policies")).status_code == 200


async def test_a_new_version_comes_without_a_failed_request(url: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    other = make_bundle(tmp_path, "mappo", "dialogue/d8", [], seed=9)
    old, new = bundle_version(bundles["dialogue"]), bundle_version(other)
    seen: list[tuple[int, str]] = []

    async def traffic(http: httpx.AsyncClient) -> None:
        """Episodes of six steps: each goes on with the version that it began with, whichever replica is asked."""
        example = (await http.get("/v1/policies/dialogue")).json()["example"]
        while True:
            state, versions = None, set()
            for _ in range(6):
                answer = await http.post("/v1/policies/dialogue/decide", json={**example, "state": state})
                state = answer.json().get("state")
                versions.add(answer.json().get("version", ""))
                seen.append((answer.status_code, answer.json().get("version", "")))
            assert len(versions) == 1

    async with client(url) as http:
        clients = [asyncio.create_task(traffic(http)) for _ in range(3)]
        names = await asyncio.to_thread(exchange_policies, {"dialogue": other})
        assert names == ["dialogue", "greedy"]
        answered = len(seen)
        while len(seen) < answered + 80:
            await asyncio.sleep(0.1)
            for task in clients:
                assert not task.done()
        for task in clients:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    assert {status for status, _ in seen} == {200}
    assert seen[0][1] == old
    assert {version for _, version in seen[answered + 3 * 6 :]} == {new}


async def test_replicas_that_start_later_serve_the_update(url: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    other = make_bundle(tmp_path, "mappo", "dialogue/d8", [], seed=10)
    await asyncio.to_thread(exchange_policies, {"dialogue": other})
    old = replicas()
    old[0].kill()
    async with client(url) as http:
        async with asyncio.timeout(60):
            while set(replicas()) <= set(old) or serve.status().applications[APPLICATION].status != "RUNNING":
                await asyncio.sleep(0.2)
        answers = [await http.get("/v1/policies/dialogue") for _ in range(40)]
        seen = {answer.json()["version"] for answer in answers if answer.status_code == 200}
        assert seen == {bundle_version(other)}


async def test_an_update_with_a_broken_bundle_changes_nothing(url: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(bundles["dialogue"], tmp_path / "broken")
    flip_a_bit(broken)
    async with client(url) as http:
        before = (await http.get("/v1/policies")).json()
        with pytest.raises(InputError) as error:
            await asyncio.to_thread(exchange_policies, {"greedy": bundles["greedy"], "dialogue": broken})
        assert "nothing has changed" in str(error.value)
        assert "the checksum is not the manifest's" in str(error.value)
        assert "\n" not in str(error.value)
        for _ in range(10):
            assert [card["version"] for card in (await http.get("/v1/policies")).json()["policies"]] == [
                card["version"] for card in before["policies"]
            ]


async def test_a_deployment_of_other_policies_ends_an_update_for_good(url: str, bundles: dict[str, Path]) -> None:
    deployed = PolicySources(policies={name: bundles[name] for name in ("dialogue", "greedy")})
    other = PolicySources(policies={"dialogue": bundles["dialogue"]})
    update = exchange.Update(deployed=deployed, served=other)
    before = exchange.read()
    exchange.write(update)
    assert exchange.of(deployed) == update
    assert exchange.of(other) is None
    exchange.end_of_others(deployed)
    assert exchange.of(deployed) == update
    exchange.end_of_others(other)  # as a replica does when `other` is deployed
    assert exchange.of(deployed) is None
    if before is not None:
        exchange.write(before)


async def test_a_broken_bundle_is_not_taken(url: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(bundles["dialogue"], tmp_path / "broken")
    flip_a_bit(broken)
    result = CliRunner().invoke(serve_command, [str(broken), "--key-file", str(tmp_path / "key")])
    assert isinstance(result.exception, InputError)
    assert "the checksum is not the manifest's" in str(result.exception)
    assert not (tmp_path / "key").exists()


def flip_a_bit(bundle: Path) -> None:
    data = bytearray((bundle / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (bundle / WEIGHTS).write_bytes(data)
