"""SUMO in the loop with a real server."""

import importlib
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from envs.registry import scenario_from_dict
from envs.vehicular.live import LiveSimulator
from tests.examples.running import ROOT
from trainers.bundle import load_bundle
from trainers.learned_policy import load_policy

pytest.importorskip("sumo")


@pytest.fixture(scope="module")
def sumo_loop():
    sys.path.insert(0, str(ROOT / "examples"))
    yield importlib.import_module("sumo_loop")
    sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def scenario(bundles: Path):
    return scenario_from_dict(load_bundle(bundles / "talking")[1]["scenario"])


def figures(printed: str) -> dict[str, str]:
    return {line[:25].strip(): line[25:] for line in printed.splitlines()}


class Here:
    """The policy in this process, in the endpoint's place."""

    def __init__(self, bundle: Path) -> None:
        self.policy = load_policy(bundle)
        self.state = self.policy.initial_state(1)

    def decide(self, spec, step) -> torch.Tensor:
        actions, self.state = self.policy.act(step.observation, self.state, step.action_mask)
        return actions


def test_served_decisions_route_the_requests_of_sumos_vehicles(
    server: str, bundles: Path, scenario, sumo_loop, example, tmp_path: Path, capsys
) -> None:
    shown = figures(example("sumo_loop.py", server, "talking", "--deadline-ms", "20000", "--seed", "3"))
    with closing(sumo_loop.Traffic(scenario, 3, tmp_path)) as traffic:
        sums, waited, missed = sumo_loop.drive(traffic, LiveSimulator(scenario), Here(bundles / "talking"), 20_000, 3)
    assert missed == 0
    sumo_loop.report(sums, waited, missed, 20_000)
    expected = figures(capsys.readouterr().out)
    for name in ("slots", "requests", "return", "latency per request", "energy per request", "missed deadlines"):
        assert shown[name] == expected[name], name
    assert shown["slots"] == "6"
    assert int(shown["requests"]) > 6  # the vehicles are on the road
    assert shown["missed deadlines"] == "0 of 6 (after 20000 ms)"


def test_decisions_that_come_too_late_are_not_played(server: str, example) -> None:
    late = figures(example("sumo_loop.py", server, "talking", "--deadline-ms", "0.01", "--slots", "3"))
    assert late["missed deadlines"] == "3 of 3 (after 0.01 ms)"
    assert float(late["latency per request"].removesuffix(" s")) > 0.05  # the cloud's round trip


def test_what_edges_do_without_a_decision(sumo_loop, scenario) -> None:
    simulator = LiveSimulator(scenario)
    simulator.move(torch.rand(12, 2) * torch.tensor(scenario.area_m), torch.ones(12, dtype=torch.bool))
    step = simulator.reset(torch.tensor([1]))
    actions = sumo_loop.without_a_decision(step.action_mask)
    asked = step.observation["service"] >= 0
    cloud, slots = scenario.num_edges, scenario.request_slots
    assert (actions[..., :slots][asked] == cloud).all()
    assert (actions[..., :slots][~asked] == 0).all()
    assert (actions[..., slots:] == torch.tensor([4, 4, 0])).all()
    assert step.action_mask.gather(-1, actions.unsqueeze(-1)).all()


def test_vehicles_move_as_sumo_drives_them(sumo_loop, scenario, tmp_path: Path) -> None:
    with closing(sumo_loop.Traffic(scenario, 1, tmp_path)) as traffic:
        before, present = traffic.vehicles()
        traffic.drive(scenario.slot_s)
        after, still = traffic.vehicles()
    both = present & still
    assert both.sum() >= 10
    moved = (after - before)[both].norm(dim=1)
    assert (moved > 50).any()
    assert (moved < 60 * 20).all()  # metres in a minute
    assert ((after[still] >= -20) & (after[still] <= torch.tensor(scenario.area_m) + 20)).all()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["talker"], "talker: is of the problem dialogue: expected vehicular"), (["talking", "--slots", "7"], "expected 1 to 6")],
)
def test_what_cannot_be_driven_is_refused_in_one_line(arguments, complaint: str, server: str, example) -> None:
    (line,) = example("sumo_loop.py", server, *arguments, fails=True).splitlines()
    assert complaint in line
