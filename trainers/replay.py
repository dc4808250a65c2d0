"""Replay of whole joint episodes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.team_module import FILLED

_NEXT = "next"
_SHAPE = ".shape"  # after a column's name, in files


class EpisodeReplay:
    """A ring of the latest `capacity` joint episodes, in host memory, allocated when the first ones arrive.

    Masks, bools with more than the dimensions episode and step, are kept as bits.

    Sampling is a function of (seed, draw number), so a resumed training draws what it would have drawn.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.seed = seed
        self.size = 0
        self._next = 0
        self._columns: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}  # of a step, of the columns that are kept as bits

    @property
    def nbytes(self) -> int:
        """Bytes that it takes when full (0 before the first episodes)."""
        return sum(column.nbytes for column in self._columns.values())

    def add(self, rows: dict[str, Tensor], max_steps: int) -> None:
        """Stores joint rows `[B, T or T + 1, …]` whose episodes may be shorter than `max_steps`."""
        steps = rows[FILLED].shape[1]
        masks = [name for name, value in rows.items() if value.dtype == torch.bool and value.dim() > 2]
        self._shapes = {name: tuple(rows[name].shape[2:]) for name in masks}
        rows = {**rows, **{name: _to_bits(rows[name]) for name in masks}}
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
        sample = {
            name: column[picked, : steps + column.shape[1] - full].contiguous() if steps < full else column[picked]
            for name, column in self._columns.items()
        }
        return {**sample, **{name: _from_bits(sample[name], shape) for name, shape in self._shapes.items()}}

    def save(self, path: Path) -> None:
        """Writes everything to a safetensors file."""
        columns = {name: column[: self.size].contiguous() for name, column in self._columns.items()}
        shapes = {name + _SHAPE: torch.tensor(shape) for name, shape in self._shapes.items()}
        save_file({**columns, **shapes, _NEXT: torch.tensor(self._next)}, path)

    def load(self, path: Path) -> None:
        """Reads what `save` wrote."""
        columns = load_file(path)
        self._next = int(columns.pop(_NEXT))
        shapes = [name for name in columns if name.endswith(_SHAPE)]
        self._shapes = {name.removesuffix(_SHAPE): tuple(columns.pop(name).tolist()) for name in shapes}
        self.size = columns[FILLED].shape[0] if columns else 0
        for name, value in columns.items():
            self._columns[name] = torch.zeros((self.capacity, *value.shape[1:]), dtype=value.dtype)
            self._columns[name][: self.size] = value


def _to_bits(masks: Tensor) -> Tensor:
    """`[B, T, …]` bool to `[B, T, bytes]` uint8."""
    return torch.from_numpy(np.packbits(masks.flatten(2).numpy(), axis=-1))


def _from_bits(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What `_to_bits` was given, where `shape` is the one of a step."""
    masks = np.unpackbits(bits.numpy(), axis=-1, count=math.prod(shape))
    return torch.from_numpy(masks).view(torch.bool).unflatten(-1, shape)
