"""The Milvus store on a real Milvus Lite file, and servers that do not answer."""

import itertools
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from envs.errors import InputError
from envs.velo.milvus_store import MilvusStore
from envs.velo.stores import ExactStore
from tests.envs.velo.store_sequences import assert_same_behaviour, assert_same_matches, random_entries, sequences
from tests.ports import free_port

pymilvus = pytest.importorskip("pymilvus")
numbers = itertools.count()


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    """One file for all examples; each has a collection of its own."""
    return str(tmp_path_factory.mktemp("milvus") / "store.db")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(sequence=sequences)
def test_it_does_what_the_exact_store_does(lite, sequence):
    store = MilvusStore(lite, 4, collection=f"example_{next(numbers)}")
    assert_same_behaviour(sequence, store, ExactStore(4))
    store.close()


def test_a_closed_store_opens_as_it_was(tmp_path):
    store, exact = MilvusStore(str(tmp_path / "store.db"), 4), ExactStore(4)
    for both in (store, exact):
        both.insert(*random_entries(40, 4))
        both.use(torch.tensor([39, 5]), torch.tensor([0.0, 0.0]))
        both.evict_below_mean()
    store.close()
    reopened = MilvusStore(str(tmp_path / "store.db"), 4)
    for both in (reopened, exact):
        assert both.insert(*random_entries(2, 4, seed=1)).tolist() == [40, 41]
    requests = random_entries(5, 4, seed=2)[0]
    assert_same_matches(reopened.query(requests, 10), exact.query(requests, 10))
    reopened.close()


def test_a_store_of_another_width(lite):
    MilvusStore(lite, 4, collection="narrow").close()
    with pytest.raises(InputError, match="collection 'narrow' holds vectors of width 4, expected 5"):
        MilvusStore(lite, 5, collection="narrow")


def test_a_collection_that_is_no_store(lite):
    client = pymilvus.MilvusClient(lite)
    client.create_collection("other", dimension=4)
    client.close()
    with pytest.raises(InputError, match="collection 'other' has the fields id, vector: expected cache_value, exchange, id"):
        MilvusStore(lite, 4, collection="other")


def test_an_entry_that_is_not_there(lite):
    store = MilvusStore(lite, 4, collection="missing")
    store.insert(*random_entries(2, 4))
    with pytest.raises(InputError, match="no entry with id 2"):
        store.use(torch.tensor([0, 2]), torch.zeros(2))
    assert store.query(torch.zeros(1, 4), 2).uses.tolist() == [[0, 0]]
    store.close()


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="its folder cannot be written: Not a directory"):
        MilvusStore(str(tmp_path / "file" / "store.db"), 4)


def test_a_name_that_milvus_lite_does_not_take(tmp_path):
    with pytest.raises(InputError, match=r"expected a file that ends in .db or http://HOST:PORT"):
        MilvusStore(str(tmp_path / "store"), 4)


OPENS_TWICE = """
import sys
from envs.errors import InputError
from envs.velo.stores import open_store
try:
    open_store(sys.argv[1], 4)
except InputError as error:
    print(error, flush=True)
input()
open_store(sys.argv[1], 4)
"""


def test_a_file_is_locked_until_the_last_store_in_it_is_closed(tmp_path):
    store = MilvusStore(str(tmp_path / "store.db"), 4)
    MilvusStore(str(tmp_path / "store.db"), 4, collection="other").close()
    command = [sys.executable, "-c", OPENS_TWICE, f"milvus:{tmp_path / 'store.db'}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        reason = "the file cannot be opened: another process uses it, or it is no Milvus Lite database"
        assert other.stdout.readline() == f"Milvus at {tmp_path / 'store.db'}: {reason}\n"
        store.close()
        other.communicate("\n")
    assert other.returncode == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Milvus server, which is Milvus Lite behind a port, and its address."""
    port = free_port()
    folder = tmp_path_factory.mktemp("server") / "data"
    command = [sys.executable, "-m", "milvus_lite", "server", "--host", "127.0.0.1"]
    process = subprocess.Popen([*command, "--port", str(port), "--data-dir", str(folder)], stderr=subprocess.DEVNULL)
    for _ in range(300):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(sequence=sequences)
def test_a_server_does_what_the_exact_store_does(server, sequence):
    store = MilvusStore(server[1], 4, nprobe=128, collection=f"example_{next(numbers)}")
    assert_same_behaviour(sequence, store, ExactStore(4))
    store.close()


def test_inverted_lists_that_are_all_looked_through_do_what_the_exact_store_does(server):
    store, exact = MilvusStore(server[1], 16, collection="large", nprobe=128), ExactStore(16)
    for both in (store, exact):
        both.insert(*random_entries(5_200, 16))
    requests = random_entries(20, 16, seed=1)[0]
    assert_same_matches(store.query(requests, 10), exact.query(requests, 10))
    assert store.query(requests, 10).distances.tolist() == exact.query(requests, 10).distances.tolist()
    store.close()


def test_a_server_that_falls_silent(server):
    process, uri = server
    store = MilvusStore(uri, 4, collection="silent", timeout_s=1)
    store.insert(*random_entries(2, 4))
    calls = [
        lambda: store.insert(*random_entries(2, 4)),
        lambda: store.query(torch.zeros(1, 4), 1),
        lambda: store.use(torch.tensor([0]), torch.zeros(1)),
        store.evict_below_mean,
    ]
    process.send_signal(signal.SIGSTOP)
    try:
        for call in calls:
            start = time.monotonic()
            with pytest.raises(InputError, match=f"^Milvus at {uri}: is not reachable or does not answer within 1 s$"):
                call()
            assert time.monotonic() - start < 5
    finally:
        process.send_signal(signal.SIGCONT)
    assert store.query(torch.zeros(1, 4), 1).uses.tolist() == [[0]]
    store.close()


@pytest.mark.parametrize("listening", [False, True], ids=["nobody listens", "nobody answers"])
def test_a_server_that_does_not_answer(listening):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen(8)
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(InputError, match=f"^Milvus at {uri}: is not reachable or does not answer within 4 s$"):
            MilvusStore(uri, 4)
        assert time.monotonic() - start < 5
