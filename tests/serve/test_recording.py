"""Recorded decisions are the policy's, to the bit, or there are none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from serve.codec import Codec
from serve.metrics import Metrics
from serve.policies import TRIALS, HostedPolicy, Job
from serve.recording import SIZES, Values, record
from tests.serve.serving import LEARNED
from trainers.learned_policy import LearnedPolicy, load_policy


def observations(policy: LearnedPolicy, steps: int, seed: int, teams: int = 1) -> list[Values]:
    codec = Codec(policy.spec, policy.spec.agents)
    return [codec.observation(rows) for rows in torch.from_numpy(codec.random(steps * teams, seed)).split(teams)]


@pytest.mark.parametrize("teams", SIZES)
@pytest.mark.parametrize("name", LEARNED)
def test_other_observations_and_masks(name: str, teams: int, bundles: dict[str, Path]) -> None:
    policy = load_policy(bundles[name])
    assert isinstance(policy, LearnedPolicy)
    recorded = record(policy, observations(policy, TRIALS, 0, teams))
    assert recorded is not None
    exists = policy.spec.choice_exists().expand(teams, policy.spec.num_agents, -1, -1)
    state, generator = policy.initial_state(teams), torch.Generator().manual_seed(1)
    for observation in observations(policy, 20, 1, teams):
        mask = exists & (torch.rand(exists.shape, generator=generator) < 0.5)
        mask = torch.where(mask.any(-1, keepdim=True), mask, exists)
        with torch.inference_mode():
            expected, after = policy.act(observation, state, mask)
            actions, state = recorded(observation, state, mask)
        assert torch.equal(actions, expected)
        assert all(torch.equal(state[part], value) for part, value in after.items())


@pytest.mark.parametrize("teams", [2, 3, 5, 8, 9])
def test_batches_are_filled_up_and_nobody_notices(teams: int, bundles: dict[str, Path]) -> None:
    hosted = HostedPolicy("dialogue", bundles["dialogue"], Metrics(), 256)
    rows = hosted.codec.random(teams, seed=2)
    states = np.repeat(hosted.layout.initial, teams, axis=0)
    jobs = [Job(rows[[team]], hosted.codec.masks({}, 1), states[[team]], scores=True) for team in range(teams)]
    found = hosted._compute(jobs)
    assert len(found) == teams
    policy = hosted.policy
    assert isinstance(policy, LearnedPolicy)
    for team, decided in enumerate(found):
        observation = hosted.codec.observation(torch.from_numpy(rows[[team]]))
        with torch.inference_mode():
            actions, after = policy.act(observation, policy.initial_state(1), torch.tensor(jobs[team].masks))
        assert (decided.actions == actions.numpy()).all()
        assert decided.scores is not None
        assert decided.scores.shape == (1, *jobs[team].masks.shape[1:])
        remembered = hosted.layout.to_state(decided.states)
        assert all(torch.allclose(remembered[part], value, atol=1e-6) for part, value in after.items())


def test_what_counts_its_decisions_is_not_recorded(bundles: dict[str, Path]) -> None:
    class Counting(LearnedPolicy):
        count = 0

        def act(self, observation: Values, state: Values, mask: Tensor) -> tuple[Tensor, Values]:
            self.count += 1
            actions, state = super().act(observation, state, mask)
            return actions + self.count, state

    policy = load_policy(bundles["games"])
    assert isinstance(policy, LearnedPolicy)
    counting = Counting(policy.spec, policy.module, policy.name)
    assert record(counting, observations(policy, TRIALS, seed=0)) is None
