"""Least-recently-used stores: of patches on vehicles, and of fetched patches on edges.

A patch on a vehicle is one integer, `code = service * V + version` (V versions at most), or EMPTY.
"""

from __future__ import annotations

import torch
from torch import Tensor

EMPTY = -1


def find(store: Tensor, service: Tensor, num_versions: int) -> tuple[Tensor, Tensor]:
    """Where a vehicle holds a patch for a service.

    Args:
        store: `[P, ...]` int64 codes, most recently used first.
        service: `[...]` int64.

    Returns:
        `[P, ...]` bool, True at the (at most one) place of the patch, and `[...]` int64, its code or EMPTY.
    """
    first = service * num_versions
    at = (store >= first) & (store < first + num_versions)
    return at, torch.where(at, store, EMPTY).amax(0)


def touch(store: Tensor, at: Tensor, code: Tensor, used: Tensor) -> Tensor:
    """The store after a patch was used (it moves to the front) or installed (what falls off the end is gone).

    Args:
        at: `[P, ...]` bool, where the patch is; nowhere for a new one.
        code: `[...]` int64, the patch.
        used: `[...]` bool; where False the store stays as it is.
    """
    shifted = torch.cat([code[None], store[:-1]])
    # Places up to the patch's old one move back by one; behind it nothing changes.
    behind = at.cumsum(0) > at
    return torch.where(used & ~behind, shifted, store)


def install_on_edge(
    version: Tensor, last_used: Tensor, primary: Tensor, fetched: Tensor, new_version: Tensor, now: int, capacity: int
) -> tuple[Tensor, Tensor]:
    """Edges' stores after a slot's fetches: where there is no room, the least recently used patch goes.

    Of several such patches, the one of the lowest service goes.

    Args:
        version: `[E, M, K]` int64, EMPTY where a service is not answerable.
        last_used: `[E, M, K]` int64 slot numbers.
        primary: `[M, K]` bool, services that never leave.
        fetched: `[E, M, K]` bool, at most one per edge.
        new_version: `[E, M, K]` int64, of what would be fetched.
        now: The slot.
        capacity: Fetched patches per edge.

    Returns:
        `version` and `last_used`.
    """
    removable = (version != EMPTY) & ~primary
    full = (removable & ~fetched).sum(-1) >= capacity
    services = version.shape[-1]
    age = torch.where(removable & ~fetched, now - last_used, EMPTY) * services - torch.arange(services, device=version.device)
    oldest = torch.zeros_like(removable).scatter_(-1, age.argmax(-1, keepdim=True), True)
    evicted = oldest & (full & fetched.any(-1))[..., None]
    version = torch.where(fetched, new_version, version).masked_fill(evicted, EMPTY)
    return version, torch.where(fetched, now, last_used)
