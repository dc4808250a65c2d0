"""SUMO's floating-car data (FCD): `<fcd-export><timestep time=…><vehicle id=… x=… y=… /></timestep></fcd-export>`."""

from __future__ import annotations

import gzip
import math
import zlib
from array import array
from pathlib import Path
from typing import IO
from xml.parsers import expat

import numpy as np

from envs.errors import InputError
from envs.vehicular.trace_data import MAX_GAP_S, Floats, SlotSamples, Trace, TraceReport, project

_CHUNK_BYTES = 1 << 20
_GEO_SPAN_DEGREES = 2.0


def load_fcd(path: Path, slot_s: float, first_slot: int = 0, num_slots: int | None = None) -> tuple[Trace, TraceReport]:
    """A trace from an FCD file, plain or gzipped, read as a stream: what is kept grows with the slots, not with the file.

    Slots are counted from the first time at which there is a vehicle; between two rows a vehicle is on a straight line.
    Coordinates within +-180 and +-90 that span less than 2 in both directions are longitude and latitude
    (`--fcd-output.geo`), as no traffic fits on two metres: they are projected about their centre.

    Raises:
        InputError: The file cannot be read, is truncated, is not FCD, declares a document type, or has no vehicle.
    """
    reader = _FcdReader(path, slot_s)
    reader.read()
    if not reader.rows:
        raise InputError(f"{path}: no vehicle in the file: expected <vehicle id= x= y=> within <timestep time=>")
    source = f"SUMO floating-car data {path.name}"
    samples = reader.samples().window(first_slot, num_slots, source)
    trace = samples.to_trace(slot_s, source)
    slots, vehicles = trace.present.shape
    start_s = reader.start_s + float(samples.slot.min()) * slot_s
    report = TraceReport(
        source,
        vehicles,
        slots,
        slot_s,
        start=f"{start_s:g} s",
        end=f"{start_s + (slots - 1) * slot_s:g} s",
        points_read=reader.rows,
        splits=reader.splits,
        short_tracks=reader.vehicles - len(np.unique(reader.vehicle)),
    )
    return trace, report


class _FcdReader:
    """Follows every vehicle through the file and notes where it is at each slot."""

    def __init__(self, path: Path, slot_s: float) -> None:
        self.path, self.slot_s = path, slot_s
        self.rows = self.vehicles = self.splits = 0
        self.start_s = math.nan
        self.slot, self.vehicle = array("q"), array("q")
        self.x, self.y = array("d"), array("d")
        self._depth = 0
        self._time_s: float | None = None
        self._last_time_s = -math.inf
        self._last_row: dict[str, tuple[int, float, float, float]] = {}
        self._parser = expat.ParserCreate("utf-8")  # what SUMO writes
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype

    def read(self) -> None:
        try:
            with _open(self.path) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    self._parser.Parse(chunk, False)
            self._parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise InputError(f"{self.path}:{error.lineno}: broken or truncated XML: {expat.ErrorString(error.code)}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{self.path}: broken or truncated gzip: {error}") from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None

    def samples(self) -> SlotSamples:
        x, y = np.array(self.x), np.array(self.y)
        if _is_geographic(x, y):
            x, y = project(x, y, (y.min() + y.max()) / 2)
        return SlotSamples(np.array(self.slot), np.array(self.vehicle), x, y)

    def _error(self, complaint: str) -> InputError:
        return InputError(f"{self.path}:{self._parser.CurrentLineNumber}: {complaint}")

    def _refuse_doctype(self, *_: object) -> None:
        raise self._error("a document type declaration, which FCD has not and which is refused because it can define entities")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth == 1 and tag != "fcd-export":
            raise self._error(f"<{tag}> is not SUMO floating-car data: expected <fcd-export>")
        if tag == "timestep":
            self._time_s = self._number(tag, attributes, "time")
            if self._time_s <= self._last_time_s:
                raise self._error(f"timestep {self._time_s:g} s after {self._last_time_s:g} s: times must increase")
            self._last_time_s = self._time_s
        elif tag == "vehicle":
            if self._time_s is None:
                raise self._error("<vehicle> outside of a <timestep>")
            if "id" not in attributes:
                raise self._error("<vehicle> has no id")
            self._row(attributes["id"], self._time_s, self._number(tag, attributes, "x"), self._number(tag, attributes, "y"))

    def _end(self, tag: str) -> None:
        self._depth -= 1
        if tag == "timestep":
            self._time_s = None

    def _number(self, tag: str, attributes: dict[str, str], key: str) -> float:
        if key not in attributes:
            raise self._error(f"<{tag}> has no {key}")
        try:
            value = float(attributes[key])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self._error(f"<{tag}> has {key} = {attributes[key]!r}: expected a number")
        return value

    def _row(self, name: str, time_s: float, x: float, y: float) -> None:
        """Notes the vehicle's positions at all slots since its last row."""
        if not self.rows:
            self.start_s = time_s
        self.rows += 1
        now = self._in_slots(time_s)
        vehicle, last, last_x, last_y = self._last_row.get(name, (-1, -math.inf, x, y))
        if last == now:
            raise self._error(f"vehicle {name!r} is twice in timestep {time_s:g} s")
        if (now - last) * self.slot_s > MAX_GAP_S:
            self.splits += vehicle >= 0
            vehicle, self.vehicles = self.vehicles, self.vehicles + 1
            if now.is_integer():
                self._note(int(now), vehicle, x, y)
        else:
            for slot in range(math.floor(last) + 1, math.floor(now) + 1):
                share = (slot - last) / (now - last)
                self._note(slot, vehicle, last_x + share * (x - last_x), last_y + share * (y - last_y))
        self._last_row[name] = (vehicle, now, x, y)

    def _in_slots(self, time_s: float) -> float:
        """Time since the start in slots; a whole number where only rounding keeps it from being one."""
        slots = (time_s - self.start_s) / self.slot_s
        return float(round(slots)) if abs(slots - round(slots)) < 1e-6 else slots

    def _note(self, slot: int, vehicle: int, x: float, y: float) -> None:
        self.slot.append(slot)
        self.vehicle.append(vehicle)
        self.x.append(x)
        self.y.append(y)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _is_geographic(x: Floats, y: Floats) -> bool:
    within = max(abs(x.min()), abs(x.max())) <= 180 and max(abs(y.min()), abs(y.max())) <= 90
    return bool(within and np.ptp(x) < _GEO_SPAN_DEGREES and np.ptp(y) < _GEO_SPAN_DEGREES)
