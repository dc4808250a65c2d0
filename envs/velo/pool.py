"""The stores of all servers of all episodes at once.

All entries that a store may come to hold in an episode are known when it begins: the initial exchanges, and one for each
request. So a store is a mask over V places, and the distances of many requests to all places are one matrix product. Place
`2 j` holds the question of exchange `j`, place `2 j + 1` its answer.

    B  stores      V  places      P  results of a query
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.exact import on_grid

VECTOR_GRID = 2.0**11
"""Vectors are multiples of 2^-11, their products of 2^-22. Sums of products of two unit vectors stay within [-1, 1] whatever
the order of the terms, so float32 holds them exactly: a matrix product has the same bits in any batch, on any device."""


def on_vector_grid(vectors: Tensor) -> Tensor:
    """float32 vectors with components rounded to multiples of 2^-11, in place; a unit vector moves by about 0.003."""
    return vectors.mul_(VECTOR_GRID).round_().mul_(1.0 / VECTOR_GRID)


def squared_distances(requests: Tensor, entries: Tensor) -> Tensor:
    """`[b, t, H]` and `[b, V, H]`, on the grid, to `[b, t, V]` float32 squared L2 distances (eq. 1), exact."""
    products = torch.bmm(requests, entries.transpose(1, 2))
    norms = requests.square().sum(2)[:, :, None] + entries.square().sum(2)[:, None, :]
    return torch.add(norms, products, alpha=-2.0, out=products)


@dataclass(frozen=True)
class Nearest:
    """The results of a query, nearest first, the older one first where two are equally far: `[B, P]`.

    Attributes:
        place: int64, -1 where the store holds fewer entries.
        distance: float32 L2, inf where there is none.
        uses: int64, 0 where there is none.
    """

    place: Tensor
    distance: Tensor
    uses: Tensor

    @property
    def kind(self) -> Tensor:
        """0 a question, 1 an answer, -1 none; int64."""
        return torch.where(self.place >= 0, self.place % 2, -1)


class Pool:
    """B stores with V places each, all empty.

    Attributes:
        present: `[B, V]` bool.
        uses: `[B, V]` int64.
        value: `[B, V]` float64 on the grid of `on_grid`, the cache value `c^r`.
    """

    def __init__(self, stores: int, places: int, device: torch.device | str = "cpu") -> None:
        self.present = torch.zeros(stores, places, dtype=torch.bool, device=device)
        self.uses = torch.zeros(stores, places, dtype=torch.int64, device=device)
        self.value = torch.zeros(stores, places, dtype=torch.float64, device=device)
        self._order = torch.arange(places, dtype=torch.float64, device=device)

    def nearest(self, squared: Tensor, count: int) -> Nearest:
        """The `count` entries nearest to one request of each store, by `squared [B, V]` distances."""
        # squared distances are whole multiples of 2^-22: what is below that decides between equal ones
        key = (squared.double() * (VECTOR_GRID**2 * len(self._order))).add_(self._order).masked_fill_(~self.present, torch.inf)
        key, place = key.topk(count, dim=1, largest=False, sorted=True)
        there = torch.isfinite(key)
        return Nearest(
            place=torch.where(there, place, -1),
            distance=squared.gather(1, place).sqrt_().masked_fill_(~there, torch.inf),
            uses=self.uses.gather(1, place) * there,
        )

    def insert(self, exchanges: slice, value: Tensor, where: Tensor) -> None:
        """Stores question and answer of some exchanges.

        Args:
            value, where: `[B, exchanges]`, the cache value, and which stores take the exchange.
        """
        places = slice(2 * exchanges.start, 2 * exchanges.stop)
        self.present[:, places] |= where.repeat_interleave(2, dim=1)
        self.value[:, places] = value.repeat_interleave(2, dim=1)

    def use(self, place: Tensor, value: Tensor, where: Tensor) -> None:
        """Counts a use of the entry at `place [B]` and sets its value, in the stores `where [B]` is True."""
        at = place.clamp(min=0)[:, None]
        self.uses.scatter_add_(1, at, where[:, None].long())
        self.value.scatter_(1, at, torch.where(where[:, None], value[:, None], self.value.gather(1, at)))

    def evict(self, where: Tensor) -> Tensor:
        """Drops entries whose value is below their store's mean (Algorithm 2, lines 19-26), in the stores `where [B]` is True.

        Returns:
            `[B]` int64, how many.
        """
        value = self.value * self.present
        mean = on_grid(value.sum(1) / self.present.sum(1).clamp(min=1))
        low = self.present & (self.value < mean[:, None]) & where[:, None]
        self.present &= ~low
        return low.sum(1)
