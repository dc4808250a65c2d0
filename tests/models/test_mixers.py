"""Mixers: the numbers of their equations, and the properties that make decentralised greedy choices right."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.mixers import QMIXMixer, QPLEXMixer, VDNMixer, make_mixer

SEEDS = st.integers(0, 2**31)


def constant(network: nn.Sequential | nn.Linear, *values: float) -> None:
    """The network returns `values` whatever it reads."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        last = network if isinstance(network, nn.Linear) else network[-1]
        last.bias.copy_(torch.tensor(values))


def scaled(mixer: nn.Module, factor: float) -> nn.Module:
    """Larger weights than those of a fresh network."""
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(factor)
    return mixer


def test_vdn_is_the_sum():
    chosen = torch.tensor([[1.0, 2.0, -4.0], [0.5, 0.0, 0.0]])
    assert VDNMixer()(chosen, chosen + 1, torch.zeros(2, 5), torch.zeros(2, 3, 4)).tolist() == [-1, 0.5]


def test_qmix_by_hand():
    mixer = QMIXMixer(num_agents=2, state_size=1, embedding=2, hidden=3)
    constant(mixer.first_weight, -2.0, 1.0, 0.5, 0.0)  # agent 1 enters with |-2|, 1; agent 2 with 0.5, 0
    constant(mixer.first_bias, -2.0, 0.0)
    constant(mixer.second_weight, -3.0, 1.0)
    constant(mixer.second_bias, 1.25)
    chosen = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    # (1, 2): elu(2 * 1 + 0.5 * 2 - 2, 1 * 1) = (1, 1); 3 * 1 + 1 * 1 + 1.25 = 5.25
    # (0, 0): elu(-2, 0) = (e^-2 - 1, 0); 3 * (e^-2 - 1) + 1.25
    expected = torch.tensor([5.25, 3 * (math.exp(-2) - 1) + 1.25])
    torch.testing.assert_close(mixer(chosen, chosen, torch.ones(2, 1), torch.zeros(2, 2, 4)), expected)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, agents=st.integers(1, 6), factor=st.floats(0.5, 5))
def test_qmix_is_monotone_in_every_agents_value(seed, agents, factor):
    torch.manual_seed(seed)
    mixer = scaled(QMIXMixer(agents, state_size=3, embedding=4, hidden=5), factor)
    chosen = (torch.randn(16, agents) * 5).requires_grad_()
    mixer(chosen, chosen, torch.randn(16, 3) * 3, torch.zeros(16, agents, 2)).sum().backward()
    assert (chosen.grad >= 0).all()
    assert (chosen.grad > 0).any()


def test_qmix_depends_on_the_state():
    torch.manual_seed(0)
    mixer = QMIXMixer(2, 3, 4, 5)
    chosen = torch.ones(2, 2)
    one, other = mixer(chosen, chosen, torch.randn(2, 3), torch.zeros(2, 2, 1)).tolist()
    assert one != other


@pytest.fixture
def qplex():
    """Two agents with weights 1 and 2, biases 0.5 and -1, and advantage weights 2 * 0.5 * (0.75, 0.5)."""
    mixer = QPLEXMixer(num_agents=2, state_size=1, action_size=3, hidden=4, kernels=1)
    constant(mixer.weight, -1.0, 2.0)
    constant(mixer.bias, 0.5, -1.0)
    constant(mixer.keys, -2.0)
    constant(mixer.agents, 0.0, 0.0)  # sigmoid 0.5
    constant(mixer.actions, math.log(3), 0.0)  # sigmoid 0.75 and 0.5
    return mixer


def test_qplex_by_hand(qplex):
    chosen, greedy = torch.tensor([[1.0, 2.5]]), torch.tensor([[2.0, 3.0]])
    # values 1 * 2 + 0.5 and 2 * 3 - 1; advantages 0.75 * 1 * (1 - 2) and 0.5 * 2 * (2.5 - 3)
    joint = qplex(chosen, greedy, torch.ones(1, 1), torch.zeros(1, 2, 3))
    torch.testing.assert_close(joint, torch.tensor([2.5 + 5.0 - 0.75 - 0.5]))


