"""SUMO floating-car data, read and made."""

import gzip
import sys
from pathlib import Path

import pytest

from envs.errors import InputError
from envs.vehicular import sumo as sumo_module
from envs.vehicular.sumo import generate_sumo_trace
from envs.vehicular.traces import load_trace

SAMPLE = Path(__file__).parents[2] / "data" / "fcd_20_vehicles.xml.gz"


def fcd(rows: dict) -> str:
    """A file with these rows: time in s to vehicle to (x, y) in m."""
    steps = []
    for time_s, vehicles in rows.items():
        inner = "".join(f'<vehicle id="{name}" x="{x}" y="{y}"/>\n' for name, (x, y) in vehicles.items())
        steps.append(f'<timestep time="{time_s:.2f}">\n{inner}</timestep>\n')
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<fcd-export>\n{"".join(steps)}</fcd-export>\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "fcd.xml"
    path.write_text(text)
    return path


def test_the_sample():
    trace, report = load_trace(SAMPLE)
    assert report.lines() == [
        "source: SUMO floating-car data fcd_20_vehicles.xml.gz",
        "files: 1",
        "vehicles: 20",
        "slots: 120 of 60 s, 0 s to 7140 s",
        "points read: 1,845",
        "cuts at gaps over 10 min: 0",
        "vehicles dropped, between two slots only: 0",
    ]
    assert trace.present.sum() == 1845
    # Vehicle 0 goes from (1684.80, 4215.50) to (2036.15, 4615.20) in the first minute.
    assert (trace.positions[1, 0] - trace.positions[0, 0]).tolist() == pytest.approx([351.35, 399.70], abs=1e-2)


def test_plain_and_gzipped_files_give_the_same(tmp_path):
    plain = write(tmp_path, gzip.decompress(SAMPLE.read_bytes()).decode())
    assert load_trace(plain)[0].positions.equal(load_trace(SAMPLE)[0].positions)


def test_rows_between_slots_are_interpolated(tmp_path):
    # At 60 s "a" is half way between (100, 1000) at 50 s and (300, 1040) at 70 s; "b" is there from 30 s to 90 s.
    path = write(
        tmp_path,
        fcd(
            {
                0: {"a": (0, 1000)},
                30: {"b": (500, 0)},
                50: {"a": (100, 1000)},
                65: {"c": (7, 7)},
                70: {"a": (300, 1040), "c": (7, 8)},
                90: {"b": (560, 0)},
            }
        ),
    )
    trace, report = load_trace(path)
    assert trace.present.tolist() == [[True, False], [True, True]]
    assert trace.positions[1].tolist() == [[200, 1020], [530, 0]]
    assert (report.points_read, report.vehicles, report.short_tracks) == (7, 2, 1)


def test_slots_are_counted_from_the_first_vehicle(tmp_path):
    path = write(tmp_path, fcd({0: {}, 30: {"a": (500, 500)}, 90: {"a": (800, 500)}}))
    trace, report = load_trace(path)
    assert trace.positions[:, 0].tolist() == [[0, 0], [300, 0]]
    assert (report.start, report.end) == ("30 s", "90 s")


def test_slots_may_be_shorter_than_the_time_between_rows(tmp_path):
    trace, _ = load_trace(write(tmp_path, fcd({0: {"a": (0, 500)}, 60: {"a": (600, 500)}})), slot_s=20.0)
    assert trace.positions[:, 0, 0].tolist() == pytest.approx([0, 200, 400, 600])


def test_times_that_are_no_exact_binary_numbers_hit_their_slots(tmp_path):
    # In binary (0.6 - 0.2) / 0.2 is below 2.
    trace, _ = load_trace(write(tmp_path, fcd({0.2: {"a": (1000, 500)}, 0.6: {"b": (1000, 500)}})), slot_s=0.2)
    assert trace.present.tolist() == [[True, False], [False, False], [False, True]]


