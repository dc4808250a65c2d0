"""From the agents' values to the team's: VDN, QMIX and QPLEX.

All mixers read, for a batch of any leading shape, the chosen values `[..., N]`, the greedy (maximal) values `[..., N]`, the
global state `[..., S]` and the encoded actions `[..., N, A]`, and return `[...]`. Mixers without `duels` look neither at the
greedy values nor at the actions; both may then be None.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MixerName = Literal["vdn", "qmix", "qplex"]


class VDNMixer(nn.Module):
    """The sum (Sunehag et al. 2017, eq. 3)."""

    duels = False

    def forward(self, chosen: Tensor, greedy: Tensor | None, state: Tensor, actions: Tensor | None) -> Tensor:
        return chosen.sum(-1)


class QMIXMixer(nn.Module):
    """Monotonic mixing by state-conditioned non-negative weights (Rashid et al. 2018, Sec. 4.1)."""

    duels = False

    def __init__(self, num_agents: int, state_size: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self._shape = (num_agents, embedding)
        self.first_weight = nn.Sequential(nn.Linear(state_size, hidden), nn.ReLU(), nn.Linear(hidden, num_agents * embedding))
        self.first_bias = nn.Linear(state_size, embedding)
        self.second_weight = nn.Sequential(nn.Linear(state_size, hidden), nn.ReLU(), nn.Linear(hidden, embedding))
        self.second_bias = nn.Sequential(nn.Linear(state_size, embedding), nn.ReLU(), nn.Linear(embedding, 1))

    def forward(self, chosen: Tensor, greedy: Tensor | None, state: Tensor, actions: Tensor | None) -> Tensor:
        first = self.first_weight(state).abs().unflatten(-1, self._shape)
        mixed = F.elu(torch.einsum("...n,...nd->...d", chosen, first) + self.first_bias(state))
        return (mixed * self.second_weight(state).abs()).sum(-1) + self.second_bias(state).squeeze(-1)


class QPLEXMixer(nn.Module):
    """Duplex dueling (Wang et al. 2021, eqs. 8-12): the sum of transformed values plus positively weighted advantages.

    The weight of an advantage depends on state and joint action and is a sum over attention kernels. As in the authors' own
    setting the advantage is detached and enters with weight minus one, since the plain sum already holds it once.
    """

    duels = True

    def __init__(self, num_agents: int, state_size: int, action_size: int, hidden: int, kernels: int = 4) -> None:
        super().__init__()
        self.weight = nn.Sequential(nn.Linear(state_size, hidden), nn.ReLU(), nn.Linear(hidden, num_agents))
        self.bias = nn.Sequential(nn.Linear(state_size, hidden), nn.ReLU(), nn.Linear(hidden, num_agents))
        joint = state_size + num_agents * action_size
        self.keys = nn.Sequential(nn.Linear(state_size, hidden), nn.ReLU(), nn.Linear(hidden, kernels))
        self.agents = nn.Sequential(nn.Linear(state_size, hidden), nn.ReLU(), nn.Linear(hidden, kernels * num_agents))
        self.actions = nn.Sequential(nn.Linear(joint, hidden), nn.ReLU(), nn.Linear(hidden, kernels * num_agents))
        self._shape = (kernels, num_agents)

    def forward(self, chosen: Tensor, greedy: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        weight = self.weight(state).abs() + 1e-10
        value = weight * greedy + self.bias(state)
        advantage = (weight * (chosen - greedy)).detach()
        return (value + weight * (chosen - greedy)).sum(-1) + ((self.attention(state, actions) - 1.0) * advantage).sum(-1)

    def attention(self, state: Tensor, actions: Tensor) -> Tensor:
        """Positive weights of the advantages, `[..., N]` (eq. 11)."""
        keys = self.keys(state).abs() + 1e-10
        agents = torch.sigmoid(self.agents(state)).unflatten(-1, self._shape)
        joint = torch.cat([state, actions.flatten(-2)], dim=-1)
        acts = torch.sigmoid(self.actions(joint)).unflatten(-1, self._shape)
        return torch.einsum("...k,...kn->...n", keys, agents * acts)


def make_mixer(name: MixerName, num_agents: int, state_size: int, action_size: int, embedding: int, hidden: int) -> nn.Module:
    """The mixer called `name` (IDMAC mixes with any of them)."""
    if name == "vdn":
        return VDNMixer()
    if name == "qmix":
        return QMIXMixer(num_agents, state_size, embedding, hidden)
    return QPLEXMixer(num_agents, state_size, action_size, hidden)
