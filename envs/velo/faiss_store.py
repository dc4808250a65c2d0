"""A vector store on FAISS: in memory, with an inverted file once there is enough to train one, and a file to keep it in."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from envs.errors import InputError
from envs.velo.stores import EntryTable, Matches, check_writable, checked_vectors, fetch_nearest

_FORMAT = "edgeflock-faiss-store-1"
_COLUMNS = ("ids", "kinds", "exchanges", "uses", "values")
_TRAINING_VECTORS_PER_LIST = 39  # FAISS warns below it


class FaissStore:
    """IVF-Flat with 128 lists as in the paper (Sec. V-A); a flat index until 39 vectors per list have come.

    Args:
        path: File that holds the store between runs: read if it is there, written by `save` and `close`. None: memory only.
        lists: Inverted lists.
        nprobe: Lists that a query looks through, nearest first. With `lists` the result is exact; the default is Milvus'.

    Raises:
        InputError: The file cannot be written, or is no store of this width.
    """

    def __init__(self, width: int, path: str | Path | None = None, lists: int = 128, nprobe: int = 8) -> None:
        self.width = width
        self._lists, self._nprobe = lists, nprobe
        self._path = None if path is None else Path(path)
        self._entries = EntryTable(torch.zeros(0, 0))
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatL2(width))
        if self._path is not None:
            check_writable(self._path)
            if self._path.exists():
                self._index, self._entries = _read(self._path, width)

    @property
    def trained(self) -> bool:
        """Whether the inverted file is in use."""
        return isinstance(self._index, faiss.IndexIVFFlat)

    def insert(self, vectors: Tensor, kinds: Tensor, exchanges: Tensor, values: Tensor) -> Tensor:
        vectors = checked_vectors(vectors, self.width)
        ids = self._entries.append(kinds, exchanges, values, vectors[:, :0])
        self._index.add_with_ids(vectors.numpy(), ids.numpy())
        if not self.trained and len(self) >= _TRAINING_VECTORS_PER_LIST * self._lists:
            self._train()
        return ids

    def query(self, vectors: Tensor, count: int) -> Matches:
        vectors = checked_vectors(vectors, self.width)
        if self.trained:
            self._index.nprobe = self._nprobe

        def fetch(wanted: int) -> tuple[Tensor, Tensor]:
            _, ids, found = self._index.search_and_reconstruct(vectors.numpy(), wanted)
            return torch.from_numpy(ids), torch.from_numpy(found)

        if not len(self):
            return Matches.none(len(vectors), count)
        ids, distance = fetch_nearest(fetch, vectors, count, len(self))
        rows = self._entries.rows(torch.where(ids < 0, self._entries["ids"][0], ids))
        return self._entries.matches(rows, distance, count)

    def use(self, ids: Tensor, values: Tensor) -> None:
        self._entries.use(ids, values)

    def evict_below_mean(self) -> int:
        dropped = self._entries.evict_below_mean()
        self._index.remove_ids(faiss.IDSelectorBatch(dropped.numpy()))
        return len(dropped)

    def __len__(self) -> int:
        return len(self._entries)

    def save(self) -> None:
        """Writes the file, all or nothing: index, entries and settings in one safetensors file.

        Raises:
            InputError: The store has no file, or it cannot be written.
        """
        if self._path is None:
            raise InputError("this FAISS store has no file: open it with a path to save it")
        columns = {name: self._entries[name].contiguous() for name in _COLUMNS}
        columns["index"] = torch.from_numpy(faiss.serialize_index(self._index))
        metadata = {"format": _FORMAT, "width": str(self.width), "next_id": str(self._entries.next_id)}
        unfinished = self._path.with_name(self._path.name + ".unfinished")
        try:
            save_file(columns, unfinished, metadata)
            os.replace(unfinished, self._path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                unfinished.unlink()
            raise InputError(f"vector store {self._path}: cannot be written: {error}") from None

    def close(self) -> None:
        if self._path is not None:
            self.save()

    def _train(self) -> None:
        vectors = self._index.index.reconstruct_n(0, len(self))
        inverted = faiss.IndexIVFFlat(faiss.IndexFlatL2(self.width), self.width, self._lists, faiss.METRIC_L2)
        inverted.train(vectors)
        inverted.add_with_ids(vectors, self._entries["ids"].numpy())
        self._index = inverted


def _read(path: Path, width: int) -> tuple[Any, EntryTable]:
    """The index and the entries of a file that `FaissStore.save` wrote."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise InputError(f"vector store {path}: is no FAISS store of format {_FORMAT}")
            columns = {name: file.get_tensor(name) for name in _COLUMNS}
            index = faiss.deserialize_index(np.ascontiguousarray(file.get_tensor("index").numpy()))
            entries = EntryTable.load(columns, int(metadata["next_id"]))
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"vector store {path}: cannot be read as a FAISS store: {str(error).splitlines()[0]}") from None
    if index.d != width:
        raise InputError(f"vector store {path}: holds vectors of width {index.d}, expected {width}")
    if index.ntotal != len(entries):
        raise InputError(f"vector store {path}: is damaged: {index.ntotal} vectors for {len(entries)} entries")
    return index, entries
