"""Which edge is an expert for which service, and which expert serves an edge."""

from __future__ import annotations

import torch
from torch import Tensor


def primary_services(num_edges: int, num_services: int) -> Tensor:
    """`[M, K]` bool: edge m is the expert for service `m mod K`."""
    return torch.arange(num_services) == torch.arange(num_edges)[:, None] % num_services


def nearest_experts(edges_m: Tensor, num_services: int) -> Tensor:
    """`[M, K, X]` int64: each service's experts from near to far for each edge, filled up with M (the cloud).

    X is one more than the most experts that a service has.
    """
    edges = len(edges_m)
    primary = primary_services(edges, num_services)
    distance_m = torch.cdist(edges_m.double(), edges_m.double())
    near = distance_m[:, None].masked_fill(~primary.T, torch.inf).sort(dim=2, stable=True)
    experts = near.indices.masked_fill(near.values.isinf(), edges)
    return torch.nn.functional.pad(experts[..., : int(primary.sum(0).max())], (0, 1), value=edges)


def working_experts(experts: Tensor, up: Tensor) -> Tensor:
    """`[E, M, K]` int64: the nearest expert that works, M (the cloud) where none does.

    Args:
        experts: What `nearest_experts` returned.
        up: `[E, M]` bool.
    """
    up = torch.nn.functional.pad(up, (0, 1), value=True)
    first = up[:, experts].to(torch.uint8).argmax(-1, keepdim=True)
    return experts.expand(len(up), -1, -1, -1).gather(-1, first).squeeze(-1)
