"""Where vehicles are and where edges stand: the one import for everything about traces."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.errors import InputError
from envs.vehicular.fcd import load_fcd
from envs.vehicular.synthetic_traces import City, synthetic_trace
from envs.vehicular.tdrive import load_tdrive
from envs.vehicular.trace_data import XICHENG, BoundingBox, Floats, Trace, TraceReport

__all__ = [
    "XICHENG",
    "BoundingBox",
    "City",
    "Trace",
    "TraceReport",
    "edge_positions",
    "grid_positions",
    "load_trace",
    "synthetic_trace",
]

_KMEANS_POINTS = 20_000
_KMEANS_ROUNDS = 100


def load_trace(
    path: str | Path,
    slot_s: float = 60.0,
    bounding_box: BoundingBox | None = XICHENG,
    first_slot: int = 0,
    num_slots: int | None = None,
) -> tuple[Trace, TraceReport]:
    """A trace from files: a folder of T-Drive files or one such `.txt`, or SUMO FCD as `.xml` or `.xml.gz`.

    Args:
        bounding_box: What T-Drive points are cropped to; None keeps all. FCD is never cropped: its network is the choice.
        first_slot, num_slots: The part of the data to keep (None: to its end). A week of a city is too much to hold at once.

    Raises:
        InputError: There is nothing at `path`, or what there is cannot be read, is broken, or leaves no vehicle.
    """
    path = Path(path)
    if not (math.isfinite(slot_s) and slot_s > 0):
        raise InputError(f"slot_s = {slot_s}: expected a positive number of seconds")
    if first_slot < 0 or (num_slots is not None and num_slots < 1):
        raise InputError(f"first_slot = {first_slot}, num_slots = {num_slots}: expected at least 0 and at least 1")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir() or path.suffix.lower() == ".txt":
        return load_tdrive(path, slot_s, bounding_box, first_slot, num_slots)
    if path.name.lower().endswith((".xml", ".xml.gz")):
        return load_fcd(path, slot_s, first_slot, num_slots)
    raise InputError(f"{path}: unknown kind of trace: expected a folder or .txt (T-Drive), or .xml or .xml.gz (SUMO FCD)")


def grid_positions(area_m: tuple[float, float], num_edges: int) -> Tensor:
    """`[M, 2]` float32: centres of `num_edges` cells of equal area that tile the area in rows, from the lower left on.

    The number of rows is the one whose cells are nearest to squares, the smaller of two (6 edges on a square: 3 x 2).
    Where it does not divide `num_edges`, rows differ by one cell.
    """
    width, height = area_m

    def elongation(rows: int) -> float:
        return round(abs(math.log((width / (num_edges / rows)) / (height / rows))), 9)

    rows = min(range(1, num_edges + 1), key=elongation)
    centres, bottom = [], 0.0
    for row in range(rows):
        columns = num_edges // rows + (row < num_edges % rows)
        row_height = height * columns / num_edges
        centres += [((column + 0.5) * width / columns, bottom + row_height / 2) for column in range(columns)]
        bottom += row_height
    return torch.tensor(centres, dtype=torch.float32)


def edge_positions(trace: Trace, num_edges: int) -> Tensor:
    """`[M, 2]` float32 metres: k-means centres of where vehicles are over all slots, from west to east.

    k-means++ with a fixed seed on at most 20,000 of the positions: the same trace gives the same edges.

    Raises:
        InputError: Vehicles are at fewer places than there are edges.
    """
    points = trace.positions[trace.present].double().numpy()
    rng = np.random.default_rng(0)
    if len(points) > _KMEANS_POINTS:
        points = points[rng.choice(len(points), _KMEANS_POINTS, replace=False)]
    places = len(np.unique(points, axis=0))
    if places < num_edges:
        raise InputError(f"{trace.source}: {num_edges} edges but vehicles at only {places} different places")
    centres = _kmeans(points, _spread_out(points, num_edges, rng))
    return torch.from_numpy(centres[np.lexsort((centres[:, 1], centres[:, 0]))]).float()


def _spread_out(points: Floats, count: int, rng: np.random.Generator) -> Floats:
    """`[M, 2]` of the points, each drawn with probability as its squared distance to those before (k-means++)."""
    chosen = [points[rng.integers(len(points))]]
    for _ in range(count - 1):
        weight = _squared_distances(points, np.array(chosen)).min(axis=1)
        chosen.append(points[rng.choice(len(points), p=weight / weight.sum())])
    return np.array(chosen)


def _kmeans(points: Floats, centres: Floats) -> Floats:
    """Lloyd's rounds until nothing changes. A centre that lost all its points stays where it is."""
    for _ in range(_KMEANS_ROUNDS):
        nearest = _squared_distances(points, centres).argmin(axis=1)
        count = np.bincount(nearest, minlength=len(centres))[:, None]
        total = np.stack([np.bincount(nearest, points[:, axis], len(centres)) for axis in range(2)], axis=1)
        moved = np.where(count > 0, total / np.maximum(count, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _squared_distances(points: Floats, centres: Floats) -> Floats:
    """`[P, M]`."""
    return ((points[:, None] - centres) ** 2).sum(axis=-1)
