"""Targets of value functions and advantages, over joint rows `[B, T]`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def td_lambda_targets(
    reward: Tensor, terminated: Tensor, filled: Tensor, next_value: Tensor, gamma: float, td_lambda: float
) -> Tensor:
    """Peng's Q(lambda) targets, `[B, T]` each.

    `y_t = r_t + gamma * (1 - terminated_t) * ((1 - lambda) * next_value_t + lambda * y_{t+1})`, where the last step of an
    episode (terminated, truncated or the end of the batch) takes `next_value` alone.
    """
    goes_on = F.pad(filled[:, 1:], (0, 1)).to(reward.dtype)
    discount = gamma * (1.0 - terminated.to(reward.dtype))
    trace = td_lambda * goes_on
    target = next_value[:, -1]
    steps = []
    for t in reversed(range(reward.shape[1])):
        target = reward[:, t] + discount[:, t] * ((1.0 - trace[:, t]) * next_value[:, t] + trace[:, t] * target)
        steps.append(target)
    return torch.stack(steps[::-1], dim=1)


def generalised_advantages(
    reward: Tensor, terminated: Tensor, filled: Tensor, value: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016), in the shape of `reward`; 0 after the end of an episode.

    `A_t = delta_t + gamma * lambda * A_{t+1}` with `delta_t = r_t + gamma * (1 - terminated_t) * V_{t+1} - V_t`; the sum ends
    with the episode, and a truncated episode goes on with the value of its last state.

    Args:
        reward: `[B, T]` of the team, or `[B, T, N]` of its agents.
        terminated, filled: `[B, T]`.
        value: `[B, T + 1]`, or `[B, T + 1, N]`.
    """
    goes_on = F.pad(filled[:, 1:], (0, 1)).to(reward.dtype)
    if reward.dim() == 3:
        goes_on, terminated, filled = (mask.unsqueeze(-1) for mask in (goes_on, terminated, filled))
    delta = reward + gamma * (1.0 - terminated.to(reward.dtype)) * value[:, 1:] - value[:, :-1]
    advantage = torch.zeros_like(delta[:, -1])
    steps = []
    for t in reversed(range(reward.shape[1])):
        advantage = delta[:, t] + gamma * gae_lambda * goes_on[:, t] * advantage
        steps.append(advantage)
    return torch.stack(steps[::-1], dim=1) * filled
