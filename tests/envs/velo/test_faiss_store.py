"""The FAISS store finds what the exact store finds, flat and with inverted lists, and survives being closed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save_file

from envs.errors import InputError
from envs.velo.faiss_store import FaissStore
from envs.velo.stores import ExactStore
from tests.envs.velo.store_sequences import assert_same_behaviour, assert_same_matches, random_entries, sequences


@settings(max_examples=100, deadline=None)
@given(sequences)
def test_a_flat_index_does_what_the_exact_store_does(sequence):
    assert_same_behaviour(sequence, FaissStore(4), ExactStore(4))


@settings(max_examples=50, deadline=None)
@given(sequences)
def test_inverted_lists_that_are_all_looked_through_do_what_the_exact_store_does(sequence):
    store, exact = FaissStore(4, lists=2, nprobe=2), ExactStore(4)
    for both in (store, exact):
        both.insert(*random_entries(78, 4))
    assert store.trained
    assert_same_behaviour(sequence, store, exact)


@pytest.mark.parametrize("number", [4991, 4992])
def test_the_paper_s_128_lists_are_trained_from_39_vectors_each(number):
    store, exact = FaissStore(16, nprobe=128), ExactStore(16)
    entries = random_entries(number, 16)
    for both in (store, exact):
        both.insert(*entries)
    assert store.trained == (number == 39 * 128)
    requests = random_entries(50, 16, seed=1)[0]
    assert_same_matches(store.query(requests, 10), exact.query(requests, 10))
    assert store.query(requests, 10).distances.tolist() == exact.query(requests, 10).distances.tolist()


def test_few_lists_are_faster_but_miss_neighbours():
    narrow, wide = FaissStore(16, lists=32, nprobe=1), FaissStore(16, lists=32, nprobe=32)
    for store in (narrow, wide):
        store.insert(*random_entries(39 * 32, 16))
    requests = random_entries(50, 16, seed=1)[0]
    found, expected = narrow.query(requests, 10).distances, wide.query(requests, 10).distances
    assert (found >= expected).all()
    assert (found > expected).any()


def test_many_equal_vectors_come_by_age():
    # More of them than are fetched at first.
    store = FaissStore(4)
    store.insert(torch.ones(100, 4), torch.zeros(100, dtype=torch.int64), torch.arange(100), torch.zeros(100))
    assert store.query(torch.ones(1, 4), 3).exchanges.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("number", [10, 100])
def test_a_closed_store_opens_as_it_was(tmp_path, number):
    store, exact = FaissStore(4, tmp_path / "store", lists=2, nprobe=2), ExactStore(4)
    for both in (store, exact):
        both.insert(*random_entries(number, 4))
        both.use(torch.tensor([3, 5]), torch.tensor([-0.5, 0.0]))
        both.evict_below_mean()
    store.close()
    assert [file.name for file in tmp_path.iterdir()] == ["store"]
    reopened = FaissStore(4, tmp_path / "store", lists=2, nprobe=2)
    assert reopened.trained == (number == 100)
    for both in (reopened, exact):
        assert both.insert(*random_entries(2, 4, seed=1)).tolist() == [number, number + 1]
    requests = random_entries(9, 4, seed=2)[0]
    assert_same_matches(reopened.query(requests, 10), exact.query(requests, 10))


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path / "file" / "store", "Not a directory"), (tmp_path / "none" / "store", "No such file")):
        with pytest.raises(InputError, match=f"vector store {path}: its folder cannot be written: {reason}"):
            FaissStore(4, path)


def test_a_folder_where_the_file_should_be(tmp_path):
    with pytest.raises(InputError, match="cannot be read as a FAISS store"):
        FaissStore(4, tmp_path)


def test_a_disk_that_fails_while_saving_leaves_the_old_file(tmp_path):
    store = FaissStore(4, tmp_path / "store")
    store.insert(*random_entries(3, 4))
    store.save()
    before = (tmp_path / "store").read_bytes()
    (tmp_path / "store.unfinished").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        store.save()
    assert (tmp_path / "store").read_bytes() == before


def test_a_store_without_a_file_cannot_be_saved():
    with pytest.raises(InputError, match="open it with a path"):
        FaissStore(4).save()


def test_files_that_are_no_store(tmp_path):
    path = tmp_path / "store"
    path.write_bytes(b"not a store")
    with pytest.raises(InputError, match="cannot be read as a FAISS store"):
        FaissStore(4, path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="is no FAISS store of format"):
        FaissStore(4, path)


def test_a_store_of_another_width(tmp_path):
    FaissStore(4, tmp_path / "store").close()
    with pytest.raises(InputError, match="holds vectors of width 4, expected 5"):
        FaissStore(5, tmp_path / "store")


def test_a_file_that_was_cut_off(tmp_path):
    path = tmp_path / "store"
    store = FaissStore(4, path)
    store.insert(*random_entries(30, 4))
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read as a FAISS store"):
        FaissStore(4, path)


def test_it_needs_no_numpy_types_at_the_border():
    store = FaissStore(4)
    ids = store.insert(*random_entries(3, 4))
    matches = store.query(torch.zeros(1, 4), 2)
    assert not any(isinstance(value, np.ndarray) for value in (ids, *vars(matches).values()))
