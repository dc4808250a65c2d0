"""Centralised critics: what they depend on, and that actions as numbers and as one-hots are the same to them."""

import pytest
import torch

from envs.team import ActionHead, Field, TeamSpec
from models.critics import CounterfactualCritic, JointCritic, StateCritic, TeamActions
from models.encoders import ActionEncoder
from models.team_network import NetworkConfig

AGENTS, STATE, CHOICES = 3, 4, 4
SPEC = TeamSpec(
    problem="test",
    scenario="test/critics",
    agents=("a", "b", "c"),
    observation={
        "seen": Field((3,), 0.0, 1.0),
        "kind": Field((2,), -1, 1, scale="category", entity="job"),
        "size": Field((2,), 0.0, 1.0, entity="job"),
    },
    heads=(ActionHead("target", 3, 2, "job"), ActionHead("pair", 4, members="job")),
    state_size=STATE,
    max_steps=5,
)
NETWORK = NetworkConfig(hidden=16, entity_hidden=8)
ROWS = 6


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed observations `[ROWS, N, D]`, states `[ROWS, S]`, actions `[ROWS, N, H]`."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(ROWS, AGENTS, 3, generator=generator)
    kind = torch.randint(-1, 2, (ROWS, AGENTS, 2), generator=generator)
    size = torch.rand(ROWS, AGENTS, 2, generator=generator) * (kind >= 0)
    actions = (torch.rand(ROWS, AGENTS, 3, generator=generator) * torch.tensor([3, 3, 4])).long()
    state = torch.rand(ROWS, STATE, generator=generator)
    return torch.cat([seen, kind, size], -1).to(torch.float16), state, actions


def one_hot(actions: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(actions, CHOICES).float()


def make(critic):
    torch.manual_seed(2)
    return critic(SPEC, NETWORK)


def test_state_critic():
    torch.manual_seed(0)
    critic = StateCritic(SPEC, 8)
    state = torch.rand(2, 5, STATE)
    assert critic(state).shape == (2, 5)
    critic.standard.fit(torch.tensor([[1.0] * STATE, [3.0] * STATE]))  # mean 2, deviation sqrt 2
    before = critic.network((state - 2.0) / 2**0.5).squeeze(-1)
    torch.testing.assert_close(critic(state), before)


def test_the_sum_of_the_agents_parts_is_one_linear_layer():
    torch.manual_seed(1)
    layer = TeamActions(SPEC, 5)
    encoded = torch.rand(ROWS, AGENTS, layer.encoder.size)
    expected = encoded.flatten(1) @ layer.weight.flatten(0, 1)
    torch.testing.assert_close(layer(encoded).sum(-2), expected)
    other = encoded.clone()
    other[:, 1] += 1.0
    changed = (layer(other) != layer(encoded)).any(-1).any(0)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("agent", range(AGENTS))
def test_the_counterfactual_critic_does_not_see_the_agents_own_action(agent):
    critic = make(CounterfactualCritic)
    observation, state, actions = inputs()
    other = actions.clone()
    other[:, agent] = (other[:, agent] + 1) % 3
    (scores, value), (scores_other, value_other) = (critic(observation, state, a) for a in (actions, other))
    assert scores.shape == (ROWS, AGENTS, 3, CHOICES)
    assert value.shape == (ROWS, AGENTS)
    change = torch.maximum((scores - scores_other).abs().amax((-1, -2)), (value - value_other).abs()).amax(0)
    mine = torch.arange(AGENTS) == agent
    assert (change[mine] < 1e-6).all()  # up to the rounding of a sum without a part of it
    assert (change[~mine] > 1e-3).all()


def test_the_counterfactual_critic_sees_the_state_and_each_agents_own_observation():
    critic = make(CounterfactualCritic)
    observation, state, actions = inputs()
    _, value = critic(observation, state, actions)
    assert (critic(observation, state + 0.5, actions)[1] != value).all()
    other = observation.clone()
    other[:, 1, :3] += 0.25
    changed = (critic(other, state, actions)[1] - value).abs().amax(0) > 1e-6
    assert changed.tolist() == [False, True, False]


def test_the_counterfactual_critic_tells_agents_apart():
    critic = make(CounterfactualCritic)
    observation, state, actions = inputs()
    same = observation[:, :1].expand(-1, AGENTS, -1)
    _, value = critic(same, state, actions[:, :1].expand(-1, AGENTS, -1))
    assert (value[:, 0] != value[:, 1]).all()
    assert (value[:, 1] != value[:, 2]).all()


def test_soft_actions_are_encoded_as_their_mean():
    encoder = ActionEncoder(SPEC)
    actions = inputs()[2]
    torch.testing.assert_close(encoder.soft(one_hot(actions)), encoder(actions))
    other = inputs(seed=1)[2]
    mixed = encoder.soft(0.25 * one_hot(actions) + 0.75 * one_hot(other))
    torch.testing.assert_close(mixed, 0.25 * encoder(actions) + 0.75 * encoder(other))
    assert (encoder.soft(torch.zeros(1, 1, 3, CHOICES)) == 0).all()


def test_the_joint_critic_sees_all_observations_the_state_and_all_actions():
    critic = make(JointCritic)
    observation, state, actions = inputs()
    choices = one_hot(actions).requires_grad_()
    values = critic(observation, state, choices)
    assert values.shape == (ROWS,)
    (gradient,) = torch.autograd.grad(values.sum(), choices)
    exists = SPEC.choice_exists().expand_as(gradient)
    assert (gradient[exists] != 0).float().mean() > 0.95
    assert (gradient[~exists] == 0).all()
    assert (critic(observation, state + 0.5, choices) != values).all()
    for agent in range(AGENTS):
        other = observation.clone()
        other[:, agent, :3] += 0.25
        assert (critic(other, state, choices) != values).all()


def test_alternatives_share_what_does_not_depend_on_actions():
    critic = make(JointCritic)
    observation, state, actions = inputs()
    alternatives = torch.stack([one_hot(actions), one_hot(inputs(seed=1)[2])])
    together = critic.value_of(critic.look(observation, state), alternatives)
    assert together.shape == (2, ROWS)
    for i in range(2):
        torch.testing.assert_close(together[i], critic(observation, state, alternatives[i]))
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("kind", [CounterfactualCritic, JointCritic])
def test_inputs_are_standardised(kind):
    critic = make(kind)
    observation, state, _ = inputs()
    critic.fit(observation.flatten(0, 1), 100.0 * state)
    torch.testing.assert_close(critic.state_standard.shift, 100.0 * state.mean(0))
    torch.testing.assert_close(critic.encoder.plain_standard.shift, observation[..., :3].flatten(0, 1).float().mean(0))
