"""T-Drive: one text file per taxi, lines `id,YYYY-MM-DD HH:MM:SS,longitude,latitude` in WGS84, no header."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.errors import InputError
from envs.vehicular.trace_data import MAX_GAP_S, BoundingBox, Floats, Ints, SlotSamples, Trace, TraceReport, project

MAX_SPEED_MS = 120.0 / 3.6
_MAX_BAD_SHARE = 0.2
_TIME_LENGTH = len("2008-02-02 15:36:08")

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class _Points:
    """Position reports: `[P]` arrays of equal length.

    Attributes:
        taxi: Number of the taxi within its file.
        time_s: Seconds since 1970 in the clock of the data.
        lon, lat: Degrees.
    """

    taxi: Ints
    time_s: Ints
    lon: Floats
    lat: Floats

    def where(self, index: Bools | Ints) -> _Points:
        return _Points(self.taxi[index], self.time_s[index], self.lon[index], self.lat[index])


@dataclass
class _Tally:
    """What has been counted over the files read so far."""

    box: BoundingBox | None
    lines: int = 0
    bad_lines: int = 0
    first_bad_line: str = ""
    points: int = 0
    empty_files: int = 0
    vehicles: int = 0
    splits: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    # West, south, east and north end of the points before those outside of the box are dropped.
    extent: tuple[float, float, float, float] = (math.inf, math.inf, -math.inf, -math.inf)

    def widen_extent(self, lon: Floats, lat: Floats) -> None:
        west, south, east, north = self.extent
        self.extent = lon.min(initial=west), lat.min(initial=south), lon.max(initial=east), lat.max(initial=north)


def load_tdrive(
    path: Path, slot_s: float, box: BoundingBox | None, first_slot: int = 0, num_slots: int | None = None
) -> tuple[Trace, TraceReport]:
    """A trace from a folder of taxi files, or from one file, that may then hold several taxis.

    Files are read one by one; only positions at slots are kept. Slots lie at multiples of `slot_s` in the data's clock.
    Dropped are, in this order: exact repetitions, points at (0, 0), points that a taxi could only have reached from the one
    before faster than at 120 km/h, and points outside of `box`. A gap over 10 minutes in what is left, as when a taxi is
    outside of the box, ends a vehicle and begins another.

    Raises:
        InputError: No file, no readable point, over 20 % of the lines no position report, or nothing left to keep.
    """
    files = _files(path)
    tally = _Tally(box)
    parts = [_slot_samples(_clean(_read(file, tally), tally), slot_s, tally) for file in files]
    _complain_if_unusable(path, files, tally)
    lon, lat = np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
    slot = np.concatenate([part.slot for part in parts])
    if not len(slot):
        raise InputError(f"{path}: no vehicle is there at the start of any slot of {slot_s:g} s")
    centre_lat = (lat.min() + lat.max()) / 2 if box is None else (box.south + box.north) / 2
    samples = SlotSamples(slot, np.concatenate([part.vehicle for part in parts]), *project(lon, lat, centre_lat))
    kept_vehicles = len(np.unique(samples.vehicle))
    source = f"T-Drive {path.name}"
    samples = samples.window(first_slot, num_slots, source)
    trace = samples.to_trace(slot_s, source)
    return trace, _report(trace, samples, kept_vehicles, files, tally)


def _report(trace: Trace, samples: SlotSamples, kept_vehicles: int, files: list[Path], tally: _Tally) -> TraceReport:
    slots, vehicles = trace.present.shape
    return TraceReport(
        trace.source,
        vehicles,
        slots,
        trace.slot_s,
        start=_clock(samples.slot.min() * trace.slot_s),
        end=_clock(samples.slot.max() * trace.slot_s),
        points_read=tally.points,
        dropped=dict(tally.dropped),
        splits=tally.splits,
        short_tracks=tally.vehicles - kept_vehicles,
        files=len(files),
        empty_files=tally.empty_files,
        lines_read=tally.lines,
        bad_lines=tally.bad_lines,
        first_bad_line=tally.first_bad_line,
    )


def _clock(time_s: float) -> str:
    return str(np.datetime64(round(time_s), "s")).replace("T", " ")


def _files(path: Path) -> list[Path]:
    """The `.txt` files, by number where their names are numbers."""
    if not path.is_dir():
        return [path]
    try:
        files = [file for file in path.iterdir() if file.suffix.lower() == ".txt"]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not files:
        raise InputError(f"{path}: no .txt file in the folder: expected one T-Drive file per taxi")
    return sorted(files, key=lambda file: (int(file.stem) if file.stem.isdecimal() else math.inf, file.name))


def _complain_if_unusable(path: Path, files: list[Path], tally: _Tally) -> None:
    if tally.empty_files == len(files):
        raise InputError(f"{path}: " + ("the file is empty" if len(files) == 1 else f"all {len(files):,} files are empty"))
    if tally.bad_lines > _MAX_BAD_SHARE * tally.lines:
        raise InputError(
            f"{path}: {tally.bad_lines:,} of {tally.lines:,} lines are no `id,YYYY-MM-DD HH:MM:SS,longitude,latitude`, "
            f"the first is {tally.first_bad_line}"
        )
    if tally.dropped.total() == tally.points:
        west, south, east, north = tally.extent
        if math.isinf(west):
            raise InputError(f"{path}: all {tally.points:,} points are at (0, 0)")
        there = f"{west:.4f} to {east:.4f} E, {south:.4f} to {north:.4f} N"
        raise InputError(f"{path}: none of {tally.points:,} points lies in the box {tally.box}: they lie in {there}")


def _read(path: Path, tally: _Tally) -> _Points:
    """All points of a file. Lines that are none are tallied."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    tally.empty_files += not lines
    tally.lines += len(lines)
    try:
        points = _parse(lines)
    except ValueError:
        points = _parse(_good_lines(path, text, tally))
    tally.points += len(points.lon)
    return points


