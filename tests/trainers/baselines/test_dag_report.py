"""What a comparison adds on the dag problem, from the command line and by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.registry import make_scenario, make_simulator
from envs.team import episode_seeds
from trainers.baselines.dag import HEURISTICS
from trainers.baselines.dag_report import extend
from trainers.cli import main
from trainers.evaluate import evaluate


def played(scenario, names: list[str], seeds) -> dict:
    spec = make_simulator(scenario, 1).spec
    return {name: [evaluate(HEURISTICS[name](spec), scenario, seeds)] for name in names}


def test_the_best_mean_is_normalised_to_a_tenth_and_the_worst_to_one():
    scenario, seeds = make_scenario("dag/t5"), episode_seeds(1, 0, 4)
    results, remarks = extend(played(scenario, ["heft", "edge", "cloud"], seeds), scenario, seeds, solver_s=0.0)
    means = {name: runs[0].pooled("objective") for name, runs in results.items()}
    assert means["heft"] < means["edge"] < means["cloud"]
    shares = {name: runs[0].pooled("normalised_objective") for name, runs in results.items()}
    # 0.1 + 0.9 * (value - best) / (worst - best)
    middle = 0.1 + 0.9 * (means["edge"] - means["heft"]) / (means["cloud"] - means["heft"])
    assert shares == pytest.approx({"heft": 0.1, "edge": middle, "cloud": 1.0})
    assert remarks == []


def test_gaps_are_to_the_optimum_of_each_episode():
    scenario, seeds = make_scenario("dag/t5", {"num_tasks": 2}), episode_seeds(2, 0, 3)
    results, remarks = extend(played(scenario, ["heft", "cloud"], seeds), scenario, seeds, solver_s=20.0)
    for runs in results.values():
        gaps = runs[0].values["optimality_gap"]
        assert (gaps > -1e-6).all()
        best = runs[0].sums["objective"] / (1.0 + gaps)
        assert np.allclose(best, results["heft"][0].sums["objective"] / (1.0 + results["heft"][0].values["optimality_gap"]))
    assert remarks == ["optimum (orders that the steps allow): proved for 3 of 3 episodes."]


def test_episodes_with_open_tasks_have_neither_gap_nor_normalised_objective():
    scenario, seeds = make_scenario("dag/paper", {"num_tasks": 2, "max_steps": 9}), episode_seeds(3, 0, 4)
    results, _ = extend(played(scenario, ["random", "heft", "edge"], seeds), scenario, seeds, solver_s=10.0)
    random = results["random"][0]
    open_tasks = random.sums["completed"] < 2
    assert open_tasks.any()
    for metric in ("optimality_gap", "normalised_objective"):
        assert np.isnan(random.values[metric][open_tasks]).all()
        assert np.isfinite(results["heft"][0].values[metric]).all()


def test_compare_prints_both_and_draws_schedules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--policies", "heft,greedy", "--episodes", "2", "--solver-s", "5", "--out", str(out), "--json"]
    scenario = ["--scenario", "dag/t5", "--set", "scenario.num_tasks=2"]
    monkeypatch.setattr(sys, "argv", ["edgeflock", "compare", *scenario, *options])
    main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    heft = next(line for line in lines if line.get("policy") == "heft")
    assert {"normalised_objective", "optimality_gap", "completed_tasks", "latency_s", "cost_usd"} <= heft["metrics"].keys()
    assert any("proved" in line.get("remark", "") for line in lines)
    assert {"schedule-heft.png", "schedule-greedy.svg", "index.html"} <= {path.name for path in out.iterdir()}
    assert "Schedule of the first episode under greedy" in (out / "index.html").read_text()
