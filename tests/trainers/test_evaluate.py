"""The evaluator counts every episode once, wholly, and independently of how episodes are batched."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from envs import random
from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from envs.team import ActionHead, Field, Metric, StepResult, TeamSimulator, TeamSpec, episode_seeds
from trainers.evaluate import CHECK_EVERY, evaluate
from trainers.policy import Policy, RandomPolicy

MAX_STEPS = 40
SPEC = TeamSpec(
    problem="countdown",
    scenario="countdown/tiny",
    agents=("a", "b"),
    observation={"step": Field((1,), 0.0, MAX_STEPS)},
    heads=(ActionHead("choice", 3),),
    state_size=1,
    max_steps=MAX_STEPS,
    metrics={
        "latency_s": Metric("latency_s", "requests", "s", "lower"),
        "load": Metric("load", "steps", "1", "neither"),
    },
)


class Countdown(TeamSimulator):
    """Episode `seed` ends after `1 + seed % 30` steps; a row that is over shows NaN, to be left out of every sum.

    The reward is the first agent's choice. Requests come at every step of episodes with an odd seed, each taking 0.5 s.
    """

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.spec, self.num_envs, self.device, self.closed = SPEC, num_envs, device, False

    def reset(self, seeds):
        self._seeds, self._step = seeds, torch.zeros_like(seeds)
        return self._show(torch.zeros(self.num_envs))

    def step(self, actions):
        self._step = self._step + 1
        over = self._step > 1 + self._seeds % 30
        return self._show(torch.where(over, torch.nan, actions[:, 0, 0].float()))

    def close(self):
        self.closed = True

    def _show(self, reward):
        requests = 2.0 * (self._seeds % 2) + reward * 0
        return StepResult(
            observation={"step": self._step.float()[:, None, None].expand(-1, 2, 1)},
            state=self._step.float()[:, None],
            action_mask=torch.ones(self.num_envs, 2, 1, 3, dtype=torch.bool),
            reward=reward,
            terminated=self._step >= 1 + self._seeds % 30,
            truncated=torch.zeros(self.num_envs, dtype=torch.bool),
            alive=torch.ones(self.num_envs, 2, dtype=torch.bool),
            metrics={
                "latency_s": 0.5 * requests,
                "requests": requests,
                "load": random.uniform(self._seeds, self._step) + reward * 0,
            },
        )


class Remembering(Policy):
    """Chooses 0, 1, 2, 0, … by a count that it keeps in its state; sends as many bytes as the count."""

    name = "remembering"

    def initial_state(self, num_envs):
        return {"count": torch.zeros(num_envs, dtype=torch.int64)}

    def act(self, observation, state, mask):
        self._count = state["count"]
        return (self._count % 3)[:, None, None].expand(-1, 2, 1), {"count": self._count + 1}

    def metrics(self):
        return {"message_bytes": self._count}


SEEDS = torch.tensor([4, 1, 27, 60, 33, 8, 119])  # of 5, 2, 28, 1, 4, 9 and 30 steps


def test_sums_cover_each_episode_exactly():
    results = evaluate(Remembering(SPEC), Countdown, SEEDS, num_envs=3)
    steps = np.array([5, 2, 28, 1, 4, 9, 30])
    np.testing.assert_array_equal(results.sums["steps"], steps)
    np.testing.assert_array_equal(results.values["return"], [sum(t % 3 for t in range(n)) for n in steps])
    np.testing.assert_array_equal(results.values["message_bytes"], [sum(range(n)) for n in steps])
    np.testing.assert_array_equal(results.values["latency_s"], [np.nan, 0.5, 0.5, np.nan, 0.5, np.nan, 0.5])
    assert results.seeds.tolist() == SEEDS.tolist()
    assert list(results.metrics) == ["return", "latency_s", "load", "message_bytes"]
    assert results.metrics["message_bytes"].unit == "B"
    assert (results.policy, results.scenario) == ("remembering", "countdown/tiny")


def test_pooled_is_the_ratio_of_sums_and_not_the_mean_of_ratios():
    results = evaluate(Remembering(SPEC), Countdown, SEEDS, num_envs=7)
    load, steps = results.sums["load"], results.sums["steps"]
    assert results.pooled("load") == pytest.approx(load.sum() / 79)
    assert results.pooled("load") != pytest.approx((load / steps).mean())
    assert results.pooled("latency_s") == pytest.approx(0.5)
    assert results.pooled("message_bytes") == pytest.approx(results.values["message_bytes"].mean())
    nobody = evaluate(Remembering(SPEC), Countdown, torch.tensor([2]))
    assert np.isnan(nobody.pooled("latency_s"))


@pytest.mark.parametrize("num_envs", [1, 2, 3, 64])
def test_results_do_not_depend_on_the_batch(num_envs):
    reference = evaluate(Remembering(SPEC), Countdown, SEEDS, num_envs=7)
    results = evaluate(Remembering(SPEC), Countdown, SEEDS, num_envs=num_envs)
    assert results.sums.keys() == reference.sums.keys()
    for name, expected in reference.sums.items():
        np.testing.assert_array_equal(results.sums[name], expected, err_msg=name)


def test_registered_scenario_is_played_and_remembered():
    scenario = make_scenario("games/two-step")

    class Best(Policy):
        name = "best"

        def act(self, observation, state, mask):
            return torch.ones(mask.shape[:-1], dtype=torch.int64), state

    spec = make_simulator(scenario).spec
    results = evaluate(Best(spec), scenario, episode_seeds(0, 0, 5), num_envs=2)
    assert results.values["return"].tolist() == [8.0] * 5
    assert results.sums["steps"].tolist() == [2.0] * 5
    assert results.scenario_fields == scenario.model_dump(mode="json")
    assert list(results.metrics) == ["return"]
    assert results.metrics["return"] == spec.metrics["return"]


def test_random_policy_is_repeatable():
    scenario = make_scenario("games/climb")
    spec = make_simulator(scenario).spec
    first, again, other = (
        evaluate(RandomPolicy(spec, seed), scenario, episode_seeds(0, 0, 30), num_envs=8).values["return"] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_progress_counts_up_to_all_episodes():
    seen = []
    evaluate(Remembering(SPEC), Countdown, SEEDS, num_envs=3, progress=lambda done, total: seen.append((done, total)))
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert {3, 6, 7} <= set(done)
    assert {total for _, total in seen} == {7}
    assert done[-1] == 7


def test_simulators_are_closed_even_after_a_failure():
    made = []

    def factory(num_envs, device):
        made.append(Countdown(num_envs, device))
        return made[-1]

    evaluate(Remembering(SPEC), factory, SEEDS, num_envs=3)
    assert [(simulator.num_envs, simulator.closed) for simulator in made] == [(3, True), (1, True)]

    class Broken(Remembering):
        def act(self, observation, state, mask):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(Broken(SPEC), factory, SEEDS)
    assert made[-1].closed


def test_the_device_is_waited_for_only_now_and_then():
    class CountReads(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.reads += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with CountReads() as counter:
        evaluate(Remembering(SPEC), Countdown, torch.tensor([29, 59]))  # 30 steps each
    assert 1 <= counter.reads <= 30 // CHECK_EVERY + 2


def test_endless_episode_is_an_error_that_says_so():
    def factory(num_envs, device):
        simulator = Countdown(num_envs, device)
        simulator.spec = dataclasses.replace(SPEC, max_steps=10)
        return simulator

    with pytest.raises(RuntimeError, match="countdown/tiny: an episode was still running after max_steps = 10 steps"):
        evaluate(Remembering(SPEC), factory, SEEDS)


@pytest.mark.parametrize(
    ("seeds", "num_envs", "message"),
    [
        (torch.empty(0, dtype=torch.int64), 4, "at least one episode"),
        (torch.zeros(2, 2, dtype=torch.int64), 4, r"expected a \[episodes\] int64 tensor, got \[2, 2\]"),
        (torch.arange(3.0), 4, "float32"),
        (torch.tensor([5, 6, 5]), 4, "repeated"),
        (torch.arange(3), 0, "num_envs = 0: expected at least 1"),
    ],
)
def test_unusable_requests_are_refused(seeds, num_envs, message):
    with pytest.raises(InputError, match=message):
        evaluate(Remembering(SPEC), Countdown, seeds, num_envs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agents": ("a",)}, "agents 1, expected 2"),
        ({"heads": (ActionHead("choice", 4),)}, r"choices per branch \(4,\), expected \(3,\)"),
        ({"observation": {"step": Field((2,), 0.0, 1.0)}}, r"observations .*\(2,\).*, expected .*\(1,\)"),
    ],
)
def test_policy_for_another_team_is_refused(change, message):
    policy = Remembering(dataclasses.replace(SPEC, scenario="other/one", **change))
    with pytest.raises(
        InputError, match=f"'remembering' was made for 'other/one' and does not fit 'countdown/tiny': {message}"
    ):
        evaluate(policy, Countdown, SEEDS)
