"""Heuristics of the velo problem, the bound, and what a comparison adds."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from envs.team import episode_seeds
from trainers.baselines import velo_headroom
from trainers.baselines.velo import HEURISTICS, ThresholdPolicy, best_threshold, thresholds_tried
from trainers.baselines.velo_bound import Clairvoyant, Rewards, best_openings
from trainers.baselines.velo_report import extend, figures
from trainers.cli import main
from trainers.evaluate import evaluate

SMALL = {"corpus": {"questions": 150, "new_groups": 20, "width": 48, "topics": 6, "zipf": 1.2}, "build_requests": 12}


def small(preset="n3", **overrides):
    return make_scenario(f"velo/{preset}", {**SMALL, **overrides})


def spec(**overrides):
    return make_simulator(small(**overrides), 1).spec


def observed(distance=0.4, kind=0, direct=0.0, reuse=0.0, age=1):
    """What one server of one episode sees, as far as heuristics look at it."""
    numbers = {"distance": [distance, 1.2], "age": [age, 1], "direct_satisfaction": [direct], "reuse_satisfaction": [reuse]}
    seen = {name: torch.tensor([[values]], dtype=torch.float32) for name, values in numbers.items()}
    return seen | {"kind": torch.tensor([[[kind, 1 if kind >= 0 else -1]]])}


def choice(name, mask=(True, True), **seen):
    policy = HEURISTICS[name](spec(num_servers=1))
    mask = torch.tensor([[[mask]]])
    return int(policy.act(observed(**seen), policy.initial_state(1), mask)[0])


@pytest.mark.parametrize(("distance", "asks"), [(0.05, "000"), (0.2, "100"), (0.4, "110"), (0.6, "111")])
def test_greedy_rules_ask_beyond_their_threshold(distance, asks):
    assert [choice(f"greedy-{at}", distance=distance) for at in ("0.1", "0.3", "0.5")] == [int(digit) for digit in asks]


def test_the_ends_of_the_scale_and_an_empty_store():
    assert (choice("store", distance=1.4), choice("cloud", distance=0.0)) == (0, 1)
    assert all(choice(name, kind=-1, distance=0.0) == 1 for name in ("greedy-0.5", "greedy-llm", "vcache"))
    assert choice("store", mask=(False, True)) == 1


def test_greedy_llm_compares_with_what_the_llm_has_achieved():
    assert (choice("greedy-llm", distance=0.45), choice("greedy-llm", distance=0.55)) == (0, 1)  # first estimate: 0.5
    assert (choice("greedy-llm", distance=0.75, direct=-0.8), choice("greedy-llm", distance=0.85, direct=-0.8)) == (0, 1)


@pytest.mark.parametrize(("distance", "kind", "expected"), [(0.4, 0, 0), (0.5, 0, 2), (0.4, 1, 2), (0.7, 0, 1)])
def test_with_three_actions_the_store_answers_or_augments_as_the_binary_rule_does(distance, kind, expected):
    policy = ThresholdPolicy(spec(preset="ternary", num_servers=1))
    policy.threshold = 0.6
    actions, _ = policy.act(observed(distance=distance, kind=kind), {}, torch.ones(1, 1, 1, 3, dtype=torch.bool))
    assert int(actions) == expected


def test_vcache_trusts_an_entry_after_it_was_right_and_never_after_it_was_wrong():
    """The first request at distance 0.3 is direct. If the cached answer would have been right, soon one at 0.2 is not."""
    policy = HEURISTICS["vcache"](spec(num_servers=1))
    asked = {}
    for right in (True, False):
        state, decisions = policy.initial_state(1), []
        for turn in range(8):
            seen = observed(distance=0.3, age=turn + 1, reuse=(-0.5 if right else -1.3) if turn else 0.0)
            stays, state = policy.stay(seen, state)
            decisions.append(bool(stays))
        stays, _ = policy.stay(observed(distance=0.2, age=9), state)
        asked[right] = (decisions[0], bool(stays))
    assert asked == {True: (False, True), False: (False, False)}


def test_the_best_threshold_is_the_best_of_those_tried():
    scenario = small()
    found = best_threshold(scenario, episodes=4)
    assert found in [float(threshold) for threshold in thresholds_tried()]
    assert best_threshold(small(test="both"), episodes=4) == found  # the test is not looked at


def test_heuristics_are_for_this_problem_and_the_expert_for_simulations():
    games = make_simulator(make_scenario("games/two-step"), 1).spec
    with pytest.raises(InputError, match=r"'greedy-0.1' is for the velo problem"):
        HEURISTICS["greedy-0.1"](games)
    with pytest.raises(InputError, match="decides in simulations only"):
        HEURISTICS["expert"](spec()).act({}, {}, torch.ones(1, 1, 1, 2, dtype=torch.bool))
    dag = make_scenario("dag/t5")
    with pytest.raises(InputError, match="dag has no expert"):
        evaluate(HEURISTICS["expert"](make_simulator(dag, 1).spec), dag, episode_seeds(0, 0, 1))


def brute_force(rewards, initial):
    """The best over all sets of direct requests."""
    requests, best = len(rewards.direct), -np.inf
    for direct in itertools.product([False, True], repeat=requests):
        held = np.concatenate([np.full(initial, True), direct])
        reach = np.where(held, rewards.stored, -np.inf).max(1, initial=-np.inf)
        best = max(best, sum(rewards.direct[t] if direct[t] else reach[t] for t in range(requests)))
    return best


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2), st.integers(0, 2**31))
def test_the_bound_of_openings_is_never_below_the_best_of_all(requests, initial, seed):
    """Nor far above it: it is a linear relaxation."""
    rng = np.random.default_rng(seed)
    stored = rng.uniform(-20, -5, (requests, initial + requests))
    stored[:, initial:][np.triu_indices(requests)] = -np.inf
    rewards = Rewards(rng.uniform(-20, -10, requests), stored)
    bound, best = best_openings(rewards, initial), brute_force(rewards, initial)
    assert best - 1e-6 <= bound <= best + 2.0


@pytest.mark.parametrize(
    "overrides", [{}, {"test": "both"}, {"test": "both", "offloading": "all"}, {"action_space": "ternary"}]
)
def test_no_policy_exceeds_the_bound(overrides):
    scenario, seeds = small(test_requests=6, **overrides), episode_seeds(8, 0, 6)
    bounds = Clairvoyant(scenario).bounds(seeds)
    for policy in HEURISTICS.values():
        returns = evaluate(policy(make_simulator(scenario, 1).spec), scenario, seeds).values["return"]
        assert (returns <= bounds + 1e-4).all()


def test_the_headroom_of_the_defaults():
    """Random, the paper's rules, the expert and the bound are apart: there is something to learn."""
    scenario, seeds = make_scenario("velo/n3"), episode_seeds(1, 0, 12)
    made = make_simulator(scenario, 1).spec
    returns = {
        name: evaluate(HEURISTICS[name](made), scenario, seeds).values["return"].mean()
        for name in ("cloud", "random", "store", "greedy-0.5", "expert")
    }
    ordered = [*returns.values(), Clairvoyant(scenario).bounds(seeds).mean()]
    assert (np.diff(ordered) > 20).all()


