"""When subtasks start and end on their servers (paper, Sec. 3.2), for many episodes at once.

E  parallel episodes      I  tasks      L  locations, the cloud last
"""

from __future__ import annotations

import torch
from torch import Tensor


def serve(location: Tensor, data_ready_s: Tensor, service_s: Tensor, free_s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs at most one subtask of each task: edges first come, first served; the cloud at once.

    Subtasks for the same edge are served by `data_ready_s`, ties by task number. With S the service times, P their running sum
    and EN_k = max(WT_k, EN_{k-1}) + S_k from EN_0 = free, unrolling gives
    EN_k = P_k + max(free, max_{j <= k} (WT_j - P_{j-1})).

    Args:
        location: `[E, I]` int64, L where a task runs nothing.
        data_ready_s: `[E, I]` float64, WT.
        service_s: `[E, I]` float64, input transfer and compute.
        free_s: `[E, L-1]` float64, when each edge ends what it has accepted before.

    Returns:
        ST and EN `[E, I]` (no meaning where a task runs nothing), the new `free_s`, and each task's place `[E, I]` int64 in
        the order of acceptance (what runs nothing comes last).
    """
    edges = free_s.shape[1]
    runs = location <= edges
    order = data_ready_s.masked_fill(~runs, torch.inf).argsort(dim=1, stable=True)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    at, ready_s, holds_s = location.gather(1, order), data_ready_s.gather(1, order), service_s.gather(1, order)

    edge = torch.arange(edges, device=at.device)[:, None]
    on_edge = at[:, None] == edge  # [E, L-1, I]
    held_s = torch.where(on_edge, holds_s[:, None], 0.0)
    through_s = held_s.cumsum(2)
    latest_s = torch.where(on_edge, ready_s[:, None] - (through_s - held_s), -torch.inf).cummax(2).values
    end_on_edge_s = through_s + torch.maximum(latest_s, free_s[..., None])

    end_s = end_on_edge_s.gather(1, at.clamp(max=edges - 1)[:, None]).squeeze(1)
    end_s = torch.where(at < edges, end_s, ready_s + holds_s).gather(1, place)
    return end_s - service_s, end_s, end_on_edge_s[..., -1], place
