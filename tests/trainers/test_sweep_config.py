"""Sweep files: which trials follow from them, and what is refused before anything starts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from envs.errors import InputError
from trainers.algorithms import find_algorithm
from trainers.report_claims import find_claims
from trainers.sweep_config import SWEEPS, Draw, cost, find_sweep, load_sweep, make_trials

BASE: dict[str, Any] = {
    "name": "toy",
    "about": "a test",
    "trial_minutes": 1.5,
    "algorithms": ["qmix", "vdn"],
    "scenarios": ["games/two-step", "games/climb"],
    "seeds": 2,
    "set": {"training.env_steps": 500},
}


def sweep_file(folder: Path, **changes: Any) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))
    return path


def trials_of(folder: Path, quick: bool = False, **changes: Any) -> list:
    return make_trials(load_sweep(sweep_file(folder, **changes), quick))


def test_every_seed_scenario_and_algorithm_is_a_trial_and_the_first_seed_comes_first(tmp_path: Path) -> None:
    trials = trials_of(tmp_path)
    assert [trial.name for trial in trials] == [
        f"{algorithm}-{scenario}-seed{seed}"
        for seed in (1, 2)
        for scenario in ("two-step", "climb")
        for algorithm in ("qmix", "vdn")
    ]
    config = trials[-1].run_config()
    assert (config.name, config.scenario.name, config.seed, config.training.env_steps) == ("vdn", "games/climb", 2, 500)


def test_variants_and_grid_multiply_and_their_values_arrive(tmp_path: Path) -> None:
    changes = {
        "variants": {"complete": {}, "simple targets": {"algorithm.td_lambda": 0.0}},
        "grid": {"algorithm.gamma": [0.9], "algorithm.lr": ["1e-3", 0.002]},
    }
    trials = trials_of(tmp_path, algorithms=["qmix"], scenarios=["games/climb"], seeds=[7], **changes)
    assert [trial.label for trial in trials] == [
        "qmix gamma=0.9 lr=1e-3",
        "qmix gamma=0.9 lr=0.002",
        "qmix simple targets gamma=0.9 lr=1e-3",
        "qmix simple targets gamma=0.9 lr=0.002",
    ]
    assert trials[3].name == "qmix-simple-targets-gamma=0.9-lr=0.002-climb-seed7"
    assert [trial.run_config().algorithm.lr for trial in trials] == [0.001, 0.002] * 2
    assert trials[2].run_config().algorithm.model_dump()["td_lambda"] == 0.0
    assert {trial.run_config().algorithm.gamma for trial in trials} == {0.9}


def test_draws_are_the_same_for_every_algorithm_and_every_time(tmp_path: Path) -> None:
    changes = {"random": {"algorithm.lr": {"log_uniform": [1e-5, 1e-1]}}, "draws": 4, "seeds": [1]}
    drawn: dict[str, list[float]] = {}
    for trial in trials_of(tmp_path, **changes):
        drawn.setdefault(trial.group, []).append(trial.run_config().algorithm.lr)
    one, *others = drawn.values()
    assert len(set(one)) == 4
    assert all(other == one for other in others)
    assert [trial.overrides for trial in trials_of(tmp_path, **changes)] == [
        trial.overrides for trial in trials_of(tmp_path, **changes)
    ]
    assert trials_of(tmp_path, draw_seed=1, **changes)[0].overrides != trials_of(tmp_path, **changes)[0].overrides


def test_points_come_before_the_draws(tmp_path: Path) -> None:
    trials = trials_of(tmp_path, points={"by hand": {"algorithm.lr": 0.3}}, seeds=[1], algorithms=["qmix"], **DRAWN)
    assert [trial.label for trial in trials[:3]] == ["qmix by hand", "qmix draw00", "qmix draw01"]
    assert trials[0].name == "qmix-by-hand-two-step-seed1"
    assert trials[0].run_config().algorithm.lr == 0.3
    assert [trial.overrides for trial in trials[1:3]] == [
        trial.overrides for trial in trials_of(tmp_path, seeds=[1], algorithms=["qmix"], **DRAWN)[:2]
    ]


def test_the_defaults_of_tuning_sweeps_are_the_models_own() -> None:
    for name in READY:
        sweep = load_sweep(find_sweep(name))
        if "tuning" not in name:
            continue
        for algorithm in sweep.algorithms:
            fields = find_algorithm(algorithm).config_class().settings_class.model_fields
            for key, value in (sweep.points or {})["defaults"].items():
                field = fields.get(key.removeprefix("algorithm."))
                assert field is not None
                assert field.default == value, (name, algorithm, key)


def test_draws_stay_in_their_ranges_and_reach_both_ends() -> None:
    rng = np.random.default_rng(0)
    integers = [Draw(integers=(2, 4)).draw(rng) for _ in range(200)]
    assert set(integers) == {2, 3, 4}
    uniform = [Draw(uniform=(0.2, 0.4)).draw(rng) for _ in range(200)]
    assert 0.2 <= min(uniform) < 0.21
    assert 0.39 < max(uniform) <= 0.4
    wide = np.log10([Draw(log_uniform=(1e-6, 1e-2)).draw(rng) for _ in range(400)])
    assert np.mean(wide) == pytest.approx(-4, abs=0.2)  # the middle of the exponents, not of the numbers
    assert {Draw(choice=["a", "b"]).draw(rng) for _ in range(50)} == {"a", "b"}


def test_the_quick_section_lies_over_the_rest(tmp_path: Path) -> None:
    quick = {"seeds": 1, "scenarios": ["games/climb"], "set": {"training.num_envs": 4}}
    path = sweep_file(tmp_path, quick=quick)
    assert len(make_trials(load_sweep(path))) == 8
    small = load_sweep(path, quick=True)
    assert small.name == "toy-quick"
    training = make_trials(small)[0].run_config().training
    assert (len(make_trials(small)), training.env_steps, training.num_envs) == (2, 500, 4)


def test_the_cost_is_stated(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path))
    assert cost(sweep, make_trials(sweep)) == "8 trials, at most 4,000 environment steps, about 12 core-minutes"


def test_a_saved_sweep_is_the_same_sweep(tmp_path: Path) -> None:
    changes = {"grid": {"algorithm.lr": [1e-3]}, "scheduler": {"kind": "asha", "grace": 0.5}}
    sweep = load_sweep(sweep_file(tmp_path, **changes))
    sweep.save(tmp_path / "again.yaml")
    assert load_sweep(tmp_path / "again.yaml") == sweep


POPULATION = {"kind": "pbt"}
DRAWN = {"random": {"algorithm.lr": {"uniform": [0.1, 0.2]}}, "draws": 2}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"grid": {}}, "grid = {}"),
        ({"grid": {"algorithm.lr": []}}, "grid.algorithm.lr = []"),
        ({"variants": {}}, "variants = {}"),
        ({"algorithms": []}, "algorithms = []"),
        ({"seeds": 0}, "seeds = 0"),
        ({"seeds": [1, 1]}, "expected different numbers"),
        ({"grid": {"algorithm.lrr": [1]}}, "unknown key 'lrr', expected one of"),
        ({"grid": {"algorithm.gamma": [0.9, 7]}}, "trial qmix-gamma=7-two-step-seed1: algorithm qmix: gamma = 7"),
        ({"set": {"lr": 1}}, "expected SECTION.KEY=VALUE"),
        ({"variants": {"a": {"network.hiden": 1}}}, "unknown key 'hiden'"),
        ({"scenarios": ["chess/blitz"]}, "unknown problem 'chess'"),
        ({"scenarios": ["games/chess"]}, "unknown scenario 'games/chess'"),
        ({"algorithms": ["qmxi"]}, "unknown algorithm 'qmxi'"),
        ({"algorithms": ["qmix", "qmix"]}, "two trials would be called qmix-two-step-seed1"),
        ({"metrik": "x"}, "unknown key 'metrik'"),
        ({"random": {"algorithm.lr": {"uniform": [0, 1]}}}, "random and draws: expected both or neither"),
        ({"random": {"algorithm.lr": {"uniform": [1, 0]}}, "draws": 2}, "a lower and a higher bound"),
        ({"random": {"algorithm.lr": {"log_uniform": [0, 1]}}, "draws": 2}, "above 0"),
        ({"random": {"algorithm.lr": {}}, "draws": 2}, "expected exactly one of"),
        ({"points": {"a": {"algorithm.lr": 1}}}, "points: a: expected a value for each key of random (none)"),
        ({"points": {"a": {}}, **DRAWN}, "points: a: expected a value for each key of random (algorithm.lr)"),
        ({"scheduler": {"kind": "asha", "grace": 0}}, "grace = 0"),
        ({"scheduler": POPULATION}, "expected random settings"),
        ({"scheduler": POPULATION, **DRAWN}, "expected one algorithm, scenario and seed"),
    ],
)
def test_bad_files_are_refused_in_one_line(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        trials_of(tmp_path, **changes)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "name: x"])
def test_files_that_are_no_sweeps_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.yaml"):
        load_sweep(path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a sweep file nor a ready sweep"):
        find_sweep("nothing")
    with pytest.raises(InputError, match="has no `quick` section"):
        load_sweep(sweep_file(tmp_path), quick=True)


READY = sorted(path.stem for path in SWEEPS.glob("*.yaml"))


@pytest.mark.parametrize("name", READY)
def test_ready_sweeps_are_valid_in_both_sizes(name: str) -> None:
    full, quick = (load_sweep(find_sweep(name), small) for small in (False, True))
    assert full.name == name
    one_seed = full.model_copy(update={"seeds": full.seed_list[:1]})
    assert make_trials(one_seed)
    assert full.report.claims is None or find_claims(full.report.claims)
    minutes = len(make_trials(quick)) * quick.trial_minutes / 2
    assert minutes <= 9, f"{name} --quick takes {minutes} minutes on two cores, by its own estimate"


def test_every_problem_has_a_comparison_an_ablation_and_a_tuning() -> None:
    for problem in ("vehicular", "dag", "dialogue", "velo"):
        kinds = {name.split("-")[1] for name in READY if name.split("-")[0] == problem}
        assert {"comparison", "tuning"} <= kinds
        assert kinds & {"ablation", "diffusion"}
        assert load_sweep(find_sweep(f"{problem}-comparison")).seeds == 10


def test_every_algorithm_is_tuned_with_as_many_trials() -> None:
    tunings = [load_sweep(find_sweep(name)) for name in READY if "tuning" in name]
    assert {(sweep.draws, len(sweep.seed_list), sweep.scheduler) for sweep in tunings} == {(10, 1, tunings[0].scheduler)}
    assert all(list(sweep.points or {}) == ["defaults", "by-hand"] for sweep in tunings)
    compared = [load_sweep(find_sweep(name)) for name in READY if "comparison" in name]
    used = {seed for sweep in compared for seed in sweep.seed_list}
    assert not used & {seed for sweep in tunings for seed in sweep.seed_list}