def played(scenario, names, seeds):
    made = make_simulator(scenario, 1).spec
    return {name: [evaluate(HEURISTICS[name](made), scenario, seeds)] for name in names}


def test_gaps_are_to_the_bound_of_each_episode_and_the_figure_shows_both_parts():
    scenario, seeds = small("n3-test", test_requests=5), episode_seeds(9, 0, 4)
    before = played(scenario, ["store", "cloud"], seeds)
    results, remarks = extend(before, scenario, seeds, solver_s=10.0)
    bounds = Clairvoyant(scenario).bounds(seeds)
    for runs in results.values():
        np.testing.assert_allclose(runs[0].values["bound_gap"], bounds - runs[0].values["return"])
    assert "upper bound of the return" in remarks[0]
    ((caption, figure),) = figures({}, scenario, int(seeds[0])).values()
    assert "95 % intervals" in caption
    assert [axes.get_title() for axes in figure.axes] == ["similar requests", "new requests"]
    assert all(len(axes.containers) == 2 for axes in figure.axes)
    assert extend(before, scenario, seeds, solver_s=0.0) == (before, [])


def test_compare_prints_both_parts(tmp_path, capsys, monkeypatch):
    where = ["--scenario", "velo/n3-test", "--out", str(tmp_path), "--episodes", "3", "--json"]
    small_ones = [f"scenario.{key}={value}" for key, value in (("build_requests", 10), ("test_requests", 4))]
    sets = [part for one in (*small_ones, "scenario.corpus.questions=150") for part in ("--set", one)]
    monkeypatch.setattr(sys, "argv", ["edgeflock", "compare", *where, *sets, "--policies", "greedy-0.5,expert"])
    main()
    assert "upper bound" in capsys.readouterr().out
    assert {"tradeoff.svg", "tradeoff.png", "index.html"} <= {path.name for path in Path(tmp_path).iterdir()}
    summary = json.dumps(json.loads((tmp_path / "evaluation_details.json").read_text())["summary"])
    assert all(
        f"{part}_{name}" in summary for part in ("similar", "new") for name in ("reward", "hit_share", "wrong_hit_share")
    )


def test_the_headroom_table(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules["envs.velo"].PRESETS, "tiny", {**SMALL, "test": "both", "test_requests": 4})
    assert velo_headroom.main(["velo/tiny", "--episodes", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:] == [*HEURISTICS, "upper bound"]
    assert velo_headroom.main(["velo/n4"]) == 2
    assert velo_headroom.main(["games/two-step"]) == 2
