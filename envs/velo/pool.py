"""The stores of all servers of all episodes at once.

All entries that a store may come to hold in an episode are known when it begins: question and answer of the initial exchanges,
and of one exchange for each request. So a store is a mask over them, and the distances of many requests to all of them are a
matrix product.

    B  stores      J  exchanges      P  results of a query      K = 2 kinds of entries: questions (0) and answers (1)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.exact import on_grid

VECTOR_GRID = 2.0**11
"""Vectors are multiples of 2^-11, their products of 2^-22. Sums of products of two unit vectors stay within [-1, 1] whatever
the order of the terms, so float32 holds them exactly: a matrix product has the same bits in any batch, on any device."""


KINDS = 2
"""Of entries: questions and answers."""


def on_vector_grid(vectors: Tensor) -> Tensor:
    """float32 vectors with components rounded to multiples of 2^-11, in place; a unit vector moves by about 0.003."""
    return vectors.mul_(VECTOR_GRID).round_().mul_(1.0 / VECTOR_GRID)


def relative_distances(requests: Tensor, entries: Tensor) -> Tensor:
    """`[b, t, H]` and `[b, n, H]`, on the grid, to `[b, t, n]` float32: squared L2 distances less the squared request, exact.

    `|x - y|^2 - |x|^2 = |y|^2 - 2 x y` ranks entries as the distance does (eq. 1).
    """
    return torch.baddbmm(entries.square().sum(2)[:, None], requests, entries.transpose(1, 2), alpha=-2.0)


@dataclass(frozen=True)
class Nearest:
    """The results of a query, nearest first, the older one first where two are equally far: `[..., P]`.

    Attributes:
        exchange: int64, -1 where the store holds fewer entries.
        kind: int64, 0 a question, 1 an answer, -1 none.
        distance: float32 L2, inf where there is none.
        uses: int64, 0 where there is none.
    """

    exchange: Tensor
    kind: Tensor
    distance: Tensor
    uses: Tensor


class Pool:
    """B stores, all empty, for J exchanges each.

    Attributes:
        present: `[B, K, J]` bool.
        uses: `[B, K, J]` int64.
        value: `[B, K, J]` float64 on the grid of `on_grid`, the cache value `c^r`.
    """

    def __init__(self, stores: int, exchanges: int, device: torch.device | str = "cpu") -> None:
        shape = (stores, KINDS, exchanges)
        self.present = torch.zeros(shape, dtype=torch.bool, device=device)
        self.uses = torch.zeros(shape, dtype=torch.int64, device=device)
        self.value = torch.zeros(shape, dtype=torch.float64, device=device)
        # of two entries of one distance, the older one comes first
        age = torch.arange(KINDS * exchanges, dtype=torch.float64, device=device)
        self._order = age.view(exchanges, KINDS).T.contiguous()

    def nearest(self, relative: Tensor, length: Tensor, count: int) -> Nearest:
        """The `count` entries nearest to one request of each store.

        Args:
            relative: `[B, K, j]` float32 as from `relative_distances`, of the exchanges up to the last one stored.
            length: `[B]` float32, squared, of the requests.
        """
        stores, _, exchanges = relative.shape
        # distances are whole multiples of 2^-22: what is below that decides between equal ones
        key = relative.double().mul_(VECTOR_GRID**2 * self._order.numel()).add_(self._order[:, :exchanges])
        key.masked_fill_(~self.present[:, :, :exchanges], torch.inf)
        count_there = min(count, key[0].numel())
        key, place = key.view(stores, -1).topk(count_there, dim=1, largest=False, sorted=True)
        key, place = (torch.nn.functional.pad(x, (0, count - count_there), value=y) for x, y in ((key, torch.inf), (place, 0)))
        there = torch.isfinite(key)
        kind, exchange = place // exchanges, place % exchanges
        squared = relative.flatten(1).gather(1, place).add_(length[:, None])
        return Nearest(
            exchange=torch.where(there, exchange, -1),
            kind=torch.where(there, kind, -1),
            distance=squared.sqrt_().masked_fill_(~there, torch.inf),
            uses=self.uses.flatten(1).gather(1, self._place(exchange, kind)) * there,
        )

    def insert(self, exchanges: slice, value: Tensor, where: Tensor) -> None:
        """Stores question and answer of some exchanges.

        Args:
            value, where: `[B, exchanges]`, the cache value, and which stores take the exchange.
        """
        self.present[:, :, exchanges] |= where[:, None]
        self.value[:, :, exchanges] = value[:, None]

    def value_of(self, exchange: Tensor, kind: Tensor) -> Tensor:
        """`[B]` float64, of the entry of this exchange and kind `[B]`; of any where they are -1."""
        return self.value.flatten(1).gather(1, self._place(exchange, kind)[:, None])[:, 0]

    def use(self, exchange: Tensor, kind: Tensor, value: Tensor, where: Tensor) -> None:
        """Counts a use of an entry and sets its value, `[B]` each, in the stores `where [B]` is True."""
        place = self._place(exchange, kind)[:, None]
        self.uses.view(len(place), -1).scatter_add_(1, place, where[:, None].long())
        value = torch.where(where, value, self.value_of(exchange, kind))
        self.value.view(len(place), -1).scatter_(1, place, value[:, None])

    def evict(self, stores: Tensor) -> Tensor:
        """Drops the entries of some `stores [n]` whose value is below their store's mean (Algorithm 2, lines 19-26).

        Returns:
            `[n]` int64, how many.
        """
        present, value = self.present[stores].flatten(1), self.value[stores].flatten(1)
        mean = on_grid((value * present).sum(1) / present.sum(1).clamp(min=1))
        low = present & (value < mean[:, None])
        self.present[stores] = (present & ~low).view(-1, *self.present.shape[1:])
        return low.sum(1)

    def _place(self, exchange: Tensor, kind: Tensor) -> Tensor:
        """Among the `K * J` of a store."""
        return (kind * self.present.shape[2] + exchange).clamp(min=0)
