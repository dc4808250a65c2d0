"""From presets and overrides to a complete, reloadable configuration."""

from pathlib import Path

import pytest
import yaml

from envs.errors import InputError
from trainers.algorithms import ALGORITHMS
from trainers.config import PRESETS, RunConfig, make_run_config, merge, parse_overrides


def test_every_algorithm_has_a_preset_and_every_preset_an_algorithm() -> None:
    assert {path.stem for path in PRESETS.glob("*.yaml")} == set(ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("scenario", ["vehicular/v200-e12", "games/two-step", "pettingzoo:mpe2.simple_spread_v3"])
def test_a_configuration_survives_the_run_folder(algorithm: str, scenario: str, tmp_path: Path) -> None:
    config = make_run_config(algorithm, scenario, seed=3, overrides=["training.num_envs=7"])
    config.save(tmp_path / "config.yaml")
    assert RunConfig.load(tmp_path / "config.yaml") == config
    assert (config.seed, config.training.num_envs, config.scenario.name) == (3, 7, scenario)


def test_the_problems_part_of_a_preset_counts_on_that_problem_only() -> None:
    part = yaml.safe_load((PRESETS / "qmix.yaml").read_text())["problems"]["vehicular"]["algorithm"]
    assert make_run_config("qmix", "vehicular/v50-e6").algorithm.lr == part["lr"]
    assert make_run_config("qmix", "games/climb").algorithm.lr != part["lr"]
    assert make_run_config("qmix", "vehicular/v50-e6", overrides=["algorithm.lr=7e-3"]).algorithm.lr == 7e-3


def test_idmac_is_the_family_with_intents() -> None:
    intent = make_run_config("idmac", "vehicular/v50-e6", overrides=["network.intent.topology=ring"]).network.intent
    assert intent is not None
    assert intent.topology == "ring"
    assert make_run_config("qmix", "vehicular/v50-e6").network.intent is None


def test_overrides_nest_and_read_yaml() -> None:
    given = parse_overrides(["network.intent.size=8", "network.hidden=32", "algorithm.lr=5e-4", "scenario.traces=null"])
    assert given == {
        "network": {"intent": {"size": 8}, "hidden": 32},
        "algorithm": {"lr": 5e-4},
        "scenario": {"traces": None},
    }
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": None}) == {"a": {"b": 1, "c": 3}, "d": None}


@pytest.mark.parametrize("text", ["", "[1, 2]", "name: qmix", "name: qmix\nscenario: 3", "scenario: {problem: chess}", "a: [1"])
def test_a_file_that_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError):
        RunConfig.load(tmp_path / "config.yaml")
