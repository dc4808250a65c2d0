"""Vehicles that are driven while the episode is played: it is the episode of a trace in which they drive the same way."""

import pytest
import torch

from envs.errors import InputError
from envs.registry import make_scenario
from envs.team import random_actions
from envs.vehicular.live import LiveSimulator
from envs.vehicular.simulator import VehicularSimulator, place

FEW = {"num_vehicles": 30, "trace_vehicles": 30, "horizon_slots": 12, "trace_slots": 12}


def scenario(**values):
    return make_scenario("vehicular/v50-e6", {**FEW, **values})


def follow(live: LiveSimulator, positions, present, slot: int) -> None:
    slot = min(slot, len(positions) - 1)
    live.move(positions[slot], present[slot])


def play_both(known: VehicularSimulator, live: LiveSimulator, positions, present, seed: int) -> int:
    """The same random actions in both, comparing everything shown; returns the vehicles that were ever absent."""
    seeds, generator = torch.tensor([seed]), torch.Generator().manual_seed(seed)
    follow(live, positions, present, 0)
    expected, shown = known.reset(seeds), live.reset(seeds)
    slot, absent = 0, 0
    while True:
        for name, value in expected.observation.items():
            torch.testing.assert_close(shown.observation[name], value, msg=f"{name} in slot {slot}")
        assert torch.equal(shown.action_mask, expected.action_mask)
        torch.testing.assert_close(shown.reward, expected.reward)
        absent += known.scenario.num_vehicles - int(shown.observation["all_vehicles"][0, 0])
        if expected.finished.all():
            assert shown.finished.all()
            return absent
        actions = random_actions(expected.action_mask, generator)
        slot += 1
        follow(live, positions, present, slot)
        expected, shown = known.step(actions), live.step(actions)


def test_an_episode_is_that_of_a_trace_with_the_same_ways() -> None:
    """The live simulator starts with vehicles elsewhere (another trace seed) and is told the ways slot by slot."""
    trace = place(scenario())[0]
    live = LiveSimulator(scenario(trace_seed=5))
    for seed in (3, 4):  # the second episode starts from where the first ended
        assert play_both(VehicularSimulator(scenario()), live, trace.positions, trace.present, seed) == 0


def test_who_is_not_on_the_road_asks_for_nothing() -> None:
    trace = place(scenario())[0]
    live = LiveSimulator(scenario())
    nobody = torch.zeros(30, dtype=torch.bool)
    live.move(trace.positions[0], nobody)
    step = live.reset(torch.tensor([1]))
    assert step.observation["requests"].sum() == 0
    some = nobody.clone()
    some[:7] = True
    live.move(trace.positions[1], some)
    step = live.step(random_actions(step.action_mask))
    assert step.metrics["requests"].item() == 0
    assert step.observation["all_vehicles"].unique().tolist() == [7]
    assert step.observation["requests"].sum() + step.observation["macro_requests"][0, 0] == 7  # nobody holds a patch yet
    live.move(trace.positions[2], ~some)
    assert live.step(random_actions(step.action_mask)).metrics["requests"].item() == 7


def test_a_scenario_with_a_trace_of_its_own_is_refused() -> None:
    with pytest.raises(InputError, match=r"traces = 'a\.xml': expected null"):
        LiveSimulator(scenario(traces="a.xml"))
