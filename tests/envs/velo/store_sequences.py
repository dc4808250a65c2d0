"""Sequences of operations on vector stores, drawn by hypothesis, and a store that is too simple to be wrong."""

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st

from envs.velo.stores import Matches, VectorStore

WIDTH = 4
COUNT = 5
# Few different coordinates, so that equal vectors and equal distances are frequent.
vectors = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=WIDTH, max_size=WIDTH)
values = st.integers(-8, 0).map(lambda eighths: eighths / 8)
entry = st.tuples(vectors, st.integers(0, 1), st.integers(0, 99), values)
operation = st.one_of(
    st.tuples(st.just("insert"), st.lists(entry, min_size=1, max_size=6)),
    st.tuples(st.just("query"), st.lists(vectors, min_size=1, max_size=3)),
    st.tuples(st.just("use"), st.lists(st.tuples(st.integers(0, 1_000), values), min_size=1, max_size=3)),
    st.tuples(st.just("evict"), st.none()),
)
sequences = st.lists(operation, min_size=1, max_size=12)


@dataclass
class PlainStore:
    """Dictionaries and numpy in float64, one entry after the other."""

    width: int = WIDTH
    entries: dict[int, dict] = field(default_factory=dict)
    next_id: int = 0

    def insert(self, vectors, kinds, exchanges, values):
        first = self.next_id
        for vector, kind, exchange, value in zip(vectors, kinds, exchanges, values, strict=True):
            fields = {"vector": vector.numpy().astype(float), "uses": 0, "value": float(value)}
            self.entries[self.next_id] = {**fields, "kind": int(kind), "exchange": int(exchange)}
            self.next_id += 1
        return torch.arange(first, self.next_id)

    def query(self, vectors, count):
        blank = {"id": -1, "distance": np.inf, "kind": -1, "exchange": -1, "uses": 0, "value": 0.0}
        rows = []
        for vector in vectors.numpy().astype(float):
            found = [
                {**entry, "id": key, "distance": np.sqrt(((vector - entry["vector"]) ** 2).sum())}
                for key, entry in self.entries.items()
            ]
            found.sort(key=lambda match: (match["distance"], match["id"]))
            rows.append((found + [blank] * count)[:count])
        names = ("id", "distance", "kind", "exchange", "uses", "value")
        return Matches(*(torch.tensor([[match[name] for match in row] for row in rows]) for name in names))

    def use(self, ids, values):
        for key, value in zip(ids.tolist(), values.tolist(), strict=True):
            self.entries[key]["uses"] += 1
            self.entries[key]["value"] = value

    def evict_below_mean(self):
        mean = np.mean([entry["value"] for entry in self.entries.values()]) if self.entries else 0.0
        low = [key for key, entry in self.entries.items() if entry["value"] < mean]
        for key in low:
            del self.entries[key]
        return len(low)

    def __len__(self):
        return len(self.entries)

    def close(self):
        pass


def assert_same_behaviour(sequence, store: VectorStore, reference: VectorStore) -> None:
    """Runs the sequence on both and compares every answer, and at the end what they hold."""
    for name, argument in [*sequence, ("query", [[0.0] * WIDTH])]:
        if name == "insert":
            columns = [torch.tensor(column) for column in zip(*argument, strict=True)]
            assert store.insert(*columns).tolist() == reference.insert(*columns).tolist()
        elif name == "query":
            assert_same_matches(store.query(torch.tensor(argument), COUNT), reference.query(torch.tensor(argument), COUNT))
        elif name == "use" and len(reference):
            # Which entries there are is known from a query that finds all of them.
            present = reference.query(torch.zeros(1, WIDTH), len(reference)).ids[0]
            chosen = {int(present[place % len(present)]): value for place, value in argument}
            for both in (store, reference):
                both.use(torch.tensor(list(chosen)), torch.tensor(list(chosen.values())))
        elif name == "evict":
            assert store.evict_below_mean() == reference.evict_below_mean()
        assert len(store) == len(reference)


def assert_same_matches(found: Matches, expected: Matches) -> None:
    for name in ("ids", "kinds", "exchanges", "uses", "values"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
    torch.testing.assert_close(found.distances, expected.distances.float(), rtol=1e-6, atol=0)


def random_entries(number: int, width: int, seed: int = 0) -> list[torch.Tensor]:
    """Arguments of `insert`: unit vectors, kinds that alternate, an exchange per pair, values in [-1, 0)."""
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(number, width, generator=draw))
    return [vectors, torch.arange(number) % 2, torch.arange(number) // 2, -torch.rand(number, generator=draw)]
