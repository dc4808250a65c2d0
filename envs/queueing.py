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
