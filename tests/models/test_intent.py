"""Intents and attentions against numbers worked by hand (equations of the IDMAC paper, Sec. IV-B)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.intent import (
    EnvironmentAttention,
    IntentEncoder,
    MessageAttention,
    continuity_loss,
    entropy_loss,
    topology_matrix,
)


def fill(parameter: torch.Tensor, *values: float) -> None:
    """Sets all elements, one by one or to one value."""
    with torch.no_grad():
        parameter.copy_(torch.tensor(values).expand(parameter.numel()).reshape(parameter.shape))


# ----------------------------------------------------------------------------------------------------------- who hears whom


def matrix(*args, **kwargs) -> list[str]:
    """A row of digits for each listener."""
    return ["".join(str(int(one)) for one in row) for row in topology_matrix(*args, **kwargs)]


def test_topologies_of_six():
    assert matrix("full", 6, 2) == ["011111", "101111", "110111", "111011", "111101", "111110"]
    assert matrix("star", 6, 2) == ["011111", "100000", "100000", "100000", "100000", "100000"]
    assert matrix("ring", 6, 3) == ["010001", "101000", "010100", "001010", "000101", "100010"]  # two whatever `neighbours` is
    # without positions along the ring, of equally near ones the lower number: 0 hears 1 and 5, and 2 before 4
    assert matrix("k-nearest", 6, 3) == ["011001", "101100", "110100", "011010", "100101", "110010"]


def test_k_nearest_goes_by_position():
    line = tuple((x, 0.0) for x in (0.0, 1.0, 3.0, 7.0, 15.0, 31.0))
    assert matrix("k-nearest", 6, 1, line) == ["010000", "100000", "010000", "001000", "000100", "000010"]
    assert matrix("k-nearest", 6, 2, line) == ["011000", "101000", "110000", "011000", "001100", "000110"]


@pytest.mark.parametrize("topology", ["full", "star", "ring", "k-nearest"])
def test_small_teams(topology):
    assert matrix(topology, 2, 2) == ["01", "10"]
    assert matrix(topology, 2, 2, ((0.0, 0.0), (9.0, 0.0))) == ["01", "10"]
    assert matrix(topology, 1, 2) == ["0"]


def test_equal_distances_on_a_grid_are_ties_in_spite_of_rounding():
    grid = tuple((800.0 * (i % 8) + 137.3, 800.0 * (i // 8) + 11.7) for i in range(64))
    hears = topology_matrix("k-nearest", 64, 2, grid)
    assert hears[27].nonzero().flatten().tolist() == [19, 26]  # of 19, 26, 28, 35, all 800 m away
    for i in range(64):
        neighbours = [j for j in (i - 8, i - 1, i + 1, i + 8) if 0 <= j < 64 and abs(i % 8 - j % 8) <= 1]
        assert hears[i].nonzero().flatten().tolist() == neighbours[:2]


@given(
    topology=st.sampled_from(["full", "star", "ring", "k-nearest"]), agents=st.integers(1, 12), neighbours=st.integers(1, 12)
)
def test_nobody_hears_itself_and_all_hear_somebody(topology, agents, neighbours):
    hears = topology_matrix(topology, agents, neighbours)
    assert not hears.diagonal().any()
    assert hears.any(1).all() or agents == 1
    if topology == "k-nearest":
        assert (hears.sum(1) == min(neighbours, agents - 1)).all()


# ------------------------------------------------------------------------------------------------------------------ eq. 29


def test_intent_encoder_by_hand():
    encoder = IntentEncoder(hidden=1, action_size=1, intent_size=1)
    fill(encoder.network[0].weight, 1.0, 2.0)
    fill(encoder.network[0].bias, 0.5)
    fill(encoder.mean.weight, 2.0)
    fill(encoder.mean.bias, -1.0)
    fill(encoder.log_deviation.weight, 0.5)
    fill(encoder.log_deviation.bias, -2.0)
    # relu(1 * 0.5 + 2 * 1 + 0.5) = 3; mean 2 * 3 - 1 = 5; log deviation 0.5 * 3 - 2 = -0.5
    mean, deviation = encoder(torch.tensor([0.5]), torch.tensor([1.0]))
    assert mean.item() == 5
    assert deviation.item() == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize(("bias", "log_deviation"), [(50.0, 2.0), (-50.0, -5.0)])
def test_deviation_stays_within_bounds(bias, log_deviation):
    encoder = IntentEncoder(hidden=2, action_size=1, intent_size=3)
    fill(encoder.log_deviation.bias, bias)
    _, deviation = encoder(torch.zeros(2), torch.zeros(1))
    torch.testing.assert_close(deviation, torch.full((3,), log_deviation).exp())


# -------------------------------------------------------------------------------------------------------------- eqs. 30, 31


@pytest.fixture
def message_attention():
    """Intents of one number: score = 4 keys * (1 * own) * (0.5 * heard) / sqrt(4) = own * heard; value = 3 * heard."""
    attention = MessageAttention(intent_size=1, key_size=4)
    fill(attention.query.weight, 1.0)
    fill(attention.key.weight, 0.5)
    fill(attention.value.weight, 3.0)
    return attention


def test_message_attention_by_hand(message_attention):
    intents = torch.tensor([[1.0], [0.0], [math.log(3)]])
    out = message_attention(intents, intents, topology_matrix("full", 3, 2))
    # agent 0 hears 0 and ln 3 with scores 0 and ln 3, so weights 1/4 and 3/4: 3/4 * 3 ln 3 + 1
    # agent 1 scores all with 0: (3 * 1 + 3 ln 3) / 2 + 0
    # agent 2 scores 1 with ln 3 and 0 with 0: weights 3/4 and 1/4: 3/4 * 3 * 1 + ln 3
    log3 = math.log(3)
    expected = torch.tensor([[2.25 * log3 + 1], [1.5 + 1.5 * log3], [2.25 + log3]])
    torch.testing.assert_close(out, expected)


def test_only_those_that_are_heard_count(message_attention):
    intents = torch.tensor([[1.0], [0.0], [math.log(3)]])
    hears = torch.tensor([[False, False, True], [False, False, False], [True, False, False]])
    out = message_attention(intents, intents, hears)
    # one peer has weight 1; an agent that hears nobody keeps its own intent
    torch.testing.assert_close(out, torch.tensor([[3 * math.log(3) + 1], [0.0], [3 + math.log(3)]]))
    intents = intents.clone().requires_grad_()
    message_attention(intents, intents, torch.zeros(3, 3, dtype=torch.bool)).sum().backward()
    assert intents.grad.tolist() == [[1], [1], [1]]  # and learning survives it


def test_who_is_heard_may_differ_between_rows(message_attention):
    intents = torch.tensor([[1.0], [0.0], [math.log(3)]]).expand(2, 3, 1)
    hears = torch.stack([topology_matrix("full", 3, 2), topology_matrix("star", 3, 2)])
    out = message_attention(intents, intents, hears)
    for row, topology in enumerate(("full", "star")):
        torch.testing.assert_close(out[row], message_attention(intents[0], intents[0], topology_matrix(topology, 3, 2)))


# -------------------------------------------------------------------------------------------------------------- eqs. 32, 33


def test_environment_attention_by_hand():
    attention = EnvironmentAttention(intent_size=1, hidden=2, tokens=2, key_size=4)
    fill(attention.position, 1.0, -1.0)
    fill(attention.query.weight, 1.0)
    fill(attention.key.weight, 0.5)
    fill(attention.value.weight, 2.0, -4.0)
    hidden = torch.tensor([-1.0, math.log(3) + 1.0])  # with the positions: the tokens 0 and ln 3
    log3 = math.log(3)
    # scores = 4 * 1 * 0.5 * intent * token / sqrt(4) = intent * token: for intent 1 weights 1/4, 3/4; for intent -1 3/4, 1/4
    # weighted tokens: 3/4 ln 3, or 1/4 ln 3
    torch.testing.assert_close(attention(torch.tensor([1.0]), hidden), torch.tensor([1.5 * log3, -3 * log3]))
    torch.testing.assert_close(attention(torch.tensor([-1.0]), hidden), torch.tensor([0.5 * log3, -log3]))


def test_hidden_state_must_split_into_tokens():
    with pytest.raises(ValueError, match="hidden size 10 cannot be read as 4 equal tokens"):
        EnvironmentAttention(intent_size=2, hidden=10, tokens=4, key_size=2)


# ------------------------------------------------------------------------------------------------------------------ eq. 34


def test_entropy_loss_by_hand():
    mean, deviation = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, math.e], [1.0, 1.0]])
    # ((1 + 1 - 0 - 1) + (4 + e^2 - 2 - 1)) / 2 = (2 + e^2) / 2, and 0 for the prior itself
    expected = (2 + math.e**2) / 2
    torch.testing.assert_close(entropy_loss(mean, deviation, "kl"), torch.tensor([expected, 0.0]))
    torch.testing.assert_close(entropy_loss(mean, deviation, "paper"), torch.tensor([-expected, 0.0]))


@given(mean=st.floats(-10, 10), log_deviation=st.floats(-5, 2))
def test_the_kl_form_is_the_divergence_from_the_prior(mean, log_deviation):
    mean, deviation = torch.tensor([mean], dtype=torch.float64), torch.tensor([math.exp(log_deviation)], dtype=torch.float64)
    prior = torch.distributions.Normal(torch.zeros(1, dtype=torch.float64), 1.0)
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean, deviation), prior)[0]
    torch.testing.assert_close(entropy_loss(mean, deviation, "kl"), expected, atol=1e-9, rtol=1e-9)
    assert entropy_loss(mean, deviation, "kl") >= 0


# ------------------------------------------------------------------------------------------------------------------ eq. 35


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        # cosines of step t with those before it (lag 1, 2, 3): t=1: 0; t=2: 0, -1; t=3: 1, 0, -1
        (1, [0, 0, 0, -1]),
        (2, [0, 0, 0.5, -0.5]),
        (3, [0, 0, 0.5, 0]),
        (9, [0, 0, 0.5, 0]),  # there are no more steps to look back to
    ],
)
def test_continuity_loss_by_hand(window, expected):
    steps = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-2.0, 0.0]])
    still = torch.ones(4, 2)
    loss = continuity_loss(torch.stack([steps, still], dim=1)[None], window)
    assert loss.shape == (1, 4, 2)
    torch.testing.assert_close(loss[0, :, 0], torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(loss[0, :, 1], torch.tensor([0.0, -1.0, -1.0, -1.0]))  # who never changes


def test_continuity_of_a_single_step_is_0():
    assert continuity_loss(torch.ones(2, 1, 3, 4), 3).tolist() == [[[0, 0, 0]]] * 2
