"""A vector store on Milvus: a Milvus Lite file, or a collection on a server."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.errors import InputError
from envs.velo.stores import EntryTable, Matches, check_entries, check_uses, check_writable, checked_vectors, fetch_nearest

_FIELDS = {"id": "ids", "kind": "kinds", "exchange": "exchanges", "uses": "uses", "cache_value": "values"}
"""Field of the collection to column of an EntryTable. In Fig. 2 of the paper: Text_Id, Role, Ans_Id, Count and c^r."""
_PAGE = 10_000  # rows per call that carry no vectors
_MOST_MATCHES = 16_384  # of one search
_INSERTED = 500  # rows per call that carry vectors
_PATIENT_TIMEOUT_S = 60.0  # for a file, and for a server that has answered to make a collection or load it into memory
_SIGNS_OF_SILENCE = (
    "connecting to server",
    "DEADLINE_EXCEEDED",
    "Deadline Exceeded",
    "UNAVAILABLE",
    "Retry timeout",
    "Retry run out",
)
_open_files: Counter[str] = Counter()  # Milvus Lite holds a file for the whole process, which may have several stores in it


class MilvusStore:
    """One collection that this store alone writes to: on a server IVF_FLAT with 128 lists as in the paper (Sec. V-A).

    A Milvus Lite file is searched exhaustively (FLAT): it would train lists on the few vectors of each of its segments.

    Every method waits at most `timeout_s` for each answer of a server and raises InputError after it. A Milvus Lite file is
    locked by the process that opens it, and served to it on a port of the loopback interface.

    Args:
        uri: Path of a Milvus Lite file, ending in .db, or `http(s)://HOST:PORT` of a server of version 2.6 or later.
        collection: Its name on the server; made if it is not there.
        lists: Inverted lists, when the collection is made on a server.
        nprobe: Of them, how many a query looks through, nearest first; the default is Milvus'. With `lists` it is exact.
        token: `user:password` or an API key, for servers that want one.

    Raises:
        InputError: pymilvus is not installed, the file cannot be written, the server does not answer, or the collection is
            no store of this width.
    """

    def __init__(
        self,
        uri: str,
        width: int,
        collection: str = "exchanges",
        lists: int = 128,
        nprobe: int = 8,
        token: str = "",
        timeout_s: float = 4.0,
    ) -> None:
        try:
            from pymilvus import MilvusClient
        except ImportError:
            raise InputError("a Milvus store needs pymilvus: pip install 'edgeflock[milvus]'") from None
        for package in ("pymilvus", "milvus_lite"):  # They print tracebacks beside the errors that they raise.
            logging.getLogger(package).setLevel(logging.CRITICAL)
        self.width = width
        self._uri, self._collection, self._nprobe = uri, collection, nprobe
        self._file = None if "://" in uri else os.path.abspath(uri)
        self._timeout_s = timeout_s if self._file is None else _PATIENT_TIMEOUT_S
        if self._file is not None:
            if not uri.endswith(".db"):
                raise InputError(f"vector store milvus:{uri}: expected a file that ends in .db or http://HOST:PORT")
            check_writable(Path(uri))
        with self._answering():
            self._client: Any = MilvusClient(uri, token=token, timeout=self._timeout_s)
        if self._file is not None:
            _open_files[self._file] += 1
        try:
            self._open_collection(lists)
        except InputError:
            self.close()
            raise

    def insert(self, vectors: Tensor, kinds: Tensor, exchanges: Tensor, values: Tensor) -> Tensor:
        vectors = checked_vectors(vectors, self.width)
        check_entries(len(vectors), kinds, exchanges, values)
        ids = torch.arange(self._next_id, self._next_id + len(vectors))
        columns = zip(ids.tolist(), vectors.numpy(), kinds.tolist(), exchanges.tolist(), values.tolist(), strict=True)
        rows = [
            {"id": entry, "vector": vector, "kind": kind, "exchange": exchange, "uses": 0, "cache_value": value}
            for entry, vector, kind, exchange, value in columns
        ]
        self._next_id += len(rows)  # Even if it fails: some may have arrived.
        with self._answering():
            for start in range(0, len(rows), _INSERTED):
                self._client.insert(self._collection, rows[start : start + _INSERTED], timeout=self._timeout_s)
        return ids

    def query(self, vectors: Tensor, count: int) -> Matches:
        vectors = checked_vectors(vectors, self.width)
        seen: dict[int, Any] = {}

        def fetch(wanted: int) -> tuple[Tensor, Tensor]:
            hits = self._search(vectors, wanted)
            ids = torch.full((len(vectors), wanted), -1)
            found = torch.zeros(len(vectors), wanted, self.width)
            for row, entries in enumerate(hits):
                seen.update((entry["id"], entry) for entry in entries)
                ids[row, : len(entries)] = torch.tensor([entry["id"] for entry in entries])
                found[row, : len(entries)] = torch.tensor([entry["vector"] for entry in entries])
            return ids, found

        # Counting the entries would take longer than the search: there are at most as many as ids have been given.
        if len(vectors) and self._next_id:
            ids, distance = fetch_nearest(fetch, vectors, count, min(self._next_id, _MOST_MATCHES))
        if not seen:
            return Matches.none(len(vectors), count)
        table = _table([seen[entry] for entry in sorted(seen)], self._next_id)
        return table.matches(table.rows(torch.where(ids < 0, table["ids"][0], ids)), distance, count)

    def use(self, ids: Tensor, values: Tensor) -> None:
        check_uses(ids, values)
        if not len(ids):
            return
        with self._answering():
            rows = self._client.get(self._collection, ids=ids.tolist(), output_fields=["id", "uses"], timeout=self._timeout_s)
            uses = {row["id"]: row["uses"] for row in rows}
            for entry in ids.tolist():
                if entry not in uses:
                    raise InputError(f"the vector store has no entry with id {entry}")
            changes = [
                {"id": entry, "uses": uses[entry] + 1, "cache_value": value}
                for entry, value in zip(ids.tolist(), values.tolist(), strict=True)
            ]
            self._client.upsert(self._collection, changes, partial_update=True, timeout=self._timeout_s)

    def evict_below_mean(self) -> int:
        pages = [self._rows(f"id >= {start} and id < {start + _PAGE}") for start in range(0, self._next_id, _PAGE)]
        dropped = _table([row for page in pages for row in page], self._next_id).evict_below_mean().tolist()
        with self._answering():
            for start in range(0, len(dropped), _PAGE):
                self._client.delete(self._collection, ids=dropped[start : start + _PAGE], timeout=self._timeout_s)
        return len(dropped)

    def __len__(self) -> int:
        with self._answering():
            rows = self._client.query(self._collection, filter="id >= 0", output_fields=["count(*)"], timeout=self._timeout_s)
        return int(rows[0]["count(*)"])

    def close(self) -> None:
        self._client.close()
        if self._file is not None:
            from milvus_lite.server_manager import server_manager_instance

            _open_files[self._file] -= 1
            if not _open_files[self._file]:
                server_manager_instance.release_server(self._file)

    def _search(self, vectors: Tensor, limit: int) -> list[list[dict[str, Any]]]:
        """The fields of the nearest entries to each of the vectors, with the entries' own vectors."""
        with self._answering():
            hits = self._client.search(
                self._collection,
                data=vectors.numpy(),
                anns_field="vector",
                limit=limit,
                output_fields=[*_FIELDS, "vector"],
                search_params={"metric_type": "L2", "params": {"nprobe": self._nprobe}},
                timeout=self._timeout_s,
            )
        return [[hit["entity"] for hit in row] for row in hits]

    def _rows(self, condition: str, limit: int = _PAGE) -> list[dict[str, Any]]:
        with self._answering():
            rows = self._client.query(
                self._collection, filter=condition, output_fields=[*_FIELDS], limit=limit, timeout=self._timeout_s
            )
        return list(rows)

    def _find_next_id(self) -> int:
        """One more than the largest id in the collection, in a number of calls that is logarithmic in it."""
        above = 1
        while self._rows(f"id >= {above - 1}", limit=1):
            above *= 2
        low = above // 2  # An id of at least low - 1 exists, none of at least above - 1.
        while low + 1 < above:
            middle = (low + above) // 2
            low, above = (middle, above) if self._rows(f"id >= {middle - 1}", limit=1) else (low, middle)
        return low

    def _open_collection(self, lists: int) -> None:
        with self._answering():
            if self._client.has_collection(self._collection, timeout=self._timeout_s):
                self._check_collection()
                self._client.load_collection(self._collection, timeout=_PATIENT_TIMEOUT_S)
            else:
                self._make_collection(lists)
        self._next_id = self._find_next_id()

    def _make_collection(self, lists: int) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.width)
        schema.add_field("kind", DataType.INT64)
        schema.add_field("exchange", DataType.INT64)
        schema.add_field("uses", DataType.INT64)
        schema.add_field("cache_value", DataType.FLOAT)
        index = self._client.prepare_index_params()
        if self._file is None:
            index.add_index("vector", index_type="IVF_FLAT", metric_type="L2", params={"nlist": lists})
        else:
            index.add_index("vector", index_type="FLAT", metric_type="L2")
        # Strong: a query sees every insertion before it, as in the other stores.
        self._client.create_collection(
            self._collection, schema=schema, index_params=index, consistency_level="Strong", timeout=_PATIENT_TIMEOUT_S
        )

    def _check_collection(self) -> None:
        description = self._client.describe_collection(self._collection, timeout=self._timeout_s)
        fields = {field["name"]: field["params"] for field in description["fields"]}
        if set(fields) != {*_FIELDS, "vector"}:
            raise InputError(
                f"Milvus at {self._uri}: collection {self._collection!r} has the fields {', '.join(sorted(fields))}: "
                f"expected {', '.join(sorted({*_FIELDS, 'vector'}))}"
            )
        if int(fields["vector"]["dim"]) != self.width:
            raise InputError(
                f"Milvus at {self._uri}: collection {self._collection!r} holds vectors of width {fields['vector']['dim']}, "
                f"expected {self.width}"
            )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turns what goes wrong between client and server into one line."""
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except (MilvusException, grpc.RpcError) as error:
            reason = " ".join(str(error).split())
            if "Open local milvus failed" in reason:
                reason = "the file cannot be opened: another process uses it, or it is no Milvus Lite database"
            elif any(sign in reason for sign in _SIGNS_OF_SILENCE):
                reason = f"is not reachable or does not answer within {self._timeout_s:g} s"
            raise InputError(f"Milvus at {self._uri}: {reason}") from None


def _table(rows: list[dict[str, Any]], next_id: int) -> EntryTable:
    """The entries that Milvus returned, as a table in memory."""
    rows = sorted(rows, key=lambda row: row["id"])
    columns = {column: torch.tensor([row[field] for row in rows]) for field, column in _FIELDS.items()}
    return EntryTable.load(columns, next_id)
