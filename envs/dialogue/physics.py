"""Quality, association, history and reward as pure functions of tensors (any shape `[...]` unless noted).

A choice is 0 for the local model, else 1 + the bits of the views that go to the cloud with the request.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.dialogue.tables import VIEWS

CHOICES = 1 + 2 ** len(VIEWS)


def views_of_choices(device: torch.device | str = "cpu") -> Tensor:
    """`[9, 3]` float64: which views each choice sends."""
    rows = [[float(choice > 0 and (choice - 1) >> view & 1) for view in range(len(VIEWS))] for choice in range(CHOICES)]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def coverage(relevance: Tensor, sent: Tensor, information: float) -> Tensor:
    """(1) `1 - prod_v (1 - information * relevance_v * sent_v)`, `[..., 3]` to `[...]`.

    The share of the scene that the views show together: a further view shows the same share of what the others leave open, so
    each adds less.
    """
    return 1.0 - (1.0 - information * relevance * sent).prod(-1)


def quality(mean: Tensor, gain: Tensor, covered: Tensor, hardship: float, difficulty: Tensor, noise: Tensor) -> Tensor:
    """(2) `mean + gain * coverage - hardship * (2 difficulty - 1) + noise`.

    Args:
        mean, hardship: Of the endpoint that answers.
        gain: Of the category, 0 for the local model.
        difficulty: In [0, 1].
    """
    return mean + gain * covered - hardship * (2.0 * difficulty - 1.0) + noise


def association(relevance: Tensor, sent: Tensor) -> Tensor:
    """(3) `1 - mean_v |sent_v - relevance_v|`, `[..., 3]` to `[...]` in [0, 1]: do the views fit what the request calls for?"""
    return 1.0 - (sent - relevance).abs().mean(-1)


def untold_tokens(told: Tensor, turn: int, same: Tensor, run: Tensor, window: int) -> Tensor:
    """(4) Tokens of dialogue that the endpoint has not seen: those since it last answered, of the last `window` turns.

    Args:
        told: `[..., T + 1]`, tokens of all turns before each.
        turn: The present turn, counted from 0.
        same: Whether the endpoint answered the turn before.
        run: For how many turns the endpoint of the turn before has answered, int64, 0 at the beginning.
    """
    unseen = run.clamp(max=window) * ~same
    return told[..., turn] - told.gather(-1, (turn - unseen).clamp(min=0)[..., None]).squeeze(-1)


def reward(
    quality: Tensor, latency_s: Tensor, usd: Tensor, association: Tensor, scales: tuple[float, ...], weights: tuple[float, ...]
) -> Tensor:
    """(5) `Q - w_l L - w_c C + w_a A`, with Q, L and C divided by their `scales` and cut to [0, 1]."""
    q, l, c = ((x / scale).clamp(0.0, 1.0) for x, scale in zip((quality, latency_s, usd), scales, strict=True))  # noqa: E741
    w_latency, w_usd, w_association = weights
    return q - w_latency * l - w_usd * c + w_association * association
