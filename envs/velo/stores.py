"""Vector stores: what an edge server keeps of past exchanges, and how it finds those that are near a request.

An exchange with the LLM is two entries, its question and its answer (paper, Fig. 2). Which text an `exchange` number stands
for is the caller's matter. The module depends on no simulator, so an edge server can use a store as it is:

>>> store = open_store("exact", width=2)
>>> question_and_answer = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
>>> store.insert(question_and_answer, torch.tensor([QUESTION, ANSWER]), torch.tensor([7, 7]), torch.tensor([-0.5, -0.5]))
tensor([0, 1])
>>> matches = store.query(torch.tensor([[0.6, 0.8]]), count=1)
>>> matches.ids, matches.exchanges, matches.distances
(tensor([[1]]), tensor([[7]]), tensor([[0.6325]]))
>>> store.use(matches.ids[:, 0], torch.tensor([-0.25]))
>>> store.evict_below_mean(), len(store)
(1, 1)
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from envs.errors import InputError

QUESTION, ANSWER = 0, 1
_SPARE = 10  # candidates fetched beyond those asked for
_CLEAR = 1e-4  # of a squared distance between vectors of length 1: more than an index errs in float32


@dataclass(frozen=True)
class Matches:
    """The nearest entries of `q` queries, nearest first, the older one first where two are equally far: `[q, count]` tensors.

    Attributes:
        ids: int64, -1 where the store holds fewer entries. An open store gives no id twice.
        distances: float32, L2, inf where there is no entry.
        kinds: int64, QUESTION or ANSWER, -1 where there is no entry.
        exchanges: int64 as inserted, -1 where there is no entry.
        uses: int64, how often `use` named the entry (c^f in the paper).
        values: float32, the cache value (c^r).
    """

    ids: Tensor
    distances: Tensor
    kinds: Tensor
    exchanges: Tensor
    uses: Tensor
    values: Tensor

    @classmethod
    def none(cls, queries: int, count: int) -> Matches:
        """What an empty store finds."""
        return EntryTable(torch.zeros(0, 0)).matches(torch.zeros(queries, 0, dtype=torch.int64), torch.zeros(queries, 0), count)


class VectorStore(Protocol):
    """The store of one server. Vectors are float32 `[n, width]`; every method raises InputError for tensors that do not fit."""

    width: int

    def insert(self, vectors: Tensor, kinds: Tensor, exchanges: Tensor, values: Tensor) -> Tensor:
        """Adds n unused entries with these cache values. Returns their ids, `[n]` int64, increasing."""

    def query(self, vectors: Tensor, count: int) -> Matches:
        """The `count` entries nearest to each of `[q, width]` vectors."""

    def use(self, ids: Tensor, values: Tensor) -> None:
        """Counts one use of each of `[n]` different entries and sets its cache value (the caller computes eq. 5)."""

    def evict_below_mean(self) -> int:
        """Drops the entries whose cache value is below the store's mean (Algorithm 2, lines 19-26). Returns how many."""

    def __len__(self) -> int: ...

    def close(self) -> None:
        """Writes what is not yet written and lets go of files and connections."""


def open_store(address: str, width: int, **options: Any) -> VectorStore:
    """The store at `address`, which is made where there is none.

    Args:
        address: `exact` or `faiss`, both in memory only; `faiss:PATH`, a file; `milvus:PATH.db`, a Milvus Lite file; or
            `milvus:http://HOST:PORT`, a Milvus server.
        options: Keyword arguments of `FaissStore` or `MilvusStore`.

    Raises:
        InputError: The address is none of these, the file cannot be written or is no store of this width, or the server does
            not answer.
    """
    backend, _, place = address.partition(":")
    if backend == "exact" and not place:
        return ExactStore(width, **options)
    if backend == "faiss":
        from envs.velo.faiss_store import FaissStore

        return FaissStore(width, path=place or None, **options)
    if backend == "milvus" and place:
        from envs.velo.milvus_store import MilvusStore

        return MilvusStore(place, width, **options)
    raise InputError(f"vector store {address!r}: expected exact, faiss, faiss:PATH, milvus:PATH.db or milvus:http://HOST:PORT")


