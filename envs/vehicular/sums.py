"""Sums that do not depend on the order of their terms, and so not on the number of rows, the row or the device's schedule."""

from __future__ import annotations

import torch
from torch import Tensor

FRACTION = 2.0**20  # a term is rounded to a millionth
WORD = 8  # booleans in an int64


def to_fixed(x: Tensor) -> Tensor:
    """float to int64 fixed point with 20 binary digits after the point (|x| below 10^12)."""
    return (x * FRACTION).round_().long()  # a power of two: the product is exact


def from_fixed(x: Tensor) -> Tensor:
    """int64 fixed point to float32."""
    return (x.double() / FRACTION).float()


def exact_sum(x: Tensor) -> Tensor:
    """Sum of float32 `x` over its last dimension."""
    return from_fixed(to_fixed(x).sum(-1))


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]` for `table [X]` and `index [E, Q]`, several times faster than indexing."""
    return table.expand(index.shape[0], -1).gather(1, index)


def look_up_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of bool `table [E, X, Y]` by `index [E, Q]`: `[E, Q, Y]`. Eight booleans are moved at a time."""
    width = table.shape[2]
    words = torch.nn.functional.pad(table, (0, -width % WORD)).view(torch.int64)
    return words.gather(1, index[..., None].expand(-1, -1, words.shape[2])).view(torch.bool)[..., :width]


def count_by(index: Tensor, size: int, weight: Tensor | None = None) -> Tensor:
    """`[E, size]` int64: how often (or with what total int64 `weight [E, Q]`) each value occurs in a row of `index [E, Q]`."""
    counts = torch.zeros(index.shape[0], size, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(1, index, torch.ones_like(index) if weight is None else weight)
