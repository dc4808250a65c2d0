"""Synthetic traces, where edges stand, and what all kinds of trace share."""

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from envs.errors import InputError
from envs.vehicular import synthetic_traces, trace_data
from envs.vehicular.traces import (
    BoundingBox,
    City,
    Trace,
    edge_positions,
    grid_positions,
    load_trace,
    synthetic_trace,
)

DATA = Path(__file__).parents[2] / "data"
AREA_M = (2000.0, 1200.0)


def trace_at(points: list[tuple[float, float]]) -> Trace:
    """One vehicle at each point, in one slot."""
    return Trace(torch.tensor([points]), torch.ones(1, len(points), dtype=torch.bool), 60.0, "a test")


# Synthetic


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    side_m=st.floats(100, 3000),
    slot_s=st.sampled_from([1.0, 17.5, 60.0]),
)
def test_synthetic_vehicles_never_move_faster_than_the_fastest_street_and_stay_in_the_area(seed, side_m, slot_s):
    trace = synthetic_trace(4, 30, (side_m, 1000.0), seed, slot_s)
    steps_m = (trace.positions[1:].double() - trace.positions[:-1].double()).norm(dim=-1)
    assert steps_m.max() <= 50 / 3.6 * slot_s + 1e-2
    assert (trace.positions >= 0).all()
    assert (trace.positions <= torch.tensor([side_m, 1000.0]) + 1e-3).all()


def test_synthetic_vehicles_are_always_there_and_get_around():
    trace = synthetic_trace(20, 120, AREA_M, seed=3)
    assert trace.positions.shape == (120, 20, 2)
    assert trace.positions.dtype == torch.float32
    assert trace.present.all()
    assert trace.slot_s == 60.0
    ranges_m = trace.positions.amax(0) - trace.positions.amin(0)
    assert (ranges_m > torch.tensor(AREA_M) / 2).all()


def test_synthetic_vehicles_are_on_streets():
    positions = synthetic_trace(20, 60, AREA_M, seed=3, slot_s=13.0).positions.double()
    off_street_m = (positions - (positions / 400).round() * 400).abs().amin(-1)
    assert off_street_m.max() < 1e-3


def test_synthetic_vehicles_stop_at_times():
    positions = synthetic_trace(20, 600, AREA_M, seed=3, slot_s=2.0).positions
    standing = (positions[1:] == positions[:-1]).all(-1).float().mean()
    assert 0.1 < standing < 0.7


def test_synthetic_trace_follows_from_the_seed_alone():
    trace = synthetic_trace(6, 40, AREA_M, seed=5)
    assert torch.equal(trace.positions, synthetic_trace(6, 40, AREA_M, seed=5).positions)
    assert not torch.equal(trace.positions, synthetic_trace(6, 40, AREA_M, seed=6).positions)


def test_more_vehicles_or_slots_leave_the_others_where_they_were():
    trace = synthetic_trace(6, 40, AREA_M, seed=5)
    assert torch.equal(trace.positions, synthetic_trace(9, 70, AREA_M, seed=5).positions[:40, :6])


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.1, 0.2), (0.9, 1.0)])
def test_every_junction_can_be_reached_from_every_other(shares):
    city = City(missing_share=shares[0], one_way_share=shares[1])
    graph = synthetic_traces._street_grid((3000, 2000), city, np.random.default_rng(1))
    assert nx.is_strongly_connected(graph)
    assert graph.number_of_nodes() == 9 * 6
    both_ways = 2 * (8 * 6 + 9 * 5)
    assert (graph.number_of_edges() == both_ways) == (shares == (0.0, 0.0))


def test_a_city_with_too_many_junctions_is_refused():
    with pytest.raises(InputError, match=r"^40000 x 40000 m in blocks of 400 m has 10,201 junctions: expected at most 5,000$"):
        synthetic_trace(1, 1, (40_000, 40_000), seed=0)


def test_speeds_of_a_city_must_be_in_order():
    with pytest.raises(ValidationError, match="slowest_kmh = 60 is above fastest_kmh = 50"):
        City(slowest_kmh=60)


# Edges


def test_grid_of_six_and_twelve_edges():
    six = [[500, 750], [1500, 750], [2500, 750], [500, 2250], [1500, 2250], [2500, 2250]]
    assert grid_positions((3000, 3000), 6).tolist() == six
    twelve = grid_positions((4000, 3000), 12)
    assert twelve.tolist() == [[x, y] for y in (500, 1500, 2500) for x in (500, 1500, 2500, 3500)]


def test_grid_follows_the_shape_of_the_area():
    assert grid_positions((2000, 3000), 6).tolist() == [[x, y] for y in (500, 1500, 2500) for x in (500, 1500)]


def test_grid_of_a_prime_number_of_edges_has_cells_of_equal_area():
    # Rows of 3, 2, 2 cells, as high as 3/7, 2/7, 2/7 of 2100 m.
    expected = [[350, 450], [1050, 450], [1750, 450], [525, 1200], [1575, 1200], [525, 1800], [1575, 1800]]
    assert grid_positions((2100, 2100), 7).tolist() == expected