def _parse(lines: list[str]) -> _Points:
    """All lines at once.

    Raises:
        ValueError: Some line is not a position report.
    """
    rows = [line.split(",") for line in lines]
    if any(len(row) != 4 or len(row[1]) != _TIME_LENGTH for row in rows):
        raise ValueError("expected 4 fields: id,YYYY-MM-DD HH:MM:SS,longitude,latitude")
    names, times, lons, lats = zip(*rows, strict=True) if rows else ((), (), (), ())
    time_s = np.array(times, "datetime64[s]").astype(np.int64)
    lon, lat = np.array(lons, np.float64), np.array(lats, np.float64)
    if not ((np.abs(lon) <= 180).all() and (np.abs(lat) <= 90).all()):
        raise ValueError("longitude or latitude is not within +-180 or +-90 degrees")
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    taxi = np.zeros(len(rows), np.int64) if len(number) < 2 else np.array([number[name] for name in names])
    return _Points(taxi, time_s, lon, lat)


def _good_lines(path: Path, text: str, tally: _Tally) -> list[str]:
    """The lines that are position reports, found one by one; the others are tallied."""
    good = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.isspace():
            continue
        try:
            _parse([line])
        except ValueError as error:
            tally.bad_lines += 1
            tally.first_bad_line = tally.first_bad_line or f"{path.name}:{number}: {line.strip()[:60]!r}: {error}"
        else:
            good.append(line)
    return good


def _clean(points: _Points, tally: _Tally) -> _Points:
    """The points to keep, by taxi and time."""

    def drop(reason: str, bad: Bools) -> None:
        nonlocal points
        tally.dropped[reason] += int(bad.sum())
        points = points.where(~bad)

    drop("repetition", _is_repetition(points))
    drop("at (0, 0)", (points.lon == 0) & (points.lat == 0))
    points = points.where(np.lexsort((points.time_s, points.taxi)))
    drop("jump over 120 km/h", _is_jump(points))
    tally.widen_extent(points.lon, points.lat)
    if tally.box is not None:
        drop("outside of the box", ~tally.box.contains(points.lon, points.lat))
    return points


