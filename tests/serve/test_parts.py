"""Batches, tokens, sessions and settings, each on its own."""

import asyncio
import base64
import socket
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.errors import InputError
from serve.batching import Batcher
from serve.cli import check_exposure, make_scaling, make_settings
from serve.config import parse_sources, read_token
from serve.sessions import Session, SessionStore
from serve.tokens import StateLayout, StateTokens, read_key

VERSION = "0123456789ab"


# -- batches --


class Recorder:
    """Computes the negatives, and remembers the batches and threads."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()

    def __call__(self, jobs: Sequence[int]) -> list[int]:
        self.batches.append(list(jobs))
        self.threads.add(threading.current_thread().name)
        if 13 in jobs:
            raise RuntimeError("unlucky")
        return [-job for job in jobs]


@pytest.mark.anyio
@pytest.mark.parametrize("in_thread", [False, True])
async def test_what_arrives_together_is_computed_together_by_kind(in_thread: bool) -> None:
    recorder = Recorder()
    batcher: Batcher[int, int] = Batcher(recorder, lambda jobs: in_thread, largest=3)
    results = await asyncio.gather(*(batcher.submit(job % 2, job) for job in range(10)))
    assert results == [-job for job in range(10)]
    assert sorted(job for batch in recorder.batches for job in batch) == list(range(10))
    assert all(len({job % 2 for job in batch}) == 1 and len(batch) <= 3 for batch in recorder.batches)
    assert len(recorder.batches) <= (6 if in_thread else 4)
    assert all(name.startswith("policy") == in_thread for name in recorder.threads)


@pytest.mark.anyio
@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_batch_that_fails_harms_no_other(in_thread: bool) -> None:
    batcher: Batcher[int, int] = Batcher(Recorder(), lambda jobs: in_thread, largest=8)
    results = await asyncio.gather(*(batcher.submit(job == 13, job) for job in (1, 13, 2)), return_exceptions=True)
    assert (results[0], results[2]) == (-1, -2)
    assert isinstance(results[1], RuntimeError)
    assert await batcher.submit(False, 5) == -5


@pytest.mark.anyio
async def test_a_job_whose_client_has_gone_is_not_computed() -> None:
    recorder = Recorder()
    batcher: Batcher[int, int] = Batcher(recorder, lambda jobs: False, largest=8)
    waiting = asyncio.create_task(batcher.submit(0, 1))
    other = asyncio.create_task(batcher.submit(0, 2))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await other == -2
    assert recorder.batches == [[2]]


# -- tokens --


def state(teams: int) -> dict[str, torch.Tensor]:
    return {
        "hidden": torch.arange(teams * 6, dtype=torch.float32).reshape(teams, 2, 3),
        "previous_actions": torch.arange(teams * 2).reshape(teams, 2, 1),
    }


def test_a_layout_gives_back_what_it_was_given() -> None:
    layout = StateLayout(state(1))
    assert layout.size == 6 * 4 + 2 * 8
    again = layout.to_state(layout.to_bytes(state(3), 3))
    for name, value in state(3).items():
        assert torch.equal(again[name], value)
        assert again[name].dtype == value.dtype
    assert StateLayout({}).to_bytes({}, 4).shape == (4, 0)


@given(st.binary(max_size=50), st.integers(0, 10**9), st.integers(1, 255))
def test_no_changed_token_opens(content: bytes, place: int, difference: int) -> None:
    tokens = StateTokens(b"a" * 32)
    token = tokens.seal("policy", VERSION, content)
    assert tokens.open("policy", token) == (VERSION, content)
    data = bytearray(base64.urlsafe_b64decode(token))
    data[place % len(data)] ^= difference
    for owner, key, changed in (
        ("policy", b"a", base64.urlsafe_b64encode(data).decode()),
        ("policy2", b"a", token),
        ("policy", b"b", token),
        ("policy", b"a", token[:-4]),
        ("policy", b"a", ""),
    ):
        with pytest.raises(ValueError, match="state: "):
            StateTokens(key * 32).open(owner, changed)


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    key = read_key(path)
    assert read_key(path) == key
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"short")
    with pytest.raises(InputError, match="5 bytes: expected a key of at least 32"):
        read_key(path)


# -- sessions --


def test_sessions_expire_by_disuse_and_are_limited() -> None:
    now = [0.0]
    store = SessionStore(10.0, 2, lambda: now[0])
    first, second = store.create("p"), store.create("p")
    assert first is not None
    assert store.create("p") is None
    now[0] = 9.0
    assert store.put(first, Session("p", VERSION, b"x", 1))
    assert not store.put(first, Session("p", VERSION, b"y", 1))  # another was quicker
    now[0] = 10.0
    assert store.get(second or "") is None
    assert store.get(first) == Session("p", VERSION, b"x", 1)
    now[0] = 19.0
    assert store.get(first) is None
    assert not store.put(first, Session("p", VERSION, b"z", 2))
    assert store.create("p") is not None


# -- settings --


def test_names_of_policies(tmp_path: Path) -> None:
    assert parse_sources([f"{tmp_path}/idmac", f"fast={tmp_path}/b=c/greedy"]) == {
        "idmac": tmp_path / "idmac",
        "fast": tmp_path / "b=c" / "greedy",
    }


@pytest.mark.parametrize(
    ("bundles", "complaint"),
    [(["a/x", "b/x"], "the name 'x' is taken"), (["a b=x"], "policy name 'a b'"), (["=x"], "policy name ''")],
)
def test_names_that_cannot_be(bundles: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_sources(bundles)


def test_a_token_file_holds_one_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("secret\n")
    assert read_token(path) == "secret"
    assert read_token(None) is None
    for content in ("", "two words", "sëcret"):
        path.write_text(content)
        with pytest.raises(InputError, match="expected one token of ASCII characters"):
            read_token(path)
    with pytest.raises(InputError, match="cannot be read as a token file"):
        read_token(tmp_path / "missing")


@pytest.mark.parametrize("override", ["limits", "limits.time_s=-1", "limits.speed=3", "other.time_s=1", "limits.=1"])
def test_overrides_that_cannot_be(override: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--set"):
        make_settings(None, tmp_path / "key", tmp_path / "metrics", [override])


@pytest.mark.parametrize("override", ["scaling.speed=1", "scaling.upscale_s=-1", "scale.upscale_s=1", "scaling.replicas=3"])
def test_scaling_that_cannot_be(override: str) -> None:
    with pytest.raises(InputError, match="--set"):
        make_scaling(1, None, [override])


def test_haproxy_wants_to_be_told_that_it_is_open() -> None:
    with pytest.raises(InputError, match=r"expected --host 0\.0\.0\.0"):
        check_exposure("127.0.0.1", "haproxy", None)
    check_exposure("0.0.0.0", "haproxy", Path("token"))
    check_exposure("127.0.0.1", "default", None)


def test_rows_are_read_back_as_they_were() -> None:
    from envs.registry import make_scenario, make_simulator
    from envs.team import episode_seeds
    from serve.codec import Codec

    simulator = make_simulator(make_scenario("dialogue/d8"), 4)
    seen = simulator.reset(episode_seeds(1, 0, 4)).observation
    codec = Codec(simulator.spec, simulator.spec.agents)
    rows = codec.rows({name: np.array(value.tolist()) for name, value in seen.items()}, 4)
    for name, value in codec.observation(torch.from_numpy(rows)).items():
        assert torch.equal(value, seen[name])
        assert value.dtype == seen[name].dtype


def test_a_port_that_is_taken() -> None:
    from serve.running import check_free

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1, port {port}: "):
            check_free("127.0.0.1", port)
    check_free("127.0.0.1", port)
