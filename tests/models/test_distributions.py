"""The agents' stochastic policies, against numbers worked by hand and against their own definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.distributions import BranchCategorical, gumbel, straight_through

LOGITS = torch.tensor([[math.log(1.0), math.log(3.0), math.log(4.0)], [5.0, math.log(2.0), math.log(2.0)]])
MASK = torch.tensor([[True, True, True], [False, True, True]])


def drawn(seed: int, legal: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits and masks with one legal choice at least, `[7, 3, 4]`."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(7, 3, 4, generator=generator) < legal
    mask[..., 2] |= ~mask.any(-1)
    return 3 * torch.randn(7, 3, 4, generator=generator), mask


def test_probabilities_by_hand():
    policy = BranchCategorical.of(LOGITS, MASK)
    # 1, 3 and 4 parts of 8; the illegal choice with the largest logit gets nothing, the two others half each
    expected = torch.tensor([[1 / 8, 3 / 8, 1 / 2], [0.0, 1 / 2, 1 / 2]])
    torch.testing.assert_close(policy.log_p.exp(), expected)
    actions = torch.tensor([1, 2])
    torch.testing.assert_close(policy.of_branches(actions), torch.tensor([3 / 8, 1 / 2]).log())
    assert policy.log_prob(actions).item() == pytest.approx(math.log(3 / 16))
    # entropy: 1/8 * 3 bits + 3/8 * (3 - log2 3) bits + 1/2 bit, and 1 bit
    bits = 3 / 8 + 3 / 8 * (3 - math.log2(3)) + 1 / 2 + 1
    assert policy.entropy().item() == pytest.approx(bits * math.log(2))
    assert policy.mode().tolist() == [2, 1]


def test_a_branch_with_one_legal_choice_adds_nothing():
    mask = MASK.clone()
    mask[1] = torch.tensor([False, True, False])
    policy = BranchCategorical.of(LOGITS, mask)
    assert policy.of_branches(torch.tensor([1, 1]))[1] == 0
    alone = BranchCategorical.of(LOGITS[:1], MASK[:1])
    assert policy.entropy() == alone.entropy()
    assert policy.log_prob(torch.tensor([1, 1])) == alone.log_prob(torch.tensor([1]))


def test_nothing_becomes_nan_where_nothing_is_legal():
    """As in the padding after an episode, whose masks are empty."""
    logits = torch.randn(2, 4).requires_grad_()
    policy = BranchCategorical.of(logits, torch.zeros(2, 4, dtype=torch.bool))
    total = policy.entropy() + policy.log_prob(torch.tensor([0, 3])) + straight_through(policy, 1.0).sum()
    total.backward()
    assert total.isfinite()
    assert (logits.grad == 0).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_only_legal_choices_are_made_and_gradients_are_finite(seed):
    logits, mask = drawn(seed)
    logits.requires_grad_()
    policy = BranchCategorical.of(logits, mask)
    generator = torch.Generator().manual_seed(seed)
    soft = straight_through(policy, 0.5, generator)
    for actions in (policy.sample(generator), policy.mode(), soft.argmax(-1)):
        assert mask.gather(-1, actions[..., None]).all()
    (policy.entropy().sum() + policy.log_prob(policy.mode()).sum() + (soft * torch.randn(soft.shape)).sum()).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[~mask] == 0).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_entropy_is_the_mean_of_minus_log_probability(seed):
    logits, mask = drawn(seed)
    policy = BranchCategorical.of(logits, mask)
    expected = torch.zeros(7)
    for branch in range(3):
        for choice in range(4):
            one = BranchCategorical(policy.log_p[:, branch : branch + 1])
            log_p = one.log_prob(torch.full((7, 1), choice))
            expected -= log_p.exp() * log_p
    torch.testing.assert_close(policy.entropy(), expected)


def test_samples_have_the_distributions_frequencies():
    policy = BranchCategorical(BranchCategorical.of(LOGITS, MASK).log_p.expand(40_000, 2, 3))
    shares = torch.nn.functional.one_hot(policy.sample(torch.Generator().manual_seed(1)), 3).float().mean(0)
    # a share's deviation is at most 0.5 / sqrt(40,000) = 0.0025
    torch.testing.assert_close(shares, policy.log_p[0].exp(), atol=0.01, rtol=0)


def test_samples_follow_their_generator():
    policy = BranchCategorical.of(*drawn(0, legal=1.0))

    def sample(seed: int) -> torch.Tensor:
        return policy.sample(torch.Generator().manual_seed(seed))

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_gumbel_noise():
    noise = gumbel(torch.empty(200_000), torch.Generator().manual_seed(2))
    # mean: Euler's constant; variance: pi^2 / 6; both within five deviations of their estimates
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.015)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert noise.isfinite().all()


def test_straight_through_is_one_hot_forward_and_the_softmax_backward():
    temperature = 0.5
    logits = LOGITS.clone().requires_grad_()
    weight = torch.tensor([[1.0, -2.0, 3.0], [7.0, 0.5, 4.0]])
    got = straight_through(BranchCategorical.of(logits, MASK), temperature, torch.Generator().manual_seed(3))
    assert torch.equal(got.detach().round(), torch.nn.functional.one_hot(got.argmax(-1), 3).float())
    torch.testing.assert_close(got.detach(), got.detach().round())
    (gradient,) = torch.autograd.grad((got * weight).sum(), logits)
    again = LOGITS.clone().requires_grad_()
    policy = BranchCategorical.of(again, MASK)
    noisy = policy.log_p + gumbel(policy.log_p, torch.Generator().manual_seed(3))
    soft = torch.softmax(noisy / temperature, -1)
    assert torch.equal(noisy.argmax(-1), got.argmax(-1))
    (expected,) = torch.autograd.grad((soft * weight).sum(), again)
    torch.testing.assert_close(gradient, expected)
    assert gradient[0].abs().min() > 1e-4
