"""The contract check passes the games and catches simulators that break the contract."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from envs.contract import check_simulator, field_bounds
from envs.games import PRESETS
from envs.registry import make_scenario, make_simulator
from envs.team import Field, Metric, StepResult, TeamSimulator

Damage = Callable[["Damaged", StepResult], StepResult]


class Damaged(TeamSimulator):
    """The two-step game with something spoilt in every result."""

    def __init__(self, num_envs: int, damage: Damage, max_steps: int = 2, metric: str = "reward") -> None:
        self._inner = make_simulator(make_scenario("games/two-step"), num_envs)
        metrics = {"return": Metric(metric)}
        self.spec = replace(self._inner.spec, max_steps=max_steps, metrics=metrics)
        self.num_envs, self.device, self.damage = num_envs, self._inner.device, damage
        self.shown = 0

    def reset(self, seeds):
        return self.damage(self, self._inner.reset(seeds))

    def step(self, actions):
        self.shown += 1
        return self.damage(self, self._inner.step(actions))


def change(**changes: Callable[[Damaged, StepResult], object]) -> Damage:
    return lambda simulator, result: replace(result, **{name: f(simulator, result) for name, f in changes.items()})


def unchanged(simulator: Damaged, result: StepResult) -> StepResult:
    return result


@pytest.mark.parametrize(
    ("field", "bounds"),
    [
        (Field((), -200.0, -40.0), (-200.0, -40.0)),
        (Field((3,), -200.0, -40.0, entity="request"), (-200.0, 0.0)),
        (Field((3,), 1.0, 50.0, entity="request"), (0.0, 50.0)),
        (Field((), 1.0, 50.0, scale="log"), (0.0, 50.0)),
        (Field((3,), 0, 4, scale="category", entity="request"), (0, 4)),
    ],
)
def test_zero_is_within_bounds_where_it_means_none(field, bounds):
    assert field_bounds(field) == bounds


@pytest.mark.parametrize("preset", PRESETS)
def test_games_keep_the_contract(preset):
    check_simulator(lambda num_envs: make_simulator(make_scenario(f"games/{preset}"), num_envs), steps=5)


def test_the_undamaged_wrapper_passes():
    check_simulator(lambda num_envs: Damaged(num_envs, unchanged), steps=4)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (change(reward=lambda s, r: r.reward.double()), "reward is torch.float64"),
        (change(reward=lambda s, r: r.reward[:, None]), "reward has shape"),
        (change(reward=lambda s, r: r.reward + 1), "after reset: a row has a reward"),
        (change(reward=lambda s, r: r.reward + r.finished), "finished row has reward other than 0"),
        (change(reward=lambda s, r: r.reward / (r.state[:, 0] * 0)), "not finite"),
        (change(metrics=lambda s, r: {"reward": r.reward + r.finished}), "finished row has metric 'reward'"),
        (change(metrics=lambda s, r: {}), "need \\['reward'\\]"),
        (change(observation=lambda s, r: {}), "observation has the fields"),
        (change(observation=lambda s, r: {"node": r.observation["node"] * 2}), "outside its bounds"),
        (change(action_mask=lambda s, r: torch.zeros_like(r.action_mask)), "without a legal choice"),
        (change(alive=lambda s, r: torch.zeros_like(r.alive)), "not alive"),
        (change(terminated=lambda s, r: r.terminated & (torch.tensor(s.shown) % 2 == 0)), "changed 'terminated'"),
        (change(terminated=lambda s, r: r.terminated | True), "before its first step"),
        (change(terminated=lambda s, r: r.terminated & False), "unfinished although max_steps"),
        (change(state=lambda s, r: r.state + s.shown), "the same seeds played again"),
        (change(state=lambda s, r: r.state + s.num_envs), "rows \\[3\\] of 7"),
        (change(state=lambda s, r: r.state + torch.arange(s.num_envs)[:, None]), "rows \\[3\\] of 7"),
    ],
)
def test_each_damage_is_reported(damage, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_simulator(lambda num_envs: Damaged(num_envs, damage), steps=5)


def test_a_simulator_that_keeps_its_tensors_is_reported():
    class Sharing(Damaged):
        """Hands out its own memory of the node instead of a copy."""

        def reset(self, seeds):
            self.memory = super().reset(seeds).state
            return replace(super().reset(seeds), state=self.memory)

        def step(self, actions):
            self.memory += 0.5
            return replace(super().step(actions), state=self.memory)

    with pytest.raises(AssertionError, match="overwritten by the caller: state differs at step 1"):
        check_simulator(lambda num_envs: Sharing(num_envs, unchanged), steps=1)


def test_a_metric_without_its_denominator_is_reported():
    with pytest.raises(AssertionError, match="need \\['cost'\\]"):
        check_simulator(lambda num_envs: Damaged(num_envs, unchanged, metric="cost"), steps=1)
