"""Replay of whole joint episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.team_module import FILLED

_NEXT = "next"


class EpisodeReplay:
    """A ring of the latest `capacity` joint episodes, in host memory, allocated when the first ones arrive.

    Sampling is a function of (seed, draw number), so a resumed training draws what it would have drawn.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.seed = seed
        self.size = 0
        self._next = 0
        self._columns: dict[str, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that it takes when full (0 before the first episodes)."""
        return sum(column.nbytes for column in self._columns.values())

    def add(self, rows: dict[str, Tensor], max_steps: int) -> None:
        """Stores joint rows `[B, T or T + 1, …]` whose episodes may be shorter than `max_steps`."""
        steps = rows[FILLED].shape[1]
        if not self._columns:
            for name, value in rows.items():
                length = max_steps + value.shape[1] - steps
                self._columns[name] = torch.zeros((self.capacity, length, *value.shape[2:]), dtype=value.dtype)
        count = rows[FILLED].shape[0]
        first = max(0, count - self.capacity)  # of more than fit, the last stay: no place is written twice
        places = (torch.arange(first, count) + self._next) % self.capacity
        for name, value in rows.items():
            column = self._columns[name]
            column[places, : value.shape[1]] = value[first:]
            column[places, value.shape[1] :] = 0
        self._next = (self._next + count) % self.capacity
        self.size = min(self.size + count, self.capacity)

    def sample(self, count: int, draw: int) -> dict[str, Tensor]:
        """`count` stored episodes drawn with replacement, cut after the last step of the longest."""
        rng = np.random.default_rng([self.seed, draw])
        picked = torch.from_numpy(rng.integers(0, self.size, count))
        filled = self._columns[FILLED][picked]
        steps = int(filled.any(0).sum())
        full = filled.shape[1]
        return {
            name: column[picked, : steps + column.shape[1] - full].contiguous() if steps < full else column[picked]
            for name, column in self._columns.items()
        }

    def save(self, path: Path) -> None:
        """Writes everything to a safetensors file."""
        columns = {name: column[: self.size].contiguous() for name, column in self._columns.items()}
        save_file({**columns, _NEXT: torch.tensor(self._next)}, path)

    def load(self, path: Path) -> None:
        """Reads what `save` wrote."""
        columns = load_file(path)
        self._next = int(columns.pop(_NEXT))
        self.size = columns[FILLED].shape[0] if columns else 0
        for name, value in columns.items():
            self._columns[name] = torch.zeros((self.capacity, *value.shape[1:]), dtype=value.dtype)
            self._columns[name][: self.size] = value
