"""Bundles for others: what is written, and what is refused."""

import json

import pytest
import torch

from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from envs.team import episode_seeds
from trainers.export import export_bundle, export_heuristic
from trainers.heuristics import heuristics
from trainers.learned_policy import load_policy

SCENARIO = make_scenario("dialogue/d1")


def test_a_heuristics_bundle_decides_as_the_heuristic(tmp_path):
    export_heuristic("greedy", SCENARIO, tmp_path / "greedy")
    simulator = make_simulator(SCENARIO, 8)
    start = simulator.reset(episode_seeds(0, 0, 8))
    loaded, known = load_policy(tmp_path / "greedy"), heuristics("dialogue")["greedy"](simulator.spec)
    actions = [policy.act(start.observation, {}, start.action_mask)[0] for policy in (loaded, known)]
    assert torch.equal(*actions)


def test_the_example_is_a_request_of_the_scenario(tmp_path):
    export_heuristic("greedy", SCENARIO, tmp_path / "greedy")
    example = json.loads((tmp_path / "greedy" / "example.json").read_text())
    spec = make_simulator(SCENARIO).spec
    assert {name: list(torch.tensor(value).shape) for name, value in example["observation"].items()} == {
        name: [1, *field.shape] for name, field in spec.observation.items()
    }
    assert torch.tensor(example["action_mask"]["endpoint"]).shape == (1, 9)


def test_a_bundle_may_be_replaced_and_copied(tmp_path):
    export_heuristic("device", SCENARIO, tmp_path / "one")
    export_heuristic("greedy", SCENARIO, tmp_path / "one")
    export_bundle(tmp_path / "one", tmp_path / "two")
    assert load_policy(tmp_path / "two").name == "greedy"


def test_other_things_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="exists and is no bundle"):
        export_heuristic("greedy", SCENARIO, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        export_heuristic("greedy", SCENARIO, tmp_path / "file" / "bundle")


def test_an_unknown_heuristic_is_named_beside_those_there_are(tmp_path):
    with pytest.raises(InputError, match="'gredy': dialogue has random, device, cloud"):
        export_heuristic("gredy", SCENARIO, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_bundle_is_not_copied(tmp_path):
    with pytest.raises(InputError, match="no such run or bundle"):
        export_bundle(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()