def test_qplex_sends_no_gradient_through_the_weighted_advantage(qplex):
    chosen, greedy = torch.tensor([[1.0, 2.5]], requires_grad=True), torch.tensor([[2.0, 3.0]], requires_grad=True)
    qplex(chosen, greedy, torch.ones(1, 1), torch.zeros(1, 2, 3)).sum().backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([[1.0, 2.0]]))  # the plain sum's weights
    torch.testing.assert_close(greedy.grad, torch.zeros(1, 2))


def test_qplex_weights_sum_over_kernels(qplex):
    two = QPLEXMixer(num_agents=2, state_size=1, action_size=3, hidden=4, kernels=2)
    constant(two.keys, 2.0, -1.0)
    constant(two.agents, 0.0, 0.0, math.log(3), 0.0)
    constant(two.actions, math.log(3), 0.0, 0.0, 0.0)
    # 2 * (0.5 * 0.75, 0.5 * 0.5) + 1 * (0.75 * 0.5, 0.5 * 0.5)
    torch.testing.assert_close(two.attention(torch.ones(1), torch.zeros(2, 3)), torch.tensor([0.75 + 0.375, 0.5 + 0.25]))
    torch.testing.assert_close(qplex.attention(torch.ones(1), torch.zeros(2, 3)), torch.tensor([0.75, 0.5]))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, name=st.sampled_from(["vdn", "qmix", "qplex"]), factor=st.floats(0.5, 4))
def test_the_greedy_choices_of_all_agents_are_the_best_joint_choice(seed, name, factor):
    """Individual-global-max, over every joint action of three agents with three choices."""
    torch.manual_seed(seed)
    agents, choices = 3, 3
    mixer = scaled(make_mixer(name, agents, 2, choices, embedding=4, hidden=5), factor)
    values = torch.randn(agents, choices) * 5
    joint_actions = torch.tensor(list(itertools.product(range(choices), repeat=agents)))  # [27, N]
    chosen = values.expand(27, -1, -1).gather(-1, joint_actions[..., None]).squeeze(-1)
    greedy = values.max(-1).values.expand(27, -1)
    with torch.no_grad():
        joint = mixer(chosen, greedy, (torch.randn(2) * 3).expand(27, 2), nn.functional.one_hot(joint_actions, choices).float())
    best = (joint_actions == values.argmax(-1)).all(-1).nonzero().item()
    assert joint[best] >= joint.max() - 1e-5 * joint.abs().max()


def test_qplex_tells_joint_actions_with_the_same_sum_apart():
    """What makes it richer than QMIX: the weight of an advantage depends on the joint action."""
    torch.manual_seed(1)
    mixer = scaled(QPLEXMixer(2, 1, 2, hidden=8), 3.0)
    actions = nn.functional.one_hot(torch.tensor([[0, 1], [1, 1]]), 2).float()
    chosen, greedy = torch.tensor([[-1.0, 0.0]]).expand(2, 2), torch.zeros(2, 2)
    one, other = mixer(chosen, greedy, torch.ones(2, 1), actions).tolist()
    assert abs(one - other) > 1e-3


@pytest.mark.parametrize(("name", "kind"), [("vdn", VDNMixer), ("qmix", QMIXMixer), ("qplex", QPLEXMixer)])
def test_mixers_by_name_take_any_leading_shape(name, kind):
    torch.manual_seed(0)
    mixer = make_mixer(name, 3, 5, 4, embedding=6, hidden=7)
    assert type(mixer) is kind
    inputs = (torch.randn(2, 4, 3), torch.randn(2, 4, 3), torch.randn(2, 4, 5), torch.rand(2, 4, 3, 4))
    joint = mixer(*inputs)
    assert joint.shape == (2, 4)
    torch.testing.assert_close(joint[1, 2], mixer(*(part[1, 2] for part in inputs)))