class ExactStore:
    """Brute force in torch: the reference for the other stores, and fast enough for some thousand entries."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._entries = EntryTable(torch.zeros(0, width))

    def insert(self, vectors: Tensor, kinds: Tensor, exchanges: Tensor, values: Tensor) -> Tensor:
        vectors = checked_vectors(vectors, self.width)
        return self._entries.append(kinds, exchanges, values, vectors)

    def query(self, vectors: Tensor, count: int) -> Matches:
        vectors = checked_vectors(vectors, self.width)
        rows = torch.arange(len(self)).expand(len(vectors), -1)
        return self._entries.matches(rows, exact_distances(vectors, self._entries["vectors"]), count)

    def use(self, ids: Tensor, values: Tensor) -> None:
        self._entries.use(ids, values)

    def evict_below_mean(self) -> int:
        return len(self._entries.evict_below_mean())

    def __len__(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        pass


class EntryTable:
    """Columns of a store's entries in the order of their ids, in memory. Room is doubled, so that n entries cost O(n).

    Args:
        vectors: `[0, width]`, or `[0, 0]` where the vectors are kept elsewhere.
    """

    def __init__(self, vectors: Tensor) -> None:
        self._columns = {
            "ids": torch.zeros(0, dtype=torch.int64),
            "kinds": torch.zeros(0, dtype=torch.int64),
            "exchanges": torch.zeros(0, dtype=torch.int64),
            "uses": torch.zeros(0, dtype=torch.int64),
            "values": torch.zeros(0),
            "vectors": vectors,
        }
        self._length = 0
        self.next_id = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> Tensor:
        """`[n]` (vectors: `[n, width]`), a view."""
        return self._columns[name][: self._length]

    def append(self, kinds: Tensor, exchanges: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        """Adds n entries, `vectors` `[n, width]` or `[n, 0]`. Returns their ids, `[n]`."""
        check_entries(len(vectors), kinds, exchanges, values)
        ids = torch.arange(self.next_id, self.next_id + len(vectors))
        uses = torch.zeros_like(ids)
        new = {"ids": ids, "kinds": kinds, "exchanges": exchanges, "uses": uses, "values": values, "vectors": vectors}
        end = self._length + len(ids)
        for name, column in self._columns.items():
            if end > len(column):
                room = column.new_zeros(max(end, 2 * len(column)), *column.shape[1:])
                room[: self._length] = column[: self._length]
                self._columns[name] = room
            self._columns[name][self._length : end] = new[name]
        self._length = end
        self.next_id += len(ids)
        return ids

    @classmethod
    def load(cls, columns: dict[str, Tensor], next_id: int) -> EntryTable:
        """The table with these columns, sorted by id; without `vectors` they are kept elsewhere."""
        table = cls(torch.zeros(0, 0))
        table._length = len(columns["ids"])
        table._columns = {"vectors": torch.zeros(table._length, 0), **columns}
        table.next_id = next_id
        return table

    def rows(self, ids: Tensor) -> Tensor:
        """Where the entries with these ids stand, of any shape.

        Raises:
            InputError: There is no entry with such an id.
        """
        rows = torch.searchsorted(self["ids"], ids).clamp(max=len(self) - 1)
        found = self["ids"][rows] == ids if len(self) else torch.zeros_like(ids, dtype=torch.bool)
        if not found.all():
            raise InputError(f"the vector store has no entry with id {int(ids[~found][0])}")
        return rows

    def use(self, ids: Tensor, values: Tensor) -> None:
        """See `VectorStore.use`."""
        check_uses(ids, values)
        rows = self.rows(ids)
        self["uses"][rows] += 1
        self["values"][rows] = values.to(torch.float32)

    def evict_below_mean(self) -> Tensor:
        """Drops entries as `VectorStore.evict_below_mean` does. Returns the ids of those dropped."""
        if not self._length:
            return self["ids"]
        # In float64 the mean of equal float32 numbers is that number, so that they do not all fall below it.
        low = self["values"].double() < self["values"].double().mean()
        dropped = self["ids"][low]
        self._columns = {name: self[name][~low] for name in self._columns}
        self._length -= len(dropped)
        return dropped

    def matches(self, rows: Tensor, distance: Tensor, count: int) -> Matches:
        """The `count` nearest among candidates.

        Args:
            rows: `[q, c]` rows of the table, increasing along `c` where the distance is the same.
            distance: `[q, c]`, inf where there is no candidate; the row is then any.
        """
        distance, order = distance.sort(dim=1, stable=True)
        distance, rows = distance[:, :count], rows.gather(1, order[:, :count])
        empty = distance.isinf()

        def padded(column: Tensor, blank: float) -> Tensor:
            return functional.pad(column, (0, count - column.shape[1]), value=blank)

        def picked(name: str, blank: float) -> Tensor:
            return padded(self[name][rows].masked_fill(empty, blank), blank)

        return Matches(
            ids=picked("ids", -1),
            distances=padded(distance, math.inf),
            kinds=picked("kinds", -1),
            exchanges=picked("exchanges", -1),
            uses=picked("uses", 0),
            values=picked("values", 0.0),
        )


def fetch_nearest(
    fetch: Callable[[int], tuple[Tensor, Tensor]], vectors: Tensor, count: int, size: int
) -> tuple[Tensor, Tensor]:
    """Candidates among which the `count` nearest are certain to be, from an index that knows neither ties nor the last digits.

    The index is asked for more than `count`, and for twice as many again while the farthest of them is not clearly farther
    than the `count`-th.

    Args:
        fetch: For a number k, ids `[q, k]` (-1: none) and vectors `[q, k, width]` of the k nearest entries by the index.
        vectors: `[q, width]`.
        size: Number of entries in the store.

    Returns:
        ids: `[q, k]`, increasing.
        distance: `[q, k]`, exact; inf where there is no entry.
    """
    wanted = min(count + _SPARE, size)
    while True:
        ids, found = fetch(wanted)
        ids, order = ids.sort(dim=1)
        distance = exact_distances(vectors[:, None], found)[:, 0].gather(1, order).masked_fill(ids < 0, math.inf)
        squared = distance.square().sort(dim=1).values
        # Infinity: there are no more entries in the lists that the index looks through.
        if wanted == size or (squared[:, -1].isinf() | (squared[:, -1] > squared[:, count - 1] + _CLEAR)).all():
            return ids, distance
        wanted = min(2 * wanted, size)


def exact_distances(vectors: Tensor, others: Tensor) -> Tensor:
    """L2 distances (eq. 1) of `[..., q, width]` and `[..., c, width]`: `[..., q, c]`, by differences.

    The faster way over inner products is wrong by some 1e-3 for vectors that are nearly the same.
    """
    return torch.cdist(vectors, others, compute_mode="donot_use_mm_for_euclid_dist")


def checked_vectors(vectors: Tensor, width: int) -> Tensor:
    """`[n, width]` float32.

    Raises:
        InputError: Another shape, or a number that is not finite.
    """
    if vectors.dim() != 2 or vectors.shape[1] != width:
        raise InputError(f"vectors of shape {list(vectors.shape)} for a vector store of width {width}: expected [n, {width}]")
    vectors = vectors.to(torch.float32)
    if not vectors.isfinite().all():
        raise InputError(f"vector {int((~vectors.isfinite()).any(1).nonzero()[0])} for the vector store holds NaN or infinity")
    return vectors


def check_entries(length: int, kinds: Tensor, exchanges: Tensor, values: Tensor) -> None:
    """Raises InputError where what belongs to `length` vectors has another length or impossible values."""
    for name, column in {"kinds": kinds, "exchanges": exchanges, "values": values}.items():
        if column.shape != (length,):
            raise InputError(f"{name} of shape {list(column.shape)} for {length} vectors: expected [{length}]")
    if not ((kinds == QUESTION) | (kinds == ANSWER)).all():
        raise InputError(f"kinds of entries {kinds.unique().tolist()}: expected {QUESTION} (question) or {ANSWER} (answer)")
    if not values.isfinite().all():
        raise InputError("a cache value is NaN or infinite")


def check_uses(ids: Tensor, values: Tensor) -> None:
    """Raises InputError where ids and values do not pair up, an id comes twice or a value is not finite."""
    if ids.dim() != 1 or ids.shape != values.shape:
        raise InputError(f"ids of shape {list(ids.shape)} and values of shape {list(values.shape)}: expected [n] and [n]")
    if len(ids.unique()) < len(ids):
        raise InputError(f"ids {ids.tolist()} name an entry twice: one call counts one use of each")
    if not values.isfinite().all():
        raise InputError("a cache value is NaN or infinite")


def check_writable(path: Path) -> None:
    """Raises InputError where a file at `path` could not be written, before any work is spent on its contents."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"vector store {path}: its folder cannot be written: {error.strerror}") from None
