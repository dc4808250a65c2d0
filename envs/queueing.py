"""Queues of whole batches of episodes at once."""

from __future__ import annotations

import torch
from torch import Tensor


def work_off(arrival_s: Tensor, work_s: Tensor, free_s: Tensor) -> Tensor:
    """`[E, D]`: when one server that is free at `free_s [E]` has done each piece of work, first come, first served.

    The D pieces are in order of arrival; `arrival_s` is -inf where there is none, `work_s` 0. Unrolling
    `end_k = max(arrival_k, end_{k-1}) + work_k` with the running sum P gives
    `end_k = P_k + max(free, max_{j <= k} (arrival_j - P_{j-1}))`.
    """
    through_s = work_s.cumsum(1)
    latest_s = (arrival_s - (through_s - work_s)).cummax(1).values
    return through_s + torch.maximum(latest_s, free_s[:, None])


def serve(asks: Tensor, arrival_s: Tensor, work_s: Tensor, free_s: Tensor) -> tuple[Tensor, Tensor]:
    """Sends pieces of work through one server, in order of arrival, ties by place.

    Args:
        asks: `[E, D]` bool.
        arrival_s, work_s: `[E, D]` float64 on the grid of `envs.exact.on_grid`.
        free_s: `[E]`, when the server has done what came before.

    Returns:
        When each piece is begun, `[E, D]` (no meaning where there is none), and when all are done, `[E]`.
    """
    order = arrival_s.masked_fill(~asks, torch.inf).argsort(dim=1, stable=True)
    asking = asks.gather(1, order)
    work = work_s.gather(1, order) * asking
    done_s = work_off(arrival_s.gather(1, order).masked_fill(~asking, -torch.inf), work, free_s)
    return torch.empty_like(done_s).scatter_(1, order, done_s - work), done_s[:, -1]
