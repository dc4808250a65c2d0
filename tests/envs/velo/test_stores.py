"""The exact store: against numpy, by hand, and what it refuses."""

import doctest

import pytest
import torch
from hypothesis import given, settings

from envs.errors import InputError
from envs.velo import stores
from envs.velo.stores import ANSWER, QUESTION, ExactStore, open_store
from tests.envs.velo.store_sequences import PlainStore, assert_same_behaviour, random_entries, sequences


@settings(max_examples=200, deadline=None)
@given(sequences)
def test_it_does_what_brute_force_does(sequence):
    assert_same_behaviour(sequence, ExactStore(4), PlainStore())


def test_the_example_in_the_docstring():
    assert doctest.testmod(stores).failed == 0


def filled() -> ExactStore:
    store = ExactStore(2)
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.0, 1.0]])
    kinds = torch.tensor([QUESTION, ANSWER, QUESTION, ANSWER])
    store.insert(vectors, kinds, torch.tensor([5, 5, 6, 6]), torch.tensor([-1.0, -2.0, -3.0, -4.0]))
    return store


def test_a_query_by_hand():
    matches = filled().query(torch.tensor([[0.0, 0.0]]), 5)
    assert matches.ids.tolist() == [[0, 2, 3, 1, -1]]  # The older of two equally far ones comes first.
    assert matches.distances.tolist() == [[0.0, 1.0, 1.0, 5.0, torch.inf]]
    assert matches.kinds.tolist() == [[QUESTION, QUESTION, ANSWER, ANSWER, -1]]
    assert matches.exchanges.tolist() == [[5, 6, 6, 5, -1]]
    assert matches.values.tolist() == [[-1.0, -3.0, -4.0, -2.0, 0.0]]
    assert matches.uses.tolist() == [[0] * 5]


def test_a_use_counts_and_replaces_the_cache_value():
    store = filled()
    store.use(torch.tensor([3, 0]), torch.tensor([-0.5, -1.5]))
    store.use(torch.tensor([3]), torch.tensor([-0.25]))
    matches = store.query(torch.tensor([[0.0, 1.0]]), 4)
    assert dict(zip(matches.ids[0].tolist(), matches.uses[0].tolist(), strict=True)) == {0: 1, 1: 0, 2: 0, 3: 2}
    assert dict(zip(matches.ids[0].tolist(), matches.values[0].tolist(), strict=True)) == {0: -1.5, 1: -2, 2: -3, 3: -0.25}


def test_eviction_drops_what_is_below_the_mean_and_ids_are_not_given_again():
    store = filled()  # Mean -2.5: entries 2 and 3 go.
    assert store.evict_below_mean() == 2
    assert store.query(torch.zeros(1, 2), 3).ids.tolist() == [[0, 1, -1]]
    assert store.insert(*random_entries(2, 2)).tolist() == [4, 5]


@pytest.mark.parametrize("value", [-0.1, -0.7, -1 / 3])
def test_equal_values_are_not_below_their_mean(value):
    store = ExactStore(2)
    vectors, kinds, exchanges, _ = random_entries(99, 2)
    store.insert(vectors, kinds, exchanges, torch.full((99,), value))
    assert store.evict_below_mean() == 0


def test_an_empty_store_finds_nothing_and_evicts_nothing():
    store = ExactStore(2)
    assert store.query(torch.zeros(2, 2), 3).ids.tolist() == [[-1] * 3] * 2
    assert store.evict_below_mean() == 0


@pytest.mark.parametrize("distance", [1e-3, 1e-4, 1e-6])
def test_small_distances_are_not_lost_in_rounding(distance):
    store = ExactStore(2)
    store.insert(torch.tensor([[0.6, 0.8]]), torch.tensor([0]), torch.tensor([0]), torch.tensor([0.0]))
    (found,) = store.query(torch.tensor([[0.6 + distance, 0.8]]), 1).distances[0].tolist()
    assert found == pytest.approx(distance, rel=0.1)


def insert(**changes):
    arguments = dict(zip(("vectors", "kinds", "exchanges", "values"), random_entries(3, 4), strict=True))
    ExactStore(4).insert(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (
            lambda: insert(vectors=torch.zeros(3, 5)),
            r"vectors of shape \[3, 5\] for a vector store of width 4: expected \[n, 4\]",
        ),
        (lambda: insert(vectors=torch.full((3, 4), torch.nan)), "vector 0 for the vector store holds NaN or infinity"),
        (lambda: insert(kinds=torch.tensor([0, 1])), r"kinds of shape \[2\] for 3 vectors: expected \[3\]"),
        (lambda: insert(kinds=torch.tensor([0, 1, 2])), "expected 0 .question. or 1 .answer."),
        (lambda: insert(values=torch.tensor([0.0, torch.inf, 0.0])), "a cache value is NaN or infinite"),
        (lambda: ExactStore(4).query(torch.zeros(4), 1), r"vectors of shape \[4\]"),
        (lambda: filled().use(torch.tensor([7]), torch.tensor([0.0])), "no entry with id 7"),
        (lambda: filled().use(torch.tensor([1, 1]), torch.zeros(2)), "name an entry twice"),
        (lambda: filled().use(torch.tensor([1]), torch.zeros(2)), r"expected \[n\] and \[n\]"),
        (lambda: filled().use(torch.tensor([1]), torch.tensor([torch.nan])), "a cache value is NaN or infinite"),
        (
            lambda: open_store("redis:x", 4),
            "'redis:x': expected exact, faiss, faiss:PATH, milvus:PATH.db or milvus:http://HOST:PORT",
        ),
        (lambda: open_store("milvus", 4), "'milvus': expected exact"),
    ],
)
def test_what_is_refused(call, complaint):
    with pytest.raises(InputError, match=complaint):
        call()


@pytest.mark.parametrize("address", ["exact", "faiss", "faiss:{folder}/store", "milvus:{folder}/store.db"])
def test_an_address_opens_a_store(tmp_path, address):
    store = open_store(address.format(folder=tmp_path), width=4)
    entries = random_entries(6, 4)
    store.insert(*entries)
    assert store.query(entries[0], 1).ids[:, 0].tolist() == list(range(6))
    store.close()