def test_edges_stand_at_the_centres_of_clusters():
    clusters = [[(0.0, 0.0), (2.0, 0.0), (1.0, 3.0)], [(1000.0, 0.0), (1000.0, 10.0)], [(500.0, 900.0)]]
    edges = edge_positions(trace_at([point for cluster in clusters for point in cluster]), 3)
    assert edges.tolist() == [[1, 1], [500, 900], [1000, 5]]


def test_absent_vehicles_do_not_attract_edges():
    positions = torch.tensor([[[0.0, 0.0], [10.0, 0.0], [5000.0, 5000.0]]])
    trace = Trace(positions, torch.tensor([[True, True, False]]), 60.0, "a test")
    assert edge_positions(trace, 1).tolist() == [[5, 0]]


def test_edges_are_the_same_for_the_same_trace():
    trace = synthetic_trace(100, 240, (4000, 3000), seed=1)  # more positions than k-means looks at
    edges = edge_positions(trace, 6)
    assert torch.equal(edges, edge_positions(trace, 6))
    nearest_m = torch.cdist(trace.positions.reshape(-1, 2), edges).amin(1)
    assert nearest_m.mean() < 1.1 * torch.cdist(trace.positions.reshape(-1, 2), grid_positions((4000, 3000), 6)).amin(1).mean()


def test_more_edges_than_places_is_refused():
    with pytest.raises(InputError, match=r"^a test: 3 edges but vehicles at only 2 different places$"):
        edge_positions(trace_at([(0.0, 0.0), (1.0, 0.0), (0.0, 0.0)]), 3)


# All kinds of files


@pytest.mark.parametrize("name", ["tdrive", "fcd_20_vehicles.xml.gz"])
def test_loading_is_deterministic_and_well_formed(name):
    trace, report = load_trace(DATA / name)
    again, _ = load_trace(str(DATA / name))
    assert torch.equal(trace.positions, again.positions)
    assert torch.equal(trace.present, again.present)
    assert trace.positions.shape == (report.slots, report.vehicles, 2)
    assert trace.positions.dtype == torch.float32
    assert trace.present.any(0).all()
    assert trace.positions[trace.present].amin(0).tolist() == [0, 0]
    assert (trace.positions[~trace.present] == 0).all()


@pytest.mark.parametrize("name", ["tdrive", "fcd_20_vehicles.xml.gz"])
def test_a_part_is_a_cut_of_the_whole(name):
    whole, _ = load_trace(DATA / name)
    part, report = load_trace(DATA / name, first_slot=40, num_slots=25)
    there = whole.present[40:65].any(0)
    assert report.slots == 25
    assert torch.equal(part.present, whole.present[40:65, there])
    moved_m = (whole.positions[40:65, there] - part.positions)[part.present]
    assert (moved_m - moved_m[0]).abs().max() < 1e-2


def test_a_part_beyond_the_end_is_refused():
    with pytest.raises(InputError, match=r"gz: no vehicle in the chosen slots: first_slot = 500 of 120 slots$"):
        load_trace(DATA / "fcd_20_vehicles.xml.gz", first_slot=500)


def test_a_trace_too_large_for_memory_is_refused_with_a_way_out(monkeypatch):
    monkeypatch.setattr(trace_data, "MAX_ENTRIES", 20 * 119)
    with pytest.raises(
        InputError, match=r"20 vehicles x 120 slots .* first_slot and num_slots \(the busiest hour starts at slot 2\)"
    ):
        load_trace(DATA / "fcd_20_vehicles.xml.gz")
    trace, _ = load_trace(DATA / "fcd_20_vehicles.xml.gz", first_slot=2, num_slots=60)
    assert trace.present.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slot_s": 0.0}, "slot_s = 0.0: expected a positive number of seconds"),
        ({"slot_s": float("nan")}, "slot_s = nan: expected a positive number of seconds"),
        ({"first_slot": -1}, "first_slot = -1, num_slots = None: expected at least 0 and at least 1"),
        ({"num_slots": 0}, "first_slot = 0, num_slots = 0: expected at least 0 and at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError) as error:
        load_trace(DATA / "tdrive", **arguments)
    assert str(error.value) == message


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.txt: no such file or folder$"):
        load_trace(tmp_path / "nowhere.txt")


def test_an_unknown_extension_is_refused(tmp_path):
    (tmp_path / "trace.csv").write_text("1,2008-02-04 08:00:00,116.35,39.9\n")
    with pytest.raises(InputError, match=r"trace.csv: unknown kind of trace: expected a folder or .txt \(T-Drive\)"):
        load_trace(tmp_path / "trace.csv")


@pytest.mark.parametrize("name", ["trace.txt", "trace.xml", "trace.xml.gz"])
def test_a_file_that_cannot_be_opened_is_refused(tmp_path, monkeypatch, name):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    (tmp_path / name).touch()
    for opener in ("pathlib.Path.open", "pathlib.Path.read_text", "gzip.open"):
        monkeypatch.setattr(opener, refuse)
    with pytest.raises(InputError) as error:
        load_trace(tmp_path / name)
    assert str(error.value) == f"{tmp_path / name}: cannot be read: Permission denied"


@pytest.mark.parametrize("sides", [{"west": 117.0}, {"south": 39.9715}])
def test_an_empty_bounding_box_is_refused(sides):
    with pytest.raises(ValidationError, match="west must be below east and south below north"):
        BoundingBox(**sides)
