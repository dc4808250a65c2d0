"""Amounts whose sums are exact, so that an episode is the same in any batch."""

from __future__ import annotations

from torch import Tensor

GRID = 2.0**36


def on_grid(x: Tensor) -> Tensor:
    """float64 `x` rounded to a multiple of 2^-36 (1.5e-11).

    Sums and differences of such numbers are exact in float64 up to 2^17 (36 hours, or as many dollars). So they do not depend
    on the order of the terms, nor on the number of rows or the device, and cancel without a trace.
    """
    return (x * GRID).round_().mul_(1.0 / GRID)
