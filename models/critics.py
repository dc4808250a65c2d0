"""Centralised critics: they see the global state and every agent's action, and are used in training only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from envs.team import TeamSpec
from models.encoders import ActionEncoder, BranchHeads, ObservationEncoder, Standardiser
from models.team_network import NetworkConfig


class StateCritic(nn.Module):
    """Value of a global state, of the team's reward or of each agent's part of it (MAPPO's critic)."""

    def __init__(self, spec: TeamSpec, hidden: int, per_agent: bool = False) -> None:
        super().__init__()
        self.per_agent = per_agent
        self.standard = Standardiser(spec.state_size)
        values = spec.num_agents if per_agent else 1
        self.network = nn.Sequential(
            nn.Linear(spec.state_size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, values)
        )

    def forward(self, state: Tensor) -> Tensor:
        """`[..., S]` to `[...]`, or to `[..., N]` where there is a value per agent."""
        values = self.network(self.standard(state))
        return values if self.per_agent else values.squeeze(-1)


class TeamActions(nn.Module):
    """A linear layer on the concatenation of all agents' actions, and the part of it that each agent has in it."""

    def __init__(self, spec: TeamSpec, hidden: int) -> None:
        super().__init__()
        self.encoder = ActionEncoder(spec)
        bound = (spec.num_agents * self.encoder.size) ** -0.5
        self.weight = nn.Parameter(torch.empty(spec.num_agents, self.encoder.size, hidden).uniform_(-bound, bound))

    def forward(self, encoded: Tensor) -> Tensor:
        """Encoded actions `[..., N, A]` (`ActionEncoder`) to the agents' parts `[..., N, hidden]`; their sum is the layer."""
        return torch.einsum("...na,nah->...nh", encoded, self.weight)


class _Observers(nn.Module):
    """What both critics below make of state and observations before they look at actions."""

    def __init__(self, spec: TeamSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.num_agents = spec.num_agents
        self.state_standard = Standardiser(spec.state_size)
        self.encoder = ObservationEncoder(spec, config.hidden, config.entity_hidden, config.graph_size)
        self.encoder.graph_convolution = config.graph_convolution
        self.state_layer = nn.Linear(spec.state_size, config.hidden)
        self.actions = TeamActions(spec, config.hidden)
        self.heads = BranchHeads(spec, config.hidden, config.entity_hidden)

    def fit(self, packed: Tensor, state: Tensor) -> None:
        """Takes the statistics of its inputs from `[rows, D]` observations and `[rows, S]` states."""
        self.encoder.fit(packed)
        self.state_standard.fit(state)


class CounterfactualCritic(_Observers):
    """Q of the joint action for every choice that an agent had while the others did what they did (Foerster et al. 2018, COMA).

    For agent i with choices `a_i` in its branches, `Q(s, a) = value_i + sum over branches of score_i[branch, a_i[branch]]`.
    Value and scores depend on the state, the agent's observation and the others' actions, never on its own.
    """

    def __init__(self, spec: TeamSpec, config: NetworkConfig) -> None:
        super().__init__(spec, config)
        self.agent_layer = nn.Linear(config.hidden, config.hidden)
        self.place_layer = nn.Linear(spec.num_agents, config.hidden)
        self.output_layer = nn.Linear(config.hidden, config.hidden)

    def forward(self, observation: Tensor, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `[..., N, H, C]` and values `[..., N]`.

        Args:
            observation: `[..., N, D]` packed.
            state: `[..., S]`.
            actions: `[..., N, H]` int64.
        """
        encoded, members = self.encoder(observation)
        parts = self.actions(self.actions.encoder(actions))
        others = parts.sum(-2, keepdim=True) - parts
        place = self.place_layer(torch.eye(self.num_agents, device=observation.device))
        common = self.state_layer(self.state_standard(state)).unsqueeze(-2)
        hidden = torch.relu(self.agent_layer(encoded) + common + others + place)
        return self.heads(torch.relu(self.output_layer(hidden)), members)


class JointCritic(_Observers):
    """Q of the joint action, differentiable in the actions (MADDPG's critic; one, as the reward is the team's)."""

    def __init__(self, spec: TeamSpec, config: NetworkConfig) -> None:
        super().__init__(spec, config)
        self.agents_layer = nn.Linear(spec.num_agents * config.hidden, config.hidden)
        self.scores_layer = nn.Linear(spec.num_agents, config.hidden)
        self.output = nn.Sequential(nn.Linear(config.hidden, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1))

    def forward(self, observation: Tensor, state: Tensor, choices: Tensor) -> Tensor:
        """`[..., N, D]`, `[..., S]` and choices `[..., N, H, C]` (one-hot, or relaxed) to `[...]`."""
        return self.value_of(self.look(observation, state), choices)

    def look(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The part that does not depend on actions: a vector `[..., hidden]` and scores of the choices `[..., N, H, C]`."""
        encoded, members = self.encoder(observation)
        scores, _ = self.heads(encoded, members)
        return self.agents_layer(encoded.flatten(-2)) + self.state_layer(self.state_standard(state)), scores

    def value_of(self, look: tuple[Tensor, Tensor], choices: Tensor) -> Tensor:
        """`[...]` of choices `[..., N, H, C]`; dimensions before those of `look` are alternatives that share it."""
        common, scores = look
        chosen = (scores * choices).sum((-1, -2))
        parts = self.actions(self.actions.encoder.soft(choices)).sum(-2)
        return self.output(torch.relu(common + parts + self.scores_layer(chosen))).squeeze(-1)
