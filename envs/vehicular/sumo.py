"""Traffic for the real SUMO simulator (the optional package `eclipse-sumo`), and floating-car data made with it."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from envs.errors import InputError

AREA_M = (3_360.0, 5_040.0)  # 9 x 13 junctions
RAMP_SHARE = 0.2
_BLOCK_M = 420
_SECONDS_PER_STOPOVER = 120  # a third of what a way between two random streets takes


def generate_sumo_trace(out: Path, num_vehicles: int, minutes: int, seed: int) -> None:
    """Simulates vehicles on a grid of streets with traffic lights and writes where they are each minute.

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
    home = sumo_home()
    with tempfile.TemporaryDirectory(prefix=".sumo-", dir=out.parent) as name:
        folder = Path(name)
        fcd = folder / ("fcd.xml.gz" if out.suffix == ".gz" else "fcd.xml")
        traffic = make_traffic(folder, num_vehicles, minutes, seed)
        _run(home, "sumo", folder, *traffic, "--fcd-output", fcd.name, "--device.fcd.period", "60", "--end", str(60 * minutes))
        os.replace(fcd, out)


def make_traffic(folder: Path, num_vehicles: int, minutes: int, seed: int, area_m: tuple[float, float] = AREA_M) -> list[str]:
    """Writes streets and trips into the folder and returns the arguments with which `sumo` drives them.

    Vehicles 0, 1, ... enter one after the other in the first fifth of the time (`RAMP_SHARE`) and drive between random streets
    until its end.

    Args:
        area_m: Width and height of the grid of streets, whose lower-left corner is (0, 0).

    Raises:
        InputError: SUMO is not installed.
        RuntimeError: SUMO failed.
    """
    net, trips = folder.resolve() / "net.xml", folder.resolve() / "trips.xml"
    _make_network(sumo_home(), net, seed, area_m)
    _write_trips(net, trips, num_vehicles, minutes, seed)
    files = ["--net-file", str(net), "--route-files", str(trips)]
    return [*files, "--seed", str(seed), "--no-step-log", "--no-warnings"]


def sumo_home() -> Path:
    """Where SUMO is installed.

    Raises:
        InputError: It is not.
    """
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


def _make_network(home: Path, net: Path, seed: int, area_m: tuple[float, float]) -> None:
    grid = ["--grid"]
    for axis, length in zip("xy", area_m, strict=True):
        blocks = max(1, round(length / _BLOCK_M))
        grid += [f"--grid.{axis}-number", str(blocks + 1), f"--grid.{axis}-length", str(length / blocks)]
    options = ["--default.lanenumber", "2", "--default-junction-type", "traffic_light", "--seed", str(seed)]
    _run(home, "netgenerate", net.parent, *grid, *options, "--output-file", net.name)


def _write_trips(net: Path, trips: Path, num_vehicles: int, minutes: int, seed: int) -> None:
    """One trip per vehicle, with as many random streets on the way as last until the end."""
    edges = [edge.get("id", "") for edge in ElementTree.parse(net).iter("edge") if edge.get("function") != "internal"]
    rng = random.Random(seed)
    apart_s = 60 * minutes * RAMP_SHARE / num_vehicles
    stopovers = 60 * minutes // _SECONDS_PER_STOPOVER + 1
    root = ElementTree.Element("routes")
    for vehicle in range(num_vehicles):
        way = rng.choices(edges, k=stopovers + 2)
        trip = {"id": str(vehicle), "depart": f"{vehicle * apart_s:.2f}", "departLane": "best", "departSpeed": "max"}
        ElementTree.SubElement(root, "trip", {**trip, "from": way[0], "to": way[-1], "via": " ".join(way[1:-1])})
    ElementTree.ElementTree(root).write(trips, encoding="utf-8", xml_declaration=True)