def test_a_gap_over_ten_minutes_makes_another_vehicle(tmp_path):
    rows = {0: {"a": (0, 500)}, 600: {"a": (1000, 500)}, 1260: {"a": (0, 500)}}
    trace, report = load_trace(write(tmp_path, fcd(rows)))
    assert (report.splits, report.vehicles) == (1, 2)
    assert trace.present.sum(0).tolist() == [11, 1]
    assert trace.positions[3, 0, 0] == 300


def test_longitude_and_latitude_are_projected(tmp_path):
    # The centre is at 52.505 N, whose cosine is 0.6086922.
    rows = {0: {"a": (13.40, 52.50)}, 60: {"a": (13.41, 52.51)}}
    trace, _ = load_trace(write(tmp_path, fcd(rows)))
    assert trace.positions[1, 0].tolist() == pytest.approx([1111.951 * 0.6086922, 1111.951], abs=0.02)


def test_a_small_network_in_metres_is_left_in_metres(tmp_path):
    rows = {0: {"a": (10, 10)}, 60: {"a": (110, 60)}}
    trace, _ = load_trace(write(tmp_path, fcd(rows)))
    assert trace.positions[1, 0].tolist() == [100, 50]


def test_persons_are_ignored(tmp_path):
    text = fcd({0: {"a": (1, 2)}}).replace("<vehicle", '<person id="p" x="0" y="0"/><vehicle')
    assert load_trace(write(tmp_path, text))[1].vehicles == 1


GOOD = fcd({0: {"a": (1, 2)}, 60: {"a": (3, 4), "b": (5, 6)}})
BROKEN = [
    (GOOD.replace(' time="60.00"', ""), ":6: <timestep> has no time"),
    (GOOD.replace("60.00", "soon"), ":6: <timestep> has time = 'soon': expected a number"),
    (GOOD.replace("60.00", "0.00"), ":6: timestep 0 s after 0 s: times must increase"),
    (GOOD.replace("60.00", "-1"), ":6: timestep -1 s after 0 s: times must increase"),
    (GOOD.replace(' x="5"', ""), ":8: <vehicle> has no x"),
    (GOOD.replace(' y="6"', ""), ":8: <vehicle> has no y"),
    (GOOD.replace('"5"', '"inf"'), ":8: <vehicle> has x = 'inf': expected a number"),
    (GOOD.replace(' id="b"', ""), ":8: <vehicle> has no id"),
    (GOOD.replace('"b"', '"a"'), ":8: vehicle 'a' is twice in timestep 60 s"),
    (
        GOOD.replace("</timestep>\n</fcd", '</timestep>\n<vehicle id="c" x="1" y="1"/></fcd'),
        ":10: <vehicle> outside of a <timestep>",
    ),
    (GOOD.replace("fcd-export", "routes"), ":2: <routes> is not SUMO floating-car data: expected <fcd-export>"),
    (GOOD.replace("</fcd-export>\n", ""), ":10: broken or truncated XML: no element found"),
    (GOOD[: GOOD.index('y="4"')], ":7: broken or truncated XML: unclosed token"),
    ("", ":1: broken or truncated XML: no element found"),
    (fcd({0: {}, 60: {}}), ": no vehicle in the file: expected <vehicle id= x= y=> within <timestep time=>"),
    ("<fcd-export/>", ": no vehicle in the file: expected <vehicle id= x= y=> within <timestep time=>"),
]


@pytest.mark.parametrize(("text", "complaint"), BROKEN, ids=[complaint for _, complaint in BROKEN])
def test_a_broken_file_is_refused_with_its_line(tmp_path, text, complaint):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        load_trace(path)
    assert str(error.value) == f"{path}{complaint}"


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE fcd-export [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
        '<!DOCTYPE fcd-export [<!ENTITY file SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE fcd-export SYSTEM "http://localhost/fcd.dtd">',
    ],
)
def test_a_document_type_is_refused(tmp_path, declaration):
    path = write(tmp_path, GOOD.replace("<fcd-export>", declaration + "<fcd-export>"))
    with pytest.raises(InputError, match=r"fcd.xml:2: a document type declaration"):
        load_trace(path)


def test_a_truncated_gzip_file_is_refused(tmp_path):
    path = tmp_path / "cut.xml.gz"
    path.write_bytes(SAMPLE.read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"cut.xml.gz: broken or truncated gzip: Compressed file ended"):
        load_trace(path)


