"""Routers of the dialogue problem, the optimum, and what a comparison adds."""

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
from trainers.baselines import dialogue_headroom
from trainers.baselines.dialogue import HEURISTICS
from trainers.baselines.dialogue_optimum import best_plans, best_returns, conversations, dual_bound
from trainers.baselines.dialogue_report import extend, figures
from trainers.cli import main
from trainers.evaluate import evaluate


def observed(category=0, difficulty=0.5, relevance=(0.0, 0.0, 0.0), **more):
    """What one device of one episode sees of a turn."""
    numbers = {"difficulty_hint": [difficulty], "relevance_hint": list(relevance), "prompt_tokens": [40], "turn": [2]}
    numbers |= {"history_tokens": [0, 0], "cloud_latency_s": [0.5, 1.9, 2.0, 2.2], "link_up": [1]}
    numbers |= {"rate_backlog_s": [0], "queue_backlog_s": [0], "latency_left_s": [20], "usd_left": [0.03], "exceeded": [0]}
    seen = {name: torch.tensor([[values]], dtype=torch.float32) for name, values in (numbers | more).items()}
    return seen | {"category": torch.tensor([[[category]]]), "network": torch.tensor([[[1]]])}


def choice(name, mask=None, **seen):
    policy = HEURISTICS[name](make_simulator(make_scenario("dialogue/d1"), 1).spec)
    actions, _ = policy.act(observed(**seen), {}, torch.ones(1, 1, 1, 9, dtype=torch.bool) if mask is None else mask)
    return int(actions)


@pytest.mark.parametrize(
    ("difficulty", "relevance", "strict", "balanced", "generous"),
    [
        (0.3, (0.1, 0.2, 0.3), 0, 0, 0),
        (0.5, (0.1, 0.5, 0.3), 0, 0, 3),  # overhead
        (0.7, (0.1, 0.5, 0.3), 0, 1, 3),
        (0.9, (0.7, 0.9, 0.5), 3, 4, 8),
    ],
)
def test_stricter_routers_ask_less(difficulty, relevance, strict, balanced, generous):
    seen = {"difficulty": difficulty, "relevance": relevance}
    assert [choice(f"router-{kind}", **seen) for kind in ("strict", "balanced", "generous")] == [strict, balanced, generous]


def test_the_uncertainty_router_sends_the_best_view_at_most():
    assert choice("uncertainty", difficulty=0.4, relevance=(1, 1, 1)) == 0
    assert choice("uncertainty", difficulty=0.6, relevance=(0.2, 0.1, 0.9)) == 5  # side
    assert choice("uncertainty", difficulty=0.6, relevance=(0.2, 0.1, 0.2)) == 1


def test_what_is_not_legal_stays_on_the_device():
    only_local = torch.arange(9)[None, None, None] == 0
    assert choice("device") == 0
    assert choice("cloud") == 8
    assert all(choice(name, mask=only_local, difficulty=1.0, relevance=(1, 1, 1)) == 0 for name in HEURISTICS)


def test_greedy_looks_at_prices_and_paced_at_budgets():
    scene = {"category": 3, "difficulty": 0.5, "relevance": (0.0, 1.0, 0.0)}
    assert choice("greedy", **scene) == choice("paced", **scene) == 3
    assert choice("greedy", **scene, cloud_latency_s=[0.5, 20, 20, 20]) == 1
    assert choice("paced", **scene, usd_left=[0.004]) == 1  # a view costs 0.005 $
    assert choice("paced", **scene, usd_left=[0.0]) == 0
    assert choice("greedy", **scene, queue_backlog_s=[60]) == choice("paced", **scene, queue_backlog_s=[60], usd_left=[0]) + 3


def test_heuristics_are_for_this_problem_and_paced_for_known_budgets():
    with pytest.raises(InputError, match="'device' is for the dialogue problem"):
        HEURISTICS["device"](make_simulator(make_scenario("games/two-step"), 1).spec)
    scenario = make_scenario("dialogue/d1", {"observe_budget": False})
    with pytest.raises(InputError, match="observe_budget = true"):
        evaluate(HEURISTICS["paced"](make_simulator(scenario, 1).spec), scenario, episode_seeds(0, 0, 2))


def brute_force(scenario, seed):
    """The best return of one device's episode over all sequences of choices."""
    sequences = torch.tensor(list(itertools.product(range(9), repeat=scenario.max_turns)))
    simulator = make_simulator(scenario, len(sequences))
    simulator.reset(torch.full((len(sequences),), seed))
    total = torch.zeros(len(sequences), dtype=torch.float64)
    for turn in range(scenario.max_turns):
        total += simulator.step(sequences[:, turn, None, None]).reward
    return total.max().item()


