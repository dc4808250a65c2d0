"""Value targets and advantages, against numbers worked by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.algorithms.returns import generalised_advantages, td_lambda_targets

# ------------------------------------------------------------------------------------------------------------- TD(lambda)


def targets(reward, terminated, filled, next_value, gamma=0.5, td_lambda=0.5):
    """Of one episode, from lists."""
    row = (torch.tensor([values]) for values in (reward, terminated, filled, next_value))
    return td_lambda_targets(*row, gamma, td_lambda)[0].tolist()


def test_targets_of_a_terminated_episode():
    # the last step: 4, nothing comes after it; then 2 + 0.5 * (0.5 * 6 + 0.5 * 4) = 4.5;
    # then 1 + 0.5 * (0.5 * 10 + 0.5 * 4.5) = 4.625
    assert targets([1.0, 2.0, 4.0], [False, False, True], [True] * 3, [10.0, 6.0, 99.0]) == [4.625, 4.5, 4.0]


def test_targets_of_a_truncated_episode():
    # the last step goes on with the value of what was seen last: 4 + 0.5 * 8 = 8
    # then 2 + 0.5 * (0.5 * 6 + 0.5 * 8) = 5.5; then 1 + 0.5 * (0.5 * 10 + 0.5 * 5.5) = 4.875
    assert targets([1.0, 2.0, 4.0], [False] * 3, [True] * 3, [10.0, 6.0, 8.0]) == [4.875, 5.5, 8.0]


@pytest.mark.parametrize("terminated", [False, True])
def test_targets_do_not_look_into_padding(terminated):
    short = targets([1.0, 2.0], [False, terminated], [True] * 2, [10.0, 6.0])
    padded = targets(
        [1.0, 2.0, 7.0, 7.0], [False, terminated, terminated, False], [True, True, False, False], [10.0, 6.0, 50.0, -50.0]
    )
    # 2 + 0.5 * 6 = 5 unless terminated; then 1 + 0.5 * (0.5 * 10 + 0.5 * that)
    assert short == padded[:2] == ([4.0, 2.0] if terminated else [4.75, 5.0])


def test_targets_at_the_ends_of_lambda():
    reward, over, filled, value = [1.0, 2.0, 4.0], [False] * 3, [True] * 3, [10.0, 6.0, 8.0]
    assert targets(reward, over, filled, value, td_lambda=0.0) == [6.0, 5.0, 8.0]  # one step: r + 0.5 * value
    assert targets(reward, over, filled, value, td_lambda=1.0) == [4.0, 6.0, 8.0]  # the return, and 8 at its end
    assert targets(reward, over, filled, value, gamma=0.0) == reward


@settings(max_examples=50, deadline=None)
@given(
    rewards=st.lists(st.floats(-10, 10), min_size=1, max_size=8),
    gamma=st.floats(0, 1),
    td_lambda=st.floats(0, 1),
)
def test_exact_values_are_their_own_targets(rewards, gamma, td_lambda):
    """If every next value is the return that follows, the target is the return, whatever lambda is."""
    returns = [0.0]
    for reward in reversed(rewards):
        returns.append(reward + gamma * returns[-1])
    returns = returns[::-1]
    steps = len(rewards)
    got = targets(rewards, [False] * (steps - 1) + [True], [True] * steps, returns[1:], gamma, td_lambda)
    np.testing.assert_allclose(got, returns[:-1], atol=1e-4)


# -------------------------------------------------------------------------------------------------- generalised advantages


def advantages(reward, terminated, filled, value, gamma=0.5, gae_lambda=0.5):
    """Of one episode, from lists."""
    row = (torch.tensor([values]) for values in (reward, terminated, filled, value))
    return generalised_advantages(*row, gamma, gae_lambda)[0].tolist()


def test_advantages_of_a_terminated_episode():
    # deltas: 1 + 0.5 * 6 - 2 = 2, 2 + 0.5 * 4 - 6 = -2, and 8 - 4 = 4 as nothing comes after;
    # then backwards with 0.5 * 0.5: 4, -2 + 0.25 * 4 = -1, 2 + 0.25 * -1 = 1.75
    assert advantages([1.0, 2.0, 8.0], [False, False, True], [True] * 3, [2.0, 6.0, 4.0, 99.0]) == [1.75, -1.0, 4.0]


def test_advantages_of_a_truncated_episode():
    # the last delta goes on with the value of what was seen last: 8 + 0.5 * 16 - 4 = 12; then -2 + 3 = 1 and 2 + 0.25 = 2.25
    assert advantages([1.0, 2.0, 8.0], [False] * 3, [True] * 3, [2.0, 6.0, 4.0, 16.0]) == [2.25, 1.0, 12.0]


@pytest.mark.parametrize("terminated", [False, True])
def test_advantages_do_not_look_into_padding_and_are_0_there(terminated):
    short = advantages([1.0, 2.0], [False, terminated], [True] * 2, [2.0, 6.0, 4.0])
    padded = advantages(
        [1.0, 2.0, 7.0, 7.0],
        [False, terminated, terminated, False],
        [True, True, False, False],
        [2.0, 6.0, 4.0, 50.0, -50.0],
    )
    # 2 + 0.5 * 4 - 6 = -2, or 2 - 6 = -4 if terminated; before it 2 + 0.25 * that
    assert short == padded[:2] == ([1.0, -4.0] if terminated else [1.5, -2.0])
    assert padded[2:] == [0.0, 0.0]


def test_advantages_at_the_ends_of_lambda():
    reward, over, filled, value = [1.0, 2.0, 8.0], [False] * 3, [True] * 3, [2.0, 6.0, 4.0, 16.0]
    assert advantages(reward, over, filled, value, gae_lambda=0.0) == [2.0, -2.0, 12.0]  # the deltas
    # the discounted rewards and the last value, less the value: 8 + 8 = 16, 2 + 8 = 10, 1 + 5 = 6
    assert advantages(reward, over, filled, value, gae_lambda=1.0) == [6.0 - 2.0, 10.0 - 6.0, 16.0 - 4.0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 1), mix=st.floats(0, 1))
def test_advantage_and_value_are_the_td_lambda_target(seed, gamma, mix):
    """With the same lambda both estimate the same return, whatever the lengths and ends of episodes."""
    generator = torch.Generator().manual_seed(seed)
    steps, rows = 6, 5
    length = torch.randint(1, steps + 1, (rows, 1), generator=generator)
    filled = torch.arange(steps) < length
    terminated = (torch.arange(steps) >= length - 1) & (torch.rand(rows, 1, generator=generator) < 0.5)
    reward = torch.randn(rows, steps, generator=generator) * filled
    value = torch.randn(rows, steps + 1, generator=generator)
    advantage = generalised_advantages(reward, terminated, filled, value, gamma, mix)
    target = td_lambda_targets(reward, terminated, filled, value[:, 1:], gamma, mix)
    torch.testing.assert_close((advantage + value[:, :-1])[filled], target[filled], atol=1e-5, rtol=1e-4)
    assert (advantage[~filled] == 0).all()
