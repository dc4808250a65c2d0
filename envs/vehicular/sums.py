"""Sums that do not depend on the order of their terms, and so not on the number of rows, the row or the device's schedule."""

from __future__ import annotations

import torch
from torch import Tensor

FRACTION = 2.0**20  # a term is rounded to a millionth


def to_fixed(x: Tensor) -> Tensor:
    """float to int64 fixed point with 20 binary digits after the point (|x| below 10^12)."""
    return (x.double() * FRACTION).round_().long()


def from_fixed(x: Tensor) -> Tensor:
    """int64 fixed point to float32."""
    return (x.double() / FRACTION).float()


def exact_sum(x: Tensor) -> Tensor:
    """Sum of float32 `x` over its last dimension."""
    return from_fixed(to_fixed(x).sum(-1))


def count_by(index: Tensor, size: int, weight: Tensor | None = None) -> Tensor:
    """`[E, size]` int64: how often (or with what total int64 `weight [E, Q]`) each value occurs in a row of `index [E, Q]`."""
    counts = torch.zeros(index.shape[0], size, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(1, index, torch.ones_like(index) if weight is None else weight)
