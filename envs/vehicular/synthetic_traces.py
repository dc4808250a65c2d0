"""Vehicles on a made-up street grid: the trace that needs no file."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.sparse.csgraph import dijkstra

from envs.errors import InputError
from envs.vehicular.trace_data import Floats, Ints, Trace

_MAX_JUNCTIONS = 5_000  # all ways between them are held at once


class City(BaseModel):
    """Streets and drivers of a synthetic trace."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    block_m: float = Field(default=400.0, gt=0, description="wanted distance between junctions, m")
    missing_share: float = Field(default=0.1, ge=0, lt=1, description="share of streets that are left out")
    one_way_share: float = Field(default=0.2, ge=0, le=1, description="share of the other streets that are one-way")
    slowest_kmh: float = Field(default=15.0, gt=0, description="speed on the slowest street, km/h")
    fastest_kmh: float = Field(default=50.0, gt=0, description="speed on the fastest street, km/h")
    stop_probability: float = Field(default=0.3, ge=0, le=1, description="of a stop at a junction on the way")
    longest_stop_s: float = Field(default=45.0, ge=0, description="a stop lasts up to this, s")
    longest_dwell_s: float = Field(default=300.0, ge=0, description="a stay at a destination lasts up to this, s")
    warm_up_s: float = Field(default=1200.0, ge=0, description="vehicles set off up to this long before the first slot, s")

    @model_validator(mode="after")
    def _speeds_in_order(self) -> City:
        if self.slowest_kmh > self.fastest_kmh:
            raise ValueError(f"slowest_kmh = {self.slowest_kmh:g} is above fastest_kmh = {self.fastest_kmh:g}")
        return self


@dataclass(frozen=True)
class _Streets:
    """Junctions (V) and the fastest way between any two.

    Attributes:
        junctions: `[V, 2]` metres.
        travel_s: `[V, V]` seconds on the street between neighbours.
        previous: `[V, V]`, the last junction before `[., v]` on the fastest way from `[u, .]`.
    """

    junctions: Floats
    travel_s: Floats
    previous: Ints


def synthetic_trace(
    num_vehicles: int, num_slots: int, area_m: tuple[float, float], seed: int, slot_s: float = 60.0, city: City | None = None
) -> Trace:
    """Vehicles that drive from junction to junction of a street grid all the time, by the fastest way.

    A vehicle's way depends on the seed and its number only: more vehicles or more slots leave the others where they were.

    Args:
        area_m: Width and height of the grid, both positive; positions lie between (0, 0) and it.
        seed: Not negative.

    Raises:
        InputError: The area has more than 5,000 junctions.
    """
    city = city or City()
    streets = _solve(_street_grid(area_m, city, np.random.default_rng([seed, 0])), area_m)
    slots_s = np.arange(num_slots) * slot_s
    positions = np.empty((num_slots, num_vehicles, 2), np.float32)
    for vehicle in range(num_vehicles):
        times_s, places = _drive(streets, city, num_slots * slot_s, np.random.default_rng([seed, 1, vehicle]))
        for axis in range(2):
            positions[:, vehicle, axis] = np.interp(slots_s, times_s, streets.junctions[places, axis])
    present = torch.ones(num_slots, num_vehicles, dtype=torch.bool)
    source = f"synthetic: {num_vehicles} vehicles on {area_m[0]:g} x {area_m[1]:g} m of streets, seed {seed}"
    return Trace(torch.from_numpy(positions), present, slot_s, source)


def _street_grid(area_m: tuple[float, float], city: City, rng: np.random.Generator) -> nx.DiGraph:
    """A strongly connected grid of junctions (column, row), edges with `speed_ms`."""
    columns, rows = (max(2, round(side / city.block_m) + 1) for side in area_m)
    if columns * rows > _MAX_JUNCTIONS:
        raise InputError(
            f"{area_m[0]:g} x {area_m[1]:g} m in blocks of {city.block_m:g} m has {columns * rows:,} junctions: "
            f"expected at most {_MAX_JUNCTIONS:,}"
        )
    graph = nx.grid_2d_graph(columns, rows)
    streets = sorted(graph.edges)
    graph = graph.to_directed()
    for a, b in streets:
        speed_ms = rng.uniform(city.slowest_kmh, city.fastest_kmh) / 3.6
        graph.edges[a, b]["speed_ms"] = graph.edges[b, a]["speed_ms"] = speed_ms
    for index in rng.permutation(len(streets)):
        a, b = streets[index]
        if rng.random() < city.missing_share:
            _remove_if_connected(graph, [(a, b), (b, a)])
        elif rng.random() < city.one_way_share:
            _remove_if_connected(graph, [(a, b) if rng.random() < 0.5 else (b, a)])
    return graph


def _remove_if_connected(graph: nx.DiGraph, edges: list[tuple[object, object]]) -> None:
    """Removes the edges unless that would cut a junction off: each edge's ends must stay linked by another way."""
    removed = [(a, b, graph.edges[a, b]) for a, b in edges]
    graph.remove_edges_from(edges)
    if not all(nx.has_path(graph, a, b) for a, b in edges):
        graph.add_edges_from(removed)


def _solve(graph: nx.DiGraph, area_m: tuple[float, float]) -> _Streets:
    """Travel times and fastest ways in the grid stretched over the area."""
    nodes = sorted(graph.nodes)
    junctions = np.array(nodes, np.float64)
    junctions *= np.array(area_m) / junctions.max(axis=0)
    number = {node: index for index, node in enumerate(nodes)}
    travel_s = np.zeros((len(nodes), len(nodes)))
    for a, b, speed_ms in graph.edges(data="speed_ms"):
        u, v = number[a], number[b]
        travel_s[u, v] = np.linalg.norm(junctions[u] - junctions[v]) / speed_ms
    _, previous = dijkstra(travel_s, return_predecessors=True)
    return _Streets(junctions, travel_s, previous)


def _drive(streets: _Streets, city: City, until_s: float, rng: np.random.Generator) -> tuple[list[float], list[int]]:
    """One vehicle's way: at `times_s[i]` it is at junction `places[i]`, in between on a straight line."""
    here = int(rng.integers(len(streets.junctions)))
    times_s, places = [-rng.uniform(0, city.warm_up_s)], [here]
    while times_s[-1] < until_s:
        way = _way(streets, here, int(rng.integers(len(streets.junctions))))
        stops_s = np.where(rng.random(len(way)) < city.stop_probability, rng.uniform(0, city.longest_stop_s, len(way)), 0)
        stops_s[-1] = rng.uniform(0, city.longest_dwell_s)
        for (a, b), stop_s in zip(itertools.pairwise([here, *way]), stops_s, strict=True):
            times_s.append(times_s[-1] + streets.travel_s[a, b])
            places.append(b)
            if stop_s:
                times_s.append(times_s[-1] + float(stop_s))
                places.append(b)
        here = way[-1]
    return times_s, places


def _way(streets: _Streets, start: int, goal: int) -> list[int]:
    """The junctions after `start` on the fastest way to `goal`; `[start]` where they are the same."""
    way = [goal]
    while start != goal and streets.previous[start, way[-1]] != start:
        way.append(int(streets.previous[start, way[-1]]))
    return way[::-1]
