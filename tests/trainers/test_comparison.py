"""Comparisons say what the numbers support, refuse what cannot be compared, and survive a round trip through files."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from envs.errors import InputError
from envs.team import Metric
from trainers.comparison import (
    DETAILS,
    EVALUATION,
    compare,
    format_interval,
    heading,
    problem_and_task,
    read_results,
    write_whole,
)
from trainers.episode_sums import RETURN
from trainers.evaluate import EpisodeResults
from trainers.statistics import Interval, Resampling

METRICS = {
    "return": RETURN,
    "latency_s": Metric("latency_s", "requests", "s", "lower"),
    "fetches": Metric("fetches", "steps"),
}
HOW = Resampling(resamples=400)
EPISODES = 16


def results(shift: float = 0.0, seed: int = 0, latency: float = 1.0, **changes) -> EpisodeResults:
    """Episodes of shared difficulty, played with some luck; no requests in the first one."""
    difficulty = np.random.default_rng(100).normal(0, 5, EPISODES)
    luck = np.random.default_rng(seed).normal(0, 0.2, EPISODES)
    requests = np.arange(EPISODES, dtype=np.float64)
    sums = {
        "reward": difficulty + luck + shift,
        "steps": np.full(EPISODES, 10.0),
        "requests": requests,
        "latency_s": latency * requests,
        "fetches": np.full(EPISODES, 20.0),
    }
    base = EpisodeResults("policy", "games/toy", np.arange(EPISODES) + 2**61, METRICS, sums, {"problem": "games", "size": 3})
    return dataclasses.replace(base, **changes)


def text_of(comparison, width: int) -> str:
    console = Console(width=width, force_terminal=False, color_system=None, record=True, file=io.StringIO())
    console.print(comparison)
    return console.export_text()


def test_order_standings_and_verdicts():
    comparison = compare(
        {
            "slow": [results(0.0, 1, latency=2.0)],
            "good": [results(3.0, 2)],
            "same": [results(3.0, 3)],
        },
        HOW,
    )
    order = [policy.label for policy in comparison.policies]
    assert set(order[:2]) == {"good", "same"}
    assert order[2] == "slow"
    standing = {p.label: {name: m.standing for name, m in p.metrics.items()} for p in comparison.policies}
    assert standing[order[0]] == {"return": "best", "latency_s": "best", "fetches": ""}
    assert standing[order[1]] == {"return": "tied", "latency_s": "best", "fetches": ""}
    assert standing["slow"] == {"return": "", "latency_s": "", "fetches": ""}
    best, second, third = (policy.versus for policy in comparison.policies)
    assert (best.other, second.other, third.other) == (order[1], order[0], order[0])
    assert (best.verdict, second.verdict, third.verdict) == ("no difference shown", "no difference shown", "worse")
    assert third.difference.estimate == pytest.approx(-3.0, abs=0.3)
    assert third.improvement.estimate == 0.0
    assert best.difference.estimate == -second.difference.estimate
    assert (best.difference.low, best.difference.high) == (-second.difference.high, -second.difference.low)
    assert comparison.headline == f"{order[0]} has the highest mean return, but no difference is shown to {order[1]}."
    assert comparison.verdicts()[1].startswith(f"{order[0]} against slow: +")
    assert comparison.verdicts()[1].endswith("], paired over 16 episodes: better")


def test_headline_names_a_clear_winner():
    two = compare({"a": [results(0.0, 1)], "b": [results(3.0, 2)]}, HOW)
    assert two.headline == "b has the highest return and is better than a."
    three = compare({"a": [results(0.0, 1)], "b": [results(3.0, 2)], "c": [results(1.0, 3)]}, HOW)
    assert three.headline == "b has the highest return and is better than every other policy."
    alone = compare({"a": [results(0.0, 1)]}, HOW)
    assert alone.headline.startswith("a reaches a return of ")
    assert alone.verdicts() == []
    assert alone.policies[0].versus is None


def test_one_episode_shows_no_difference():
    runs = {label: [results(shift)] for label, shift in (("a", 0.0), ("b", 3.0))}
    short = {
        label: [dataclasses.replace(r, seeds=r.seeds[:1], sums={n: s[:1] for n, s in r.sums.items()}) for r in of_label]
        for label, of_label in runs.items()
    }
    comparison = compare(short, HOW)
    assert comparison.policies[0].versus.verdict == "no difference shown"
    assert comparison.rows()[0]["metrics"]["return"]["mean"]["low"] is None
    assert "games/toy: 1 episode\n" in text_of(comparison, 120)


def test_runs_of_one_algorithm_are_taken_together():
    comparison = compare({"a": [results(0.0, 1), results(2.0, 2), results(4.0, 3)], "b": [results(-9.0, 4)]}, HOW)
    assert [policy.runs for policy in comparison.policies] == [3, 1]
    mean = comparison.policies[0].metrics["return"].mean
    assert mean.estimate == pytest.approx(np.mean([r.values["return"].mean() for r in comparison.results["a"]]))
    single = compare({"a": [results(2.0, 2)]}, HOW).policies[0].metrics["return"].mean
    difference, alone = comparison.policies[0].versus.difference, single.high - single.low
    assert difference.high - difference.low > 2.0  # the spread of the runs, which pairing by episode does not remove
    assert mean.high - mean.low > alone
    assert comparison.title == "games/toy: 16 episodes, 1 to 3 runs each"


def test_pooled_ratio_stands_beside_the_mean_of_ratios():
    sums = {**results().sums, "requests": np.array([1.0, 99.0] + [0.0] * 14), "latency_s": np.array([10.0, 99.0] + [0.0] * 14)}
    summary = compare({"a": [results(sums=sums)]}, HOW).policies[0].metrics["latency_s"]
    assert summary.mean.estimate == pytest.approx((10 + 1) / 2)
    assert summary.mean.episodes == 2
    assert summary.pooled == pytest.approx(1.09)


@pytest.mark.parametrize("width", [60, 80, 300])
def test_table_fits_the_terminal_and_shows_everything(width):
    comparison = compare({"first": [results(1.0, 1)], "[red]odd": [results(0.0, 2, latency=2.0)]}, HOW)
    text = text_of(comparison, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in ("games/toy: 16 episodes", "first", "[red]odd", "return", "latency", "s ↓", "fetches", "95 % interval"):
        assert part in text
    for policy in comparison.policies:
        for summary in policy.metrics.values():
            for line in format_interval(summary.mean, "\n").split("\n"):
                assert line in text


def test_best_value_is_set_apart():
    comparison = compare({"a": [results(1.0, 1)], "b": [results(0.0, 2)]}, HOW)
    (table,) = comparison.tables(200)
    styles = [cell.style for cell in table.columns[1].cells]
    assert styles == ["bold green", ""]


def test_metric_that_one_policy_lacks_is_a_dash():
    bytes_sent = Metric("message_bytes", None, "B")
    talking = results(
        1.0,
        metrics={**METRICS, "message_bytes": bytes_sent},
        sums={**results(1.0).sums, "message_bytes": np.full(EPISODES, 8.0)},
    )
    comparison = compare({"talking": [talking], "silent": [results(0.0, 1)]}, HOW)
    assert list(comparison.metrics) == [*METRICS, "message_bytes"]
    (table,) = comparison.tables(300)
    assert [cell.plain for cell in table.columns[-1].cells] == ["8", "-"]
    assert "message_bytes" not in comparison.marl_eval()["games"]["toy"]["talking"]["seed_0"]["absolute_metrics"]


def test_rows_are_strict_json():
    rows = compare({"a": [results(1.0, 1)], "b": [results(0.0, 2)]}, HOW).rows()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [row["policy"] for row in rows] == ["a", "b"]
    assert rows[0]["metrics"]["latency_s"]["unit"] == "s"
    assert rows[0]["return_difference"]["verdict"] == "better"
    assert rows[1]["return_difference"]["other"] == "a"


def test_files_round_trip(tmp_path):
    trained = results(1.0, 1, env_steps=5000, run="a-seed-7")
    comparison = compare({"a": [trained, results(2.0, 2)], "b": [results(0.0, 3)]}, HOW)
    evaluation, details = comparison.write(tmp_path / "new" / "folder")
    assert sorted(path.name for path in evaluation.parent.iterdir()) == [EVALUATION, DETAILS]
    for source in (evaluation.parent, evaluation, details):
        again = read_results(source)
        assert compare(again, HOW).rows() == comparison.rows()
    run = again["a"][0]
    assert (run.env_steps, run.run, run.metrics, run.scenario_fields) == (5000, "a-seed-7", METRICS, trained.scenario_fields)
    np.testing.assert_array_equal(run.seeds, trained.seeds)
    stored = json.loads(details.read_text())
    assert stored["intervals"] == {"confidence": 0.95, "resamples": 400, "seed": 0}
    assert {"python", "torch", "numpy"} <= stored["versions"].keys()


def test_marl_eval_layout(tmp_path):
    """Environment, task, algorithm, run, then steps with `step_count` and, last, the absolute metrics: lists of numbers."""
    comparison = compare({"a": [results(1.0, 1, env_steps=5000), results(2.0, 2, env_steps=6000)], "b": [results(0.0, 3)]}, HOW)
    evaluation, _ = comparison.write(tmp_path)
    stored = json.loads(evaluation.read_text(), parse_constant=pytest.fail)
    assert list(stored) == ["games"]
    assert list(stored["games"]) == ["toy"]
    algorithms = stored["games"]["toy"]
    assert {name: list(runs) for name, runs in algorithms.items()} == {"a": ["seed_0", "seed_1"], "b": ["seed_0"]}
    for label, runs in algorithms.items():
        for index, run in enumerate(runs.values()):
            source = comparison.results[label][index]
            assert list(run) == ["step_0", "absolute_metrics"]
            assert run["step_0"].pop("step_count") == source.env_steps
            assert run["step_0"] == run["absolute_metrics"]
            assert run["absolute_metrics"]["return"] == source.values["return"].tolist()
            assert run["absolute_metrics"]["latency_s"] == source.values["latency_s"][1:].tolist()  # undefined in the first


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("vehicular/v50-e6", ("vehicular", "v50-e6")),
        ("pettingzoo:mpe2.simple_spread_v3", ("pettingzoo", "mpe2.simple_spread_v3")),
        ("toy", ("toy", "toy")),
    ],
)
def test_problem_and_task(name, parts):
    assert problem_and_task(name) == parts


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = write_whole(tmp_path / "file.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "no results to compare: expected at least one evaluation"),
        ({"a": []}, "no results to compare for a"),
        (
            {"a": [results()], "b": [results(scenario="games/other")]},
            "a and b .*different scenarios, 'games/toy' and 'games/other'",
        ),
        ({"a": [results()], "b": [results(scenario_fields={"problem": "games", "size": 4})]}, "'games/toy' differ in size"),
        ({"a": [results(), results(seeds=np.arange(EPISODES))]}, r"different episodes \(16 and 16, by seed\)"),
        ({"a": [results()], "b": [results(metrics={**METRICS, "fetches": RETURN})]}, "a and b .*define fetches differently"),
        ({"a": [results(), results(metrics={"return": RETURN})]}, "the runs of a cannot be compared"),
    ],
)
def test_what_cannot_be_compared_is_refused(mapping, message):
    with pytest.raises(InputError, match=message) as error:
        compare(mapping, HOW)
    assert "\n" not in str(error.value)


def test_scenario_is_compared_by_name_where_its_fields_are_unknown():
    assert compare({"a": [results()], "b": [results(1.0, scenario_fields={})]}, HOW).scenario == "games/toy"


def break_details(change):
    def breaker(text: str) -> str:
        values = json.loads(text)
        change(values["results"]["a"][0], values)
        return json.dumps(values)

    return breaker


@pytest.mark.parametrize(
    ("breaker", "message"),
    [
        (lambda text: text[:-20], "not a whole JSON file"),
        (lambda text: "[1, 2]", "valid dictionary"),
        (break_details(lambda run, whole: whole.update(format="other")), "format = 'other'"),
        (break_details(lambda run, whole: whole.update(results={})), "results = "),
        (break_details(lambda run, whole: run["sums"].pop("requests")), "a: the sums lack requests"),
        (break_details(lambda run, whole: run["sums"]["reward"].pop()), "sums of reward: expected 16 values"),
        (break_details(lambda run, whole: run.update(seeds=["x"] * 16)), "seeds"),
        (break_details(lambda run, whole: run.update(extra=1)), "unknown key 'results.a.0.extra'"),
    ],
)
def test_broken_file_is_named(tmp_path, breaker, message):
    _, details = compare({"a": [results()]}, HOW).write(tmp_path)
    details.write_text(breaker(details.read_text()))
    with pytest.raises(InputError, match=message) as error:
        read_results(tmp_path)
    assert str(details) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{DETAILS}: cannot read the evaluation: No such file"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("interval", "signed", "text"),
    [
        (Interval(0.8, 0.17, 1.43, 9), True, "+0.80 [0.17, 1.43]"),
        (Interval(12345.678, 12000.0, 12700.0, 9), False, "12,346 [12,000, 12,700]"),
        (Interval(-0.0001, -0.4, 0.4, 9), False, "0.00 [-0.40, 0.40]"),
        (Interval(2e-9, 1e-9, 3e-9, 9), False, "2e-09 [1e-09, 3e-09]"),
        (Interval(11.0, 11.0, 11.0, 9), True, "+11"),
        (Interval(2.4, 2.4 - 1e-12, 2.4 + 1e-12, 9), False, "2.4"),
        (Interval(3.0, np.nan, np.nan, 1), False, "3"),
        (Interval(np.nan, np.nan, np.nan, 0), False, "-"),
    ],
)
def test_format_interval(interval, signed, text):
    assert format_interval(interval, signed=signed) == text


def test_heading_drops_the_unit_from_the_name():
    assert heading("latency_s", METRICS["latency_s"]) == ("latency", "s")
    assert heading("in_time_share", Metric("in_time", "requests")) == ("in time share", "")
    assert heading("energy", Metric("energy", None, "J")) == ("energy", "J")
