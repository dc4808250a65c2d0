"""What a trace is, and how samples of vehicles at slots become one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from envs.errors import InputError

METRES_PER_DEGREE = math.pi / 180.0 * 6_371_008.8  # of latitude, on the sphere with the Earth's mean radius
MAX_GAP_S = 600.0
MAX_ENTRIES = 200_000_000  # slots x vehicles of one trace: 9 bytes each

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class BoundingBox(BaseModel):
    """A rectangle in WGS84 degrees. The default is Xicheng, a district of Beijing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    west: float = Field(default=116.3146, ge=-180, le=180)
    south: float = Field(default=39.8674, ge=-90, le=90)
    east: float = Field(default=116.3932, ge=-180, le=180)
    north: float = Field(default=39.9715, ge=-90, le=90)

    @model_validator(mode="after")
    def _has_an_inside(self) -> BoundingBox:
        if not (self.west < self.east and self.south < self.north):
            raise ValueError(f"the box {self} is empty: west must be below east and south below north")
        return self

    def __str__(self) -> str:
        return f"{self.west:.4f} to {self.east:.4f} E, {self.south:.4f} to {self.north:.4f} N"

    def contains(self, lon: Floats, lat: Floats) -> NDArray[np.bool_]:
        """`[P]` bool: whether each point lies in the box, borders included."""
        return (lon >= self.west) & (lon <= self.east) & (lat >= self.south) & (lat <= self.north)


XICHENG = BoundingBox()


def project(lon: Floats, lat: Floats, centre_lat: float | Floats) -> tuple[Floats, Floats]:
    """Metres east and north of (0, 0), by the equirectangular projection that is true to scale at latitude `centre_lat`."""
    return lon * METRES_PER_DEGREE * np.cos(np.radians(centre_lat)), lat * METRES_PER_DEGREE


@dataclass(frozen=True)
class Trace:
    """Where vehicles are at the start of each slot.

    Attributes:
        positions: `[T, N, 2]` float32, metres east and north of the lower-left corner of all positions; 0 where absent.
        present: `[T, N]` bool, whether the vehicle is on the road in that slot.
        slot_s: Seconds between slots.
        source: One line for people.
    """

    positions: Tensor
    present: Tensor
    slot_s: float
    source: str


@dataclass(frozen=True)
class TraceReport:
    """What a loader kept, what it dropped and why.

    Attributes:
        start, end: Times of the first and the last slot as the source writes them.
        points_read: Position reports that could be read, before any were dropped.
        dropped: Reason to number of points.
        splits: Cuts at gaps over 10 minutes; each makes one more vehicle.
        short_tracks: Vehicles that were dropped because they were never there at a slot's start.
        lines_read, bad_lines, first_bad_line: Lines of text files, those that are no position report, and the first of them.
    """

    source: str
    vehicles: int
    slots: int
    slot_s: float
    start: str
    end: str
    points_read: int
    dropped: dict[str, int] = field(default_factory=dict)
    splits: int = 0
    short_tracks: int = 0
    files: int = 1
    empty_files: int = 0
    lines_read: int = 0
    bad_lines: int = 0
    first_bad_line: str = ""

    def lines(self) -> list[str]:
        """The report for people."""
        empty = f", {self.empty_files:,} of them empty" if self.empty_files else ""
        lines = [
            f"source: {self.source}",
            f"files: {self.files:,}{empty}",
            f"vehicles: {self.vehicles:,}",
            f"slots: {self.slots:,} of {self.slot_s:g} s, {self.start} to {self.end}",
            f"points read: {self.points_read:,}",
        ]
        for reason, count in self.dropped.items():
            lines.append(f"  dropped, {reason}: {count:,} ({count / max(self.points_read, 1):.2%})")
        lines.append(f"cuts at gaps over {MAX_GAP_S / 60:g} min: {self.splits:,}")
        lines.append(f"vehicles dropped, between two slots only: {self.short_tracks:,}")
        if self.bad_lines:
            share = self.bad_lines / self.lines_read
            lines.append(f"lines not understood: {self.bad_lines:,} ({share:.2%}), the first: {self.first_bad_line}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


@dataclass(frozen=True)
class SlotSamples:
    """Positions of vehicles at slots, one row each, in any order: `[P]` arrays of equal length.

    Attributes:
        slot: Slot number; only differences matter.
        vehicle: Vehicle number, counted from 0.
        x, y: Metres, from any origin.
    """

    slot: Ints
    vehicle: Ints
    x: Floats
    y: Floats

    def window(self, first_slot: int, num_slots: int | None, source: str) -> SlotSamples:
        """The samples of `num_slots` slots (None: of all that follow) from the `first_slot`-th on.

        Raises:
            InputError: No sample lies there.
        """
        slot = self.slot - self.slot.min()
        inside = (slot >= first_slot) & (slot < (math.inf if num_slots is None else first_slot + num_slots))
        if not inside.any():
            raise InputError(f"{source}: no vehicle in the chosen slots: first_slot = {first_slot} of {slot.max() + 1:,} slots")
        return SlotSamples(self.slot[inside], self.vehicle[inside], self.x[inside], self.y[inside])

    def to_trace(self, slot_s: float, source: str) -> Trace:
        """The dense form, with vehicles in the order of their numbers and without those that have no sample.

        Raises:
            InputError: It would be too large for memory.
        """
        slot = self.slot - self.slot.min()
        numbers, vehicle = np.unique(self.vehicle, return_inverse=True)
        num_slots = int(slot.max()) + 1
        if num_slots * len(numbers) > MAX_ENTRIES:
            gib = num_slots * len(numbers) * 9 / 2**30
            raise InputError(
                f"{source}: {len(numbers):,} vehicles x {num_slots:,} slots need {gib:.1f} GiB: "
                f"load a part with first_slot and num_slots (the busiest hour starts at slot {_busiest_hour(slot, slot_s)})"
            )
        positions = np.zeros((num_slots, len(numbers), 2), np.float32)
        present = np.zeros((num_slots, len(numbers)), np.bool_)
        positions[slot, vehicle, 0] = self.x - self.x.min()
        positions[slot, vehicle, 1] = self.y - self.y.min()
        present[slot, vehicle] = True
        return Trace(torch.from_numpy(positions), torch.from_numpy(present), slot_s, source)


def _busiest_hour(slot: Ints, slot_s: float) -> int:
    """The slot from which on an hour holds most samples."""
    hour = max(1, round(3600 / slot_s))
    total = np.concatenate([[0], np.cumsum(np.bincount(slot))])
    return int(np.argmax(total[hour:] - total[:-hour])) if len(total) > hour else 0
