"""The provider that all devices share: a rate limit in tokens, then a queue for its slots.

E  parallel episodes      D  devices
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.exact import on_grid
from envs.queueing import work_off


@dataclass(frozen=True)
class Admission:
    """When requests pass the rate limit and when they are served; `[E, D]` float64, no meaning where there is none.

    Attributes:
        released_s, started_s: Since the beginning of the interval.
        drained_s: `[E]`, when the bucket will be empty.
        free_s: `[E]`, when the slots will have worked off what they have accepted.
    """

    released_s: Tensor
    started_s: Tensor
    drained_s: Tensor
    free_s: Tensor


def admit(
    asks: Tensor,
    arrival_s: Tensor,
    tokens: Tensor,
    hold_s: Tensor,
    drained_s: Tensor,
    free_s: Tensor,
    rate: float,
    burst: float,
    slots: int,
) -> Admission:
    """Sends one interval's requests through the rate limit and the queue, in order of arrival, ties by device.

    The rate limit is a leaky bucket of `burst` tokens that drains at `rate`: a request passes as soon as the bucket has room
    for it (one larger than the bucket, as soon as what does not fit has drained). The slots are one server of `slots` times
    the speed: a request's own time in service is part of its latency, what it makes others wait is `hold_s / slots`.

    Args:
        asks: `[E, D]` bool.
        arrival_s, tokens, hold_s: `[E, D]` float64 on the grid of `on_grid`.
        drained_s, free_s: `[E]`, of the requests before, relative to this interval's beginning.
    """
    order = arrival_s.masked_fill(~asks, torch.inf).argsort(dim=1, stable=True)
    asking = asks.gather(1, order)
    arrives_s = arrival_s.gather(1, order).masked_fill(~asking, -torch.inf)
    fill_s = on_grid(torch.where(asking, tokens.gather(1, order) / rate, 0.0))
    empty_s = work_off(arrives_s, fill_s, drained_s)
    released_s = torch.maximum(arrives_s, empty_s - burst / rate)
    holds_s = on_grid(torch.where(asking, hold_s.gather(1, order) / slots, 0.0))
    done_s = work_off(released_s.masked_fill(~asking, -torch.inf), holds_s, free_s)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return Admission(
        released_s=released_s.gather(1, place),
        started_s=(done_s - holds_s).gather(1, place),
        drained_s=empty_s[:, -1],
        free_s=done_s[:, -1],
    )