def test_damaged_gzip_data_are_refused(tmp_path):
    path = tmp_path / "damaged.xml.gz"
    content = SAMPLE.read_bytes()
    path.write_bytes(content[:5000] + bytes(100) + content[5100:])
    with pytest.raises(InputError, match=r"damaged.xml.gz: broken or truncated gzip: "):
        load_trace(path)


def test_a_gzip_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "plain.xml.gz"
    path.write_text(GOOD)
    with pytest.raises(InputError, match=r"plain.xml.gz: broken or truncated gzip: Not a gzipped file"):
        load_trace(path)


# Making one


@pytest.mark.parametrize("name", ["fcd.xml", "fcd.xml.gz"])
def test_sumo_makes_a_trace_with_all_vehicles_on_the_road(tmp_path, name):
    pytest.importorskip("sumo")
    generate_sumo_trace(tmp_path / name, num_vehicles=10, minutes=5, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    trace, report = load_trace(tmp_path / name)
    assert (report.vehicles, report.slots, report.splits) == (10, 5, 0)
    assert trace.present[1:].all()  # all have entered in the first of the five minutes
    moved_m = (trace.positions[2:] - trace.positions[1:-1]).norm(dim=-1)
    assert moved_m.mean() > 200
    assert moved_m.max() < 1200


def test_the_same_seed_makes_the_same_traffic(tmp_path):
    pytest.importorskip("sumo")
    for name, seed in (("a.xml", 1), ("b.xml", 1), ("c.xml", 2)):
        generate_sumo_trace(tmp_path / name, num_vehicles=3, minutes=2, seed=seed)
    a, b, c = (load_trace(tmp_path / name)[0].positions for name in ("a.xml", "b.xml", "c.xml"))
    assert a.equal(b)
    assert not a.equal(c)


@pytest.fixture
def failing_sumo(tmp_path, monkeypatch):
    """A SUMO whose programs write half a file and fail."""
    (tmp_path / "sumo" / "bin").mkdir(parents=True)
    for program in ("netgenerate", "sumo"):
        path = tmp_path / "sumo" / "bin" / program
        path.write_text("#!/bin/sh\necho half > net.xml\necho 'Error: the disk is full' >&2\nexit 1\n")
        path.chmod(0o755)
    monkeypatch.setattr(sumo_module, "sumo_home", lambda: tmp_path / "sumo")


def test_a_failure_of_sumo_leaves_nothing_behind(tmp_path, failing_sumo):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "fcd.xml").write_text("the old one")
    with pytest.raises(RuntimeError, match=r"^netgenerate failed with exit code 1: Error: the disk is full$"):
        generate_sumo_trace(folder / "fcd.xml", 2, 1, 0)
    assert [path.name for path in folder.iterdir()] == ["fcd.xml"]
    assert (folder / "fcd.xml").read_text() == "the old one"


def test_without_sumo_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sumo", None)
    with pytest.raises(InputError, match=r"^SUMO is not installed: pip install eclipse-sumo==1\.28\.0$"):
        generate_sumo_trace(tmp_path / "fcd.xml", 2, 1, 0)


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("fcd.xml", (0, 1, 0), "num_vehicles = 0, minutes = 1, seed = 0: expected at least 1, 1 and 0"),
        ("fcd.xml", (1, 0, 0), "num_vehicles = 1, minutes = 0, seed = 0: expected at least 1, 1 and 0"),
        ("fcd.xml", (1, 1, -1), "num_vehicles = 1, minutes = 1, seed = -1: expected at least 1, 1 and 0"),
        ("fcd.csv", (1, 1, 0), "expected a name that ends in .xml or .xml.gz"),
        ("nowhere/fcd.xml", (1, 1, 0), "nowhere: no such folder"),
    ],
)
def test_arguments_that_cannot_be_are_refused(tmp_path, name, numbers, message):
    with pytest.raises(InputError) as error:
        generate_sumo_trace(tmp_path / name, *numbers)
    assert str(error.value).endswith(message)
