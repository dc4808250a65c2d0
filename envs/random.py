"""Counter-based random numbers: a draw is a pure function of (seed, counters), not of when or in which row it is made.

The hash is the finaliser of SplitMix64 (Steele, Lea & Flood, 2014; the constants are its), applied to the seed and then to each
counter in turn, in int64 arithmetic that wraps around as unsigned arithmetic would.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 (torch shifts arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _wrap(x: Tensor | int) -> Tensor | int:
    """Python's integers do not wrap at 64 bits by themselves."""
    return x if isinstance(x, Tensor) else (x + (1 << 63)) % (1 << 64) - (1 << 63)


def hash_bits(seed: Tensor, *counters: Tensor | int) -> Tensor:
    """63 random bits for every element of the broadcast of `seed` and `counters`, as non-negative int64."""
    x = _mix(seed.to(torch.int64) + _GOLDEN)
    for counter in counters:
        x = _mix(x + _wrap((counter + 1) * _GOLDEN))
    return x & 0x7FFF_FFFF_FFFF_FFFF


def uniform(seed: Tensor, *counters: Tensor | int) -> Tensor:
    """Uniform in the open interval (0, 1), float32, 23 bits: never 0 or 1, so that its logarithm is finite."""
    return ((hash_bits(seed, *counters) >> 40).to(torch.float32) + 0.5) * 2.0**-23


def randint(high: int, seed: Tensor, *counters: Tensor | int) -> Tensor:
    """Uniform integer in [0, high), int64. The bias is below high / 2^63."""
    return hash_bits(seed, *counters) % high


def normal(seed: Tensor, *counters: Tensor | int) -> Tensor:
    """Standard normal, float32, by Box and Muller from two draws with one more counter."""
    radius = torch.sqrt(-2.0 * torch.log(uniform(seed, *counters, 0)))
    return radius * torch.cos(2.0 * math.pi * uniform(seed, *counters, 1))


def exponential(seed: Tensor, *counters: Tensor | int) -> Tensor:
    """Exponential with mean 1, float32."""
    return -torch.log(uniform(seed, *counters))
