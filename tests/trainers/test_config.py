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


def test_a_preset_states_only_what_differs_from_its_base() -> None:
    networks = {name: make_run_config(name, "velo/n3").network for name in ALGORITHMS if "mappo" in name or "lrs" in name}
    steps = {"dlrs": 10, "dlrs-l5": 5, "dlrs-l15": 15, "dlrs-v5": 5, "dlrs-v10": 10, "dlrs-v15": 15}
    for name, network in networks.items():
        config = make_run_config(name, "velo/n3")
        encodes = network.request_encoder is not None and network.request_encoder.field == "request"
        assert encodes == (name not in ("mappo", "g-mappo"))
        assert (config.algorithm.demonstrations > 0) == (name not in ("mappo", "t-mappo"))
        assert (network.diffusion is not None) == (name in steps)
        if network.diffusion is not None:
            assert network.diffusion.steps == steps[name]
            assert network.diffusion.schedule == ("vp" if "-v" in name else "linear")
        mappo = make_run_config("mappo", "velo/n3")
        assert config.training == mappo.training
        assert config.algorithm.model_copy(update={"demonstrations": 0, "demonstrations_min": 1}) == mappo.algorithm


def test_the_velo_family_runs_where_there_is_neither_expert_nor_request() -> None:
    config = make_run_config("dlrs", "dialogue/d1")
    assert config.algorithm == make_run_config("mappo", "dialogue/d1").algorithm
    assert config.network.request_encoder is not None
    assert config.network.request_encoder.field is None


@pytest.mark.parametrize("algorithm", ["qmix", "cs-ucb"])
def test_a_diffusion_actor_needs_a_stochastic_policy(algorithm: str) -> None:
    with pytest.raises(InputError, match=rf"network.diffusion: expected null, as {algorithm} has no stochastic policy"):
        make_run_config(algorithm, "games/climb", overrides=["network.diffusion.steps=5"])


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
