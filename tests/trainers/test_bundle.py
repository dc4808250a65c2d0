"""Policy bundles: what is written is what is read, and damage is noticed."""

import json
from pathlib import Path

import pytest
import torch

from envs.errors import InputError
from envs.registry import make_simulator
from envs.team import TeamSpec, episode_seeds
from trainers.bundle import MANIFEST, WEIGHTS, load_bundle, save_bundle, spec_from_json, spec_to_json
from trainers.config import RunConfig, make_run_config
from trainers.learned_policy import build_module, export_policy, load_policy


@pytest.fixture
def config() -> RunConfig:
    return make_run_config("idmac", "vehicular/v50-e6", overrides=["scenario.num_vehicles=8", "network.intent.topology=ring"])


def exported(config: RunConfig, folder: Path) -> TeamSpec:
    spec = make_simulator(config.scenario).spec
    torch.manual_seed(0)
    export_policy(config, spec, build_module(config.name, spec, config.network, config.algorithm), folder, {"env_steps": 5})
    return spec


@pytest.mark.parametrize("scenario", ["vehicular/v200-e12", "games/two-step", "pettingzoo:mpe2.simple_spread_v3"])
def test_specs_survive_json(scenario: str) -> None:
    spec = make_simulator(make_run_config("vdn", scenario).scenario).spec
    again = spec_from_json(json.loads(json.dumps(spec_to_json(spec), allow_nan=False)))
    for name in ("problem", "scenario", "agents", "observation", "heads", "state_size", "max_steps", "metrics", "positions"):
        assert getattr(again, name) == getattr(spec, name), name


def test_a_loaded_policy_acts_as_the_exported_one(config: RunConfig, tmp_path: Path) -> None:
    spec = exported(config, tmp_path)
    torch.manual_seed(0)
    module = build_module(config.name, spec, config.network, config.algorithm).eval()
    policy = load_policy(tmp_path)
    step = make_simulator(config.scenario, 4).reset(episode_seeds(0, 0, 4))
    actions, _ = policy.act(step.observation, policy.initial_state(4), step.action_mask)
    expected, _, _ = module.act(module.packer(step.observation), step.action_mask, module.initial_state(4), explore=False)
    assert torch.equal(actions, expected)
    assert policy.metrics()["message_bytes"].tolist() == [6 * 2 * 16 * 4.0] * 4  # six agents hear two others: 16 float32


def test_a_manifest_tells_what_a_stranger_needs(config: RunConfig, tmp_path: Path) -> None:
    exported(config, tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["problem"] == "vehicular"
    assert manifest["scenario"]["num_vehicles"] == 8
    assert manifest["spec"]["observation"]["size_mb"]["unit"] == "MB"
    assert manifest["network"]["intent"]["topology"] == "ring"
    assert manifest["metrics"] == {"env_steps": 5}
    assert set(manifest["packages"]) == {"torch", "ray", "numpy"}
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, WEIGHTS}


def damage_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4] + b"damn")


def change_manifest(**values: object) -> object:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**manifest, **values}))

    return change


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (damage_weights, "checksum"),
        (lambda folder: (folder / WEIGHTS).unlink(), "not a policy bundle"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "not a policy bundle"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "format 1"),
        (change_manifest(format=2), "format 1"),
        (change_manifest(algorithm="qmxi"), "unknown algorithm 'qmxi'"),
        (change_manifest(network={"hidden": 32}), "do not fit together"),
        (change_manifest(spec={}), "do not fit together"),
        (change_manifest(settings={"lr": -1}), "lr = -1"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(harm, complaint: str, config: RunConfig, tmp_path: Path) -> None:
    exported(config, tmp_path)
    harm(tmp_path)
    with pytest.raises(InputError, match=complaint) as refused:
        load_policy(tmp_path)
    assert "\n" not in str(refused.value)


def test_nothing_half_written_is_left_where_a_bundle_is_replaced(tmp_path: Path) -> None:
    save_bundle(tmp_path, {"w": torch.zeros(2)}, {"step": 1})
    save_bundle(tmp_path, {"w": torch.ones(2)}, {"step": 2})
    weights, manifest = load_bundle(tmp_path)
    assert (weights["w"].tolist(), manifest["step"]) == ([1.0, 1.0], 2)
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, WEIGHTS}