def _is_repetition(points: _Points) -> Bools:
    """`[P]`: whether an equal row stands before."""
    keys = (points.lat, points.lon, points.time_s, points.taxi)
    order = np.lexsort(keys)
    same = np.ones(max(len(order) - 1, 0), np.bool_)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    repeated = np.zeros(len(order), np.bool_)
    repeated[order[1:][same]] = True
    return repeated


def _is_jump(points: _Points) -> Bools:
    """`[P]`, for points by taxi and time: whether the taxi cannot have come there from the last point that is no jump.

    Where the first point of a vehicle is the one that is off (the two after it agree with each other and not with it), it is
    the jump.
    """
    index = np.arange(len(points.lon))
    jump = np.zeros(len(index), np.bool_)
    first = here = 0
    for good in np.flatnonzero(_too_far(points, index[:-1], index[1:])).tolist():
        if good < here:
            continue  # the walk from an earlier jump went past this one
        here = good + 1
        if (good == first or _is_cut(points, good - 1, good)) and _is_off(points, good):
            jump[good] = True
            first = here
            continue
        while here < len(index) and _too_far(points, good, here):
            jump[here] = True
            here += 1
        if here < len(index) and _is_cut(points, good, here):
            first = here
    return jump


def _is_off(points: _Points, first: int) -> bool:
    """Whether the two points after the first of a vehicle agree with each other and not with it."""
    a, b, c = first, first + 1, first + 2
    return bool(c < len(points.lon) and _too_far(points, a, b) and _too_far(points, a, c) and not _too_far(points, b, c))


def _is_cut(points: _Points, a: int | Ints, b: int | Ints) -> Bools:
    """Whether points `a` and `b` (indices) belong to different vehicles: another taxi, or a gap between them."""
    return (points.taxi[a] != points.taxi[b]) | (points.time_s[b] - points.time_s[a] > MAX_GAP_S)


def _too_far(points: _Points, a: int | Ints, b: int | Ints) -> Bools:
    """Whether going from point `a` to point `b` (indices) of one vehicle would take over 120 km/h."""
    x_m, y_m = project(points.lon[b] - points.lon[a], points.lat[b] - points.lat[a], points.lat[a])
    limit_m = MAX_SPEED_MS * (points.time_s[b] - points.time_s[a])
    return ~_is_cut(points, a, b) & (np.hypot(x_m, y_m) > limit_m)


def _slot_samples(points: _Points, slot_s: float, tally: _Tally) -> SlotSamples:
    """Longitude (x) and latitude (y) at each slot, between two points of a vehicle on a straight line."""
    index = np.arange(len(points.lon))
    cut = _is_cut(points, index[:-1], index[1:])
    tally.splits += int((cut & (points.taxi[:-1] == points.taxi[1:])).sum())
    bounds = [0, *(np.flatnonzero(cut) + 1).tolist(), len(points.lon)] if len(points.lon) else [0]
    slots, vehicles, lons, lats = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0)]
    for start, end in itertools.pairwise(bounds):
        time_s = points.time_s[start:end]
        slot = np.arange(math.ceil(time_s[0] / slot_s), math.floor(time_s[-1] / slot_s) + 1)
        slots.append(slot)
        vehicles.append(np.full(len(slot), tally.vehicles))
        lons.append(np.interp(slot * slot_s, time_s, points.lon[start:end]))
        lats.append(np.interp(slot * slot_s, time_s, points.lat[start:end]))
        tally.vehicles += 1
    return SlotSamples(np.concatenate(slots), np.concatenate(vehicles), np.concatenate(lons), np.concatenate(lats))
