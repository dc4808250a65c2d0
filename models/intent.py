"""Intents and the two attentions of IDMAC (Huo et al., "Personalized LLM Service Updating …", Sec. IV-B)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Topology = Literal["full", "star", "ring", "k-nearest"]


def topology_matrix(
    topology: Topology, num_agents: int, neighbours: int, positions: tuple[tuple[float, float], ...] = ()
) -> Tensor:
    """`[N, N]` bool: does row's agent hear column's? Nobody hears itself.

    `star`: agent 0 hears all and all hear agent 0. `ring`: each hears the one before and the one after it. `k-nearest`: each
    hears its `neighbours` nearest by position (metres), ties by index; along the ring where the problem has no positions.
    """
    index = torch.arange(num_agents)
    if topology == "full":
        hears = torch.ones(num_agents, num_agents, dtype=torch.bool)
    elif topology == "star":
        hears = (index[:, None] == 0) | (index[None, :] == 0)
    else:
        around = (index[:, None] - index[None, :]).abs()
        distance = torch.minimum(around, num_agents - around).to(torch.float64)
        count = 2
        if topology == "k-nearest":
            count = neighbours
            if positions:
                place = torch.tensor(positions, dtype=torch.float64)
                distance = torch.cdist(place, place).round(decimals=3)  # to the millimetre, so that ties are ties
        distance.fill_diagonal_(math.inf)
        order = distance.argsort(dim=1, stable=True)[:, : min(count, num_agents - 1)]
        hears = torch.zeros(num_agents, num_agents, dtype=torch.bool).scatter_(1, order, True)
    return hears & ~torch.eye(num_agents, dtype=torch.bool)


class IntentEncoder(nn.Module):
    """Gaussian intent from the trajectory's encoding and the last action (eq. 29)."""

    def __init__(self, hidden: int, action_size: int, intent_size: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(hidden + action_size, hidden), nn.ReLU())
        self.mean = nn.Linear(hidden, intent_size)
        self.log_deviation = nn.Linear(hidden, intent_size)

    def forward(self, hidden: Tensor, last_action: Tensor) -> tuple[Tensor, Tensor]:
        """`[..., hidden]`, `[..., action_size]` to mean and standard deviation, `[..., G]` each."""
        x = self.network(torch.cat([hidden, last_action], dim=-1))
        return self.mean(x), self.log_deviation(x).clamp(-5.0, 2.0).exp()


class MessageAttention(nn.Module):
    """Each agent's intent asks, the intents that it hears answer (eqs. 30-31)."""

    def __init__(self, intent_size: int, key_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(intent_size, key_size, bias=False)
        self.key = nn.Linear(intent_size, key_size, bias=False)
        self.value = nn.Linear(intent_size, intent_size, bias=False)

    def forward(self, own: Tensor, heard: Tensor, hears: Tensor) -> Tensor:
        """Aggregated intent `[..., n, G]`.

        Args:
            own: `[..., n, G]`, the intents of the listeners.
            heard: `[..., k, G]`, the intents sent.
            hears: `[n, k]` or `[..., n, k]` bool, which listener hears which. One that hears nobody keeps its own intent.
        """
        scores = self.query(own) @ self.key(heard).transpose(-1, -2) / math.sqrt(self.key.out_features)
        weights = scores.masked_fill(~hears, -torch.inf).softmax(-1)
        return weights.nan_to_num(0.0) @ self.value(heard) + own


class EnvironmentAttention(nn.Module):
    """The aggregated intent picks what matters in the agent's own hidden state (eqs. 32-33).

    The paper attends over one vector, where a softmax is constant 1. As published it filters nothing, so the hidden state is
    read here as `tokens` equal parts, each with its own position vector, over which the softmax has a choice to make.
    """

    def __init__(self, intent_size: int, hidden: int, tokens: int, key_size: int) -> None:
        super().__init__()
        if hidden % tokens:
            raise ValueError(f"hidden size {hidden} cannot be read as {tokens} equal tokens")
        self.tokens = tokens
        part = hidden // tokens
        self.position = nn.Parameter(torch.randn(tokens, part) * 0.1)
        self.query = nn.Linear(intent_size, key_size, bias=False)
        self.key = nn.Linear(part, key_size, bias=False)
        self.value = nn.Linear(part, hidden, bias=False)

    def forward(self, intent: Tensor, hidden: Tensor) -> Tensor:
        """`[..., G]` and `[..., hidden]` to the filtered state `[..., hidden]`."""
        parts = hidden.unflatten(-1, (self.tokens, -1)) + self.position
        scores = self.key(parts) @ self.query(intent).unsqueeze(-1) / math.sqrt(self.key.out_features)
        weights = scores.softmax(-2)
        return self.value((weights * parts).sum(-2))


def entropy_loss(mean: Tensor, deviation: Tensor, form: Literal["kl", "paper"]) -> Tensor:
    """Eq. 34 for every agent and step: `[..., G]` twice to `[...]`.

    As printed (`paper`) it is minus the Kullback-Leibler divergence to N(0, I): added to the loss it drives intents away from
    the prior without bound. `kl` has the sign that regularises.
    """
    variance = deviation.square()
    divergence = 0.5 * (mean.square() + variance - variance.log() - 1.0).sum(-1)
    return divergence if form == "kl" else -divergence


def continuity_loss(intent: Tensor, window: int) -> Tensor:
    """Eq. 35: minus the mean cosine between an intent and those of the `window` steps before it.

    Args:
        intent: `[B, T, N, G]`.

    Returns:
        `[B, T, N]`; early steps average over the steps that exist, the first is 0.
    """
    total = torch.zeros_like(intent[..., 0])
    steps = intent.shape[1]
    for lag in range(1, min(window, steps - 1) + 1):
        total = total + F.pad(F.cosine_similarity(intent[:, lag:], intent[:, :-lag], dim=-1), (0, 0, lag, 0))
    available = torch.arange(steps, device=intent.device).clamp(min=1, max=window)
    return -total / available[:, None]
