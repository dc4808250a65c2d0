"""Recorded decisions are the policy's, to the bit, or there are none."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from serve.codec import Codec
from serve.policies import TRIALS
from serve.recording import Values, record
from tests.serve.serving import LEARNED
from trainers.learned_policy import LearnedPolicy, load_policy


def observations(policy: LearnedPolicy, steps: int, seed: int) -> list[Values]:
    codec = Codec(policy.spec, policy.spec.agents)
    return [codec.observation(row) for row in torch.from_numpy(codec.random(steps, seed)).split(1)]


@pytest.mark.parametrize("name", LEARNED)
def test_other_observations_and_masks(name: str, bundles: dict[str, Path]) -> None:
    policy = load_policy(bundles[name])
    assert isinstance(policy, LearnedPolicy)
    recorded = record(policy, observations(policy, TRIALS, seed=0))
    assert recorded is not None
    state, exists = policy.initial_state(1), policy.spec.choice_exists().expand(1, policy.spec.num_agents, -1, -1)
    generator = torch.Generator().manual_seed(1)
    for observation in observations(policy, 40, seed=1):
        mask = exists & (torch.rand(exists.shape, generator=generator) < 0.5)
        mask = torch.where(mask.any(-1, keepdim=True), mask, exists)
        with torch.inference_mode():
            expected, after = policy.act(observation, state, mask)
            actions, state = recorded(observation, state, mask)
        assert torch.equal(actions, expected)
        assert all(torch.equal(state[part], value) for part, value in after.items())


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