SHORT = st.fixed_dictionaries(
    {
        "max_turns": st.sampled_from([3, 4]),
        "latency_budget_s": st.sampled_from([3.0, 6.0, 9.0, 30.0]),
        "usd_budget": st.sampled_from([0.002, 0.008, 0.05]),
        "history_turns": st.sampled_from([0, 1, 2, 5]),
        "outage_probability": st.sampled_from([0.0, 0.4]),
        "network": st.sampled_from(["walk", "wifi", "5g", "wired"]),
    }
)


@settings(max_examples=6, deadline=None)
@given(SHORT, st.integers(0, 2**40))
def test_the_optimum_is_the_best_of_all_sequences(overrides, seed):
    scenario = make_scenario("dialogue/d1", {"min_turns": 3, **overrides})
    (plan,) = best_plans(scenario, torch.tensor([seed]))[0]
    assert plan.exact
    assert plan.reward == pytest.approx(brute_force(scenario, seed), abs=1e-5)


def test_the_optimum_can_be_played():
    """Its choices bring the reward, latency and dollars that it states."""
    scenario, seeds = make_scenario("dialogue/d1"), episode_seeds(7, 0, 12)
    plans = [plan for (plan,) in best_plans(scenario, seeds)]
    simulator = make_simulator(scenario, 12)
    simulator.reset(seeds)
    sums = dict.fromkeys(("reward", "latency_s", "usd"), torch.zeros(12, dtype=torch.float64))
    for turn in range(scenario.max_turns):
        chosen = [plan.choices[turn] if turn < len(plan.choices) else 0 for plan in plans]
        result = simulator.step(torch.tensor(chosen)[:, None, None])
        sums = {name: total + result.metrics[name] for name, total in sums.items()}
    whole = [row for row, plan in enumerate(plans) if len(plan.choices) == simulator.episode.turns[row]]
    assert len(whole) > 8
    for name, total in sums.items():
        assert total[whole].tolist() == pytest.approx([getattr(plans[row], name) for row in whole], abs=1e-5)


def test_no_router_exceeds_the_bounds_of_a_fleet():
    scenario, seeds = make_scenario("dialogue/d8"), episode_seeds(8, 0, 4)
    best = best_returns(best_plans(scenario, seeds))
    dual = dual_bound(conversations(scenario, seeds)).bound.view(4, 8).mean(1)
    assert (dual.numpy() >= best - 1e-9).all()
    assert (dual.numpy() - best < 0.1).all()  # and the search's bound is tight
    for policy in HEURISTICS.values():
        returns = evaluate(policy(make_simulator(scenario, 1).spec), scenario, seeds).values["return"]
        assert (returns <= best + 1e-5).all()


def played(scenario, names, seeds):
    spec = make_simulator(scenario, 1).spec
    return {name: [evaluate(HEURISTICS[name](spec), scenario, seeds)] for name in names}


def test_gaps_are_to_the_optimum_of_each_episode():
    scenario, seeds = make_scenario("dialogue/d1"), episode_seeds(9, 0, 6)
    results, remarks = extend(played(scenario, ["paced", "cloud"], seeds), scenario, seeds, solver_s=10.0)
    best = best_returns(best_plans(scenario, seeds))
    for runs in results.values():
        gap = runs[0].values["optimality_gap"]
        np.testing.assert_allclose(gap, best - runs[0].values["return"])
        assert (gap > -1e-5).all()
    assert "exact for 6 of 6 conversations" in remarks[0]


def test_without_time_there_is_no_gap_but_a_figure_of_all_episodes():
    scenario, seeds = make_scenario("dialogue/d1"), episode_seeds(9, 0, 6)
    names = ["device", "router-strict", "router-generous", "cloud", "paced"]
    results, remarks = extend(played(scenario, names, seeds), scenario, seeds, solver_s=0.0)
    assert remarks == []
    assert "optimality_gap" not in results["paced"][0].metrics
    ((caption, figure),) = figures({}, scenario, int(seeds[0])).values()
    assert "95 % intervals" in caption
    assert len(figure.axes) == 2
    assert all(len(axes.containers) == len(names) for axes in figure.axes)
    assert sum(text.get_text() in names for text in figure.legends[0].get_texts()) == len(names)


def test_compare_writes_the_figure(tmp_path, capsys, monkeypatch):
    where = ["--scenario", "dialogue/d1", "--out", str(tmp_path), "--episodes", "6", "--json"]
    monkeypatch.setattr(sys, "argv", ["edgeflock", "compare", *where, "--policies", "device,cloud,router-strict,paced"])
    main()
    assert "optimum:" in capsys.readouterr().out
    assert {"tradeoff.svg", "tradeoff.png", "index.html"} <= {path.name for path in Path(tmp_path).iterdir()}
    assert "optimality_gap" in json.dumps(json.loads((tmp_path / "evaluation_details.json").read_text())["summary"])


def test_the_headroom_table(capsys):
    assert dialogue_headroom.main(["dialogue/d1", "--episodes", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:] == [*HEURISTICS, "optimum"]
    assert dialogue_headroom.main(["dialogue/d9"]) == 2
    assert dialogue_headroom.main(["games/two-step"]) == 2
