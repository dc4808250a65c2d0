"""T-Drive files: cleaning, cutting and interpolation by hand-worked numbers."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import InputError
from envs.vehicular.traces import BoundingBox, load_trace

SAMPLE = Path(__file__).parents[2] / "data" / "tdrive"
DEGREE_M = 111_195.08  # of latitude on a sphere with radius 6,371,008.8 m
LON, LAT = 116.35, 39.90


def report_line(clock: str, lon: float = LON, lat: float = LAT, taxi: int = 1) -> str:
    return f"{taxi},2008-02-04 {clock},{lon:.5f},{lat:.5f}\n"


def write(folder: Path, *lines: str, name: str = "1.txt") -> Path:
    (folder / name).write_text("".join(lines))
    return folder


def test_the_sample():
    _, report = load_trace(SAMPLE)
    assert report.lines() == [
        "source: T-Drive tdrive",
        "files: 8, 1 of them empty",
        "vehicles: 10",
        "slots: 106 of 60 s, 2008-02-04 08:01:00 to 2008-02-04 09:46:00",
        "points read: 196",
        "  dropped, repetition: 4 (2.04%)",
        "  dropped, at (0, 0): 2 (1.02%)",
        "  dropped, jump over 120 km/h: 4 (2.04%)",
        "  dropped, outside of the box: 0 (0.00%)",
        "cuts at gaps over 10 min: 3",
        "vehicles dropped, between two slots only: 0",
    ]
    assert str(report) == "\n".join(report.lines())


def test_positions_at_slots_are_interpolated_in_metres(tmp_path):
    # 0.02 degrees north in 120 s from 08:00:30: a quarter of the way at 08:01, three quarters at 08:02.
    north = write(tmp_path, report_line("08:00:30"), report_line("08:02:30", lat=LAT + 0.02))
    trace, report = load_trace(north)
    assert trace.present.tolist() == [[True], [True]]
    assert trace.positions[:, 0, 0].tolist() == [0, 0]
    assert trace.positions[:, 0, 1].tolist() == pytest.approx([0, 0.01 * DEGREE_M], abs=0.01)
    assert (report.start, report.end) == ("2008-02-04 08:01:00", "2008-02-04 08:02:00")


def test_longitude_shrinks_with_the_cosine_of_the_centre_of_the_box(tmp_path):
    # The box's centre is at 39.91945 N, whose cosine is 0.7669473.
    folder = write(tmp_path, report_line("08:00:00"), report_line("08:01:00", lon=LON + 0.01))
    trace, _ = load_trace(folder)
    assert trace.positions[1, 0].tolist() == pytest.approx([0.01 * DEGREE_M * 0.7669473, 0], abs=0.01)


def test_without_a_box_the_centre_is_that_of_the_data(tmp_path):
    # Two taxis at 60 S apart by 0.01 degrees: half as far as at the equator.
    write(tmp_path, report_line("08:00:00", 10.0, -60.0))
    write(tmp_path, report_line("08:00:00", 10.01, -60.0), name="2.txt")
    trace, report = load_trace(tmp_path, bounding_box=None)
    assert trace.positions[0, 1].tolist() == pytest.approx([0.005 * DEGREE_M, 0], abs=0.01)
    assert "outside of the box" not in report.dropped


def test_lines_out_of_order_are_sorted_by_time(tmp_path):
    lines = [report_line("08:02:00", lat=LAT + 0.01), report_line("08:00:00"), report_line("08:01:00", lat=LAT + 0.002)]
    trace, report = load_trace(write(tmp_path, *lines))
    assert trace.positions[:, 0, 1].tolist() == pytest.approx([0, 0.002 * DEGREE_M, 0.01 * DEGREE_M], abs=0.01)
    assert report.splits == 0


def test_a_gap_over_ten_minutes_makes_another_vehicle(tmp_path):
    # 600 s are no gap, 601 s are one. The last point reaches 08:21.
    clocks = ["08:00:00", "08:10:00", "08:20:01", "08:21:01"]
    trace, report = load_trace(write(tmp_path, *map(report_line, clocks)))
    assert report.splits == 1
    assert report.vehicles == 2
    assert trace.present[:, 0].nonzero().flatten().tolist() == list(range(11))
    assert trace.present[:, 1].nonzero().flatten().tolist() == [21]


def test_a_vehicle_between_two_slots_is_dropped(tmp_path):
    lines = [report_line("08:00:10"), report_line("08:00:50"), report_line("08:30:00")]
    trace, report = load_trace(write(tmp_path, *lines))
    assert (report.short_tracks, report.vehicles, trace.present.tolist()) == (1, 1, [[True]])


def test_only_vehicles_between_slots_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no vehicle is there at the start of any slot of 60 s$"):
        load_trace(write(tmp_path, report_line("08:00:10"), report_line("08:00:50")))


def test_repetitions_and_zeros_are_dropped_and_counted(tmp_path):
    zero = report_line("08:00:30", 0, 0)
    lines = [report_line("08:00:00"), report_line("08:00:00"), zero, zero, report_line("08:01:00")]
    _, report = load_trace(write(tmp_path, *lines))
    assert report.points_read == 5
    assert report.dropped == {"repetition": 2, "at (0, 0)": 1, "jump over 120 km/h": 0, "outside of the box": 0}


def test_a_point_outside_of_the_box_is_dropped(tmp_path):
    # 116.3932 E is the border; 0.0003 degrees are some 26 m.
    lines = [report_line("08:00:00", 116.3932), report_line("08:01:00", 116.3935), report_line("08:02:00", 116.3932)]
    trace, report = load_trace(write(tmp_path, *lines))
    assert report.dropped["outside of the box"] == 1
    assert trace.positions[:, 0].tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(
    ("norths", "jumps"),
    [
        ([0, 0.0179, 0], set()),  # 0.0179 degrees in 60 s are 119.4 km/h
        ([0, 0.0181, 0], {1}),  # 120.8 km/h
        ([0, 0.001, 0.06, 0.061, 0], {2, 3}),  # both that are away
        ([0.05, 0, 0.001, 0], {0}),  # the first, not the three after it
        ([0, 0.001, 0.05], {2}),  # the last
        ([0, 0.05], {1}),  # no one knows which: the second
        ([0.05, 0, 0.001, 0.05, 0], {0, 3}),
    ],
)
def test_a_jump_drops_the_point_that_jumps(tmp_path, norths, jumps):
    lines = [report_line(f"08:{minute:02}:00", lat=LAT + north) for minute, north in enumerate(norths)]
    trace, report = load_trace(write(tmp_path, *lines))
    assert report.dropped["jump over 120 km/h"] == len(jumps)
    kept = [minute for minute in range(len(norths)) if minute not in jumps]
    norths_m = trace.positions[[minute - kept[0] for minute in kept], 0, 1]
    assert norths_m.tolist() == pytest.approx([norths[minute] * DEGREE_M for minute in kept], abs=0.01)


def test_the_point_after_a_jump_is_judged_by_the_last_good_one(tmp_path):
    # At 08:01 the taxi is 3.3 km away; it is interpolated as if that had not been written.
    lines = [report_line("08:00:00"), report_line("08:01:00", lat=LAT + 0.03), report_line("08:02:00", lat=LAT + 0.004)]
    trace, _ = load_trace(write(tmp_path, *lines))
    assert trace.positions[:, 0, 1].tolist() == pytest.approx([0, 0.002 * DEGREE_M, 0.004 * DEGREE_M], abs=0.01)


def test_two_places_at_one_time_are_a_jump(tmp_path):
    lines = [report_line("08:00:00"), report_line("08:01:00"), report_line("08:01:00", lat=LAT + 0.001)]
    _, report = load_trace(write(tmp_path, *lines))
    assert report.dropped["jump over 120 km/h"] == 1


def test_a_far_place_after_a_gap_is_no_jump(tmp_path):
    _, report = load_trace(write(tmp_path, report_line("08:00:00"), report_line("08:11:00", lat=LAT + 0.3)), bounding_box=None)
    assert (report.dropped["jump over 120 km/h"], report.splits) == (0, 1)


def test_a_place_after_dropped_jumps_and_a_gap_begins_another_vehicle(tmp_path):
    # 08:09 is 0.3 degrees (33 km) away, and 08:11 is a gap after 08:00; after it the first point is again the one that is off.
    clocks_and_lats = [("08:00", 0), ("08:09", 0.3), ("08:11", 0.05), ("08:12", 0), ("08:13", 0)]
    lines = [report_line(f"{clock}:00", lat=LAT + north) for clock, north in clocks_and_lats]
    trace, report = load_trace(write(tmp_path, *lines), bounding_box=None)
    assert (report.dropped["jump over 120 km/h"], report.splits, report.vehicles) == (2, 1, 2)
    assert trace.positions.abs().max() == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3600), st.integers(-60, 60), st.integers(-60, 60)), min_size=1, max_size=40
    )
)
def test_what_is_left_of_any_file_never_jumps(tmp_path_factory, rows):
    start = datetime(2008, 2, 4, 8)
    lines = [report_line("08:00:00", taxi=9)]  # so that there is something at a slot
    for taxi, seconds, east, north in rows:
        clock = f"{start + timedelta(seconds=seconds):%H:%M:%S}"
        lines.append(report_line(clock, LON + east * 1e-3, LAT + north * 1e-3, taxi))
    trace, report = load_trace(write(tmp_path_factory.mktemp("any"), *lines), slot_s=1.0, bounding_box=None)
    steps_m = (trace.positions[1:] - trace.positions[:-1]).norm(dim=-1)[trace.present[1:] & trace.present[:-1]]
    # Distances on the map differ by 0.1 % from those at a point's own latitude.
    assert (steps_m <= 120 / 3.6 * 1.001 + 0.01).all()
    assert report.points_read == len(lines)
    assert report.dropped["repetition"] == len(lines) - len(set(lines))


def test_taxis_in_one_file_are_kept_apart(tmp_path):
    lines = [report_line(clock, lat=LAT + 0.05 * taxi, taxi=taxi) for clock in ("08:00:00", "08:01:00") for taxi in range(2)]
    (tmp_path / "all.txt").write_text("".join(lines))
    trace, report = load_trace(tmp_path / "all.txt")
    assert report.dropped["jump over 120 km/h"] == 0
    assert report.splits == 0
    assert trace.positions[1, :, 1].tolist() == pytest.approx([0, 0.05 * DEGREE_M], abs=0.01)


def test_vehicles_are_in_the_order_of_the_numbers_of_their_files(tmp_path):
    for taxi in (10, 9, 2):
        write(tmp_path, report_line("08:00:00", lat=LAT + taxi * 1e-3), name=f"{taxi}.txt")
    trace, _ = load_trace(tmp_path)
    assert trace.positions[0, :, 1].argsort().tolist() == [0, 1, 2]


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_are_no_faults(tmp_path):
    text = report_line("08:00:00") + "\n" + report_line("08:01:00")
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    trace, report = load_trace(tmp_path)
    assert (report.bad_lines, report.lines_read, report.vehicles) == (0, 2, 1)
    assert trace.present.all()


BAD_LINES = [
    ("1,2008-02-04 08:05:00,116.35", "expected 4 fields: id,YYYY-MM-DD HH:MM:SS,longitude,latitude"),
    ("1,2008-02-04,116.35,39.9", "expected 4 fields: id,YYYY-MM-DD HH:MM:SS,longitude,latitude"),
    ("1,2008-02-30 08:05:00,116.35,39.9", "Day out of range in datetime string"),
    ("1,2008-02-04 08:05:00,east,39.9", "could not convert string to float: 'east'"),
    ("1,2008-02-04 08:05:00,nan,39.9", "longitude or latitude is not within +-180 or +-90 degrees"),
    ("1,2008-02-04 08:05:00,39.9,116.35", "longitude or latitude is not within +-180 or +-90 degrees"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_counted_and_the_first_is_shown(tmp_path, line, reason):
    good = [report_line(f"08:0{minute}:00") for minute in range(4)]
    _, report = load_trace(write(tmp_path, *good[:2], line + "\n", *good[2:]))
    assert (report.lines_read, report.bad_lines, report.points_read) == (5, 1, 4)
    assert report.first_bad_line.startswith(f"1.txt:3: '{line}': {reason}")
    assert report.lines()[-1] == f"lines not understood: 1 (20.00%), the first: {report.first_bad_line}"


def test_more_than_a_fifth_of_bad_lines_is_refused(tmp_path):
    write(tmp_path, report_line("08:00:00"), report_line("08:01:00"), report_line("08:02:00"))
    write(tmp_path, "lon;lat\n", name="2.txt")
    with pytest.raises(InputError) as error:
        load_trace(tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path}: 1 of 4 lines are no `id,YYYY-MM-DD HH:MM:SS,longitude,latitude`, the first is 2.txt:1: 'lon;lat': "
    )


def test_a_file_of_noise_is_refused(tmp_path):
    (tmp_path / "1.txt").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(InputError, match="of 11 lines are no"):
        load_trace(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no \.txt file in the folder: expected one T-Drive file per taxi$"):
        load_trace(tmp_path)


def test_a_folder_of_other_files_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no \.txt file in the folder"):
        load_trace(write(tmp_path, report_line("08:00:00"), name="1.csv"))


@pytest.mark.parametrize(
    ("names", "message"), [(["1.txt"], "the file is empty"), (["1.txt", "2.txt"], "all 2 files are empty")]
)
def test_empty_files_alone_are_refused(tmp_path, names, message):
    for name in names:
        write(tmp_path, "\n", name=name)
    with pytest.raises(InputError, match=f"{message}$"):
        load_trace(tmp_path / names[0] if len(names) == 1 else tmp_path)


def test_nothing_in_the_box_is_refused_with_where_the_points_are():
    with pytest.raises(InputError) as error:
        load_trace(SAMPLE, bounding_box=BoundingBox(west=2.2, south=48.8, east=2.4, north=48.9))
    box = "2.2000 to 2.4000 E, 48.8000 to 48.9000 N"
    assert str(error.value).startswith(f"{SAMPLE}: none of 196 points lies in the box {box}: they lie in 116.3")


def test_zeros_alone_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"all 2 points are at \(0, 0\)$"):
        load_trace(write(tmp_path, report_line("08:00:00", 0, 0), report_line("08:01:00", 0, 0)))


def test_present_is_false_where_a_taxi_has_not_begun_or_has_ended(tmp_path):
    write(tmp_path, report_line("08:00:00"), report_line("08:01:59"))
    write(tmp_path, report_line("08:01:01"), report_line("08:03:00"), name="2.txt")
    trace, _ = load_trace(tmp_path)
    assert torch.equal(trace.present, torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]]).bool())
