"""Makes floating-car data with the real SUMO simulator (the optional package `eclipse-sumo`)."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from envs.errors import InputError

_COLUMNS, _ROWS, _BLOCK_M = 9, 13, 420
_RAMP_SHARE = 0.2
_SECONDS_PER_STOPOVER = 120  # a third of what a way between two random streets takes


def generate_sumo_trace(out: Path, num_vehicles: int, minutes: int, seed: int) -> None:
    """Simulates vehicles on a grid of 9 x 13 junctions with traffic lights and writes where they are each minute.

    Vehicles enter one after the other in the first fifth of the time and drive between random streets until its end.

    Args:
        out: The FCD file to write, `.xml` or `.xml.gz`. It appears when it is complete, or not at all.
        seed: The same seed gives the same traffic.

    Raises:
        InputError: An argument is out of range, the folder of `out` is missing, or SUMO is not installed.
        RuntimeError: SUMO failed.
    """
    if num_vehicles < 1 or minutes < 1 or seed < 0:
        raise InputError(f"num_vehicles = {num_vehicles}, minutes = {minutes}, seed = {seed}: expected at least 1, 1 and 0")
    if not out.name.endswith((".xml", ".xml.gz")):
        raise InputError(f"{out}: expected a name that ends in .xml or .xml.gz")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder")
    home = _sumo_home()
    with tempfile.TemporaryDirectory(prefix=".sumo-", dir=out.parent) as name:
        folder = Path(name)
        fcd = folder / ("fcd.xml.gz" if out.suffix == ".gz" else "fcd.xml")
        _make_network(home, folder / "net.xml", seed)
        _write_trips(folder / "net.xml", folder / "trips.xml", num_vehicles, minutes, seed)
        files = ["--net-file", "net.xml", "--route-files", "trips.xml", "--fcd-output", fcd.name]
        times = ["--device.fcd.period", "60", "--end", str(60 * minutes)]
        _run(home, "sumo", folder, *files, *times, "--seed", str(seed), "--no-step-log", "--no-warnings")
        os.replace(fcd, out)


def _sumo_home() -> Path:
    try:
        return Path(importlib.import_module("sumo").SUMO_HOME)
    except ImportError:
        raise InputError("SUMO is not installed: pip install eclipse-sumo==1.28.0") from None


def _run(home: Path, program: str, folder: Path, *arguments: str) -> None:
    """Runs a program of SUMO in `folder`."""
    command = [str(home / "bin" / program), *arguments]
    result = subprocess.run(command, cwd=folder, env={**os.environ, "SUMO_HOME": str(home)}, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{program} failed with exit code {result.returncode}: {result.stderr.strip() or 'no message'}")


def _make_network(home: Path, net: Path, seed: int) -> None:
    grid = ["--grid.x-number", str(_COLUMNS), "--grid.y-number", str(_ROWS), "--grid.length", str(_BLOCK_M)]
    options = ["--default.lanenumber", "2", "--default-junction-type", "traffic_light", "--seed", str(seed)]
    _run(home, "netgenerate", net.parent, "--grid", *grid, *options, "--output-file", net.name)


def _write_trips(net: Path, trips: Path, num_vehicles: int, minutes: int, seed: int) -> None:
    """One trip per vehicle, with as many random streets on the way as last until the end."""
    edges = [edge.get("id", "") for edge in ElementTree.parse(net).iter("edge") if edge.get("function") != "internal"]
    rng = random.Random(seed)
    apart_s = 60 * minutes * _RAMP_SHARE / num_vehicles
    stopovers = 60 * minutes // _SECONDS_PER_STOPOVER + 1
    root = ElementTree.Element("routes")
    for vehicle in range(num_vehicles):
        way = rng.choices(edges, k=stopovers + 2)
        trip = {"id": str(vehicle), "depart": f"{vehicle * apart_s:.2f}", "departLane": "best", "departSpeed": "max"}
        ElementTree.SubElement(root, "trip", {**trip, "from": way[0], "to": way[-1], "via": " ".join(way[1:-1])})
    ElementTree.ElementTree(root).write(trips, encoding="utf-8", xml_declaration=True)
