"""The recurrent network that the agents of a team share: encoder, GRU, optional intents and attentions, branching heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from envs.team import TeamSpec
from models.diffusion import DiffusionActor, DiffusionConfig
from models.encoders import ActionEncoder, BranchHeads, BranchScores, Members, ObservationEncoder
from models.intent import EnvironmentAttention, IntentEncoder, MessageAttention, Topology, topology_matrix
from models.request_encoder import RequestEncoderConfig


class IntentConfig(BaseModel):
    """IDMAC's communication (Sec. IV-B of the paper)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(16, ge=1, description="numbers in an intent; an agent sends 4 bytes for each")
    key_size: int = Field(16, ge=1, description="width of the attention's keys")
    topology: Topology = Field("full", description="who hears whom")
    neighbours: int = Field(2, ge=1, description="agents heard under the topology k-nearest")
    message_attention: bool = Field(True, description="False: intents are not exchanged (ablation)")
    environment_attention: bool = Field(
        True, description="False: the heads read hidden state and intent as they are (ablation)"
    )
    tokens: int = Field(8, ge=2, description="parts of the hidden state that the environment attention chooses from")


class NetworkConfig(BaseModel):
    """Sizes of the shared agent network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: int = Field(64, ge=4, description="width of encoder and GRU")
    entity_hidden: int = Field(32, ge=4, description="width of the encoding of one entity member (a request)")
    graph_size: int = Field(16, ge=1, description="width of the encoding of a whole graph, where entity members form one")
    graph_convolution: bool = Field(True, description="False: a graph's nodes do not hear their neighbours (ablation)")
    shared: bool = Field(True, description="False: every agent has weights of its own")
    intent: IntentConfig | None = Field(None, description="IDMAC's communication; null: the agents do not talk")
    request_encoder: RequestEncoderConfig | None = Field(None, description="LRS's encoder of a long observation field")
    diffusion: DiffusionConfig | None = Field(None, description="DLRS's actor, for algorithms with stochastic policies")

    @model_validator(mode="after")
    def _talk_needs_shared_weights(self) -> NetworkConfig:
        if self.intent is not None and not self.shared:
            raise ValueError("shared = false: expected true where agents exchange intents")
        return self


@dataclass
class NetworkOutput:
    """What the network computes for `[B, T, n]` agents and steps.

    Attributes:
        branches: One score per choice of every branch (`[B, T, n, H]` branches): Q-values or logits.
        value: `[B, T, n]`.
        hidden: `[B, n, hidden]`, the GRU's state after the last step.
        intent, intent_mean, intent_deviation: `[B, T, n, G]`, or None.
    """

    branches: BranchScores
    value: Tensor
    hidden: Tensor
    intent: Tensor | None = None
    intent_mean: Tensor | None = None
    intent_deviation: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """`[B, T, n, H, C]`, 0 where the choice does not exist. Made at every call; `branches` is smaller."""
        return self.branches.dense()


@dataclass
class Perception:
    """What agents make of their own trajectories, before they have heard the others.

    Attributes:
        hidden: `[B, T, n, hidden]`.
        last_hidden: `[B, n, hidden]`, the GRU's state after the last step.
        mean, deviation: `[B, T, n, G]` of the intents, or None.
    """

    hidden: Tensor
    last_hidden: Tensor
    entities: dict[str, Members]
    mean: Tensor | None
    deviation: Tensor | None


class TeamNetwork(nn.Module):
    """One set of weights for all agents, told apart by a one-hot index.

    The work is split where the agents talk: `perceive` needs an agent's own trajectory only, `decide` also the intents that it
    hears. `forward` runs both for the whole team; `models.decentralised` runs them for one agent.
    """

    def __init__(self, spec: TeamSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.num_agents = spec.num_agents
        self.hidden_size = config.hidden
        self.encoder = ObservationEncoder(spec, config.hidden, config.entity_hidden, config.graph_size, config.request_encoder)
        self.encoder.graph_convolution = config.graph_convolution
        self.action_encoder = ActionEncoder(spec)
        self.recurrence = nn.GRU(config.hidden + self.action_encoder.size + spec.num_agents, config.hidden, batch_first=True)
        self.heads = BranchHeads(spec, config.hidden, config.entity_hidden)
        self.diffusion = None if config.diffusion is None else DiffusionActor(spec, config.hidden, config.diffusion)
        self.intent_config = intent = config.intent
        self.hears: Tensor | None  # [N, N], None where nothing is exchanged
        hears = None
        if intent is not None and intent.message_attention:
            hears = topology_matrix(intent.topology, spec.num_agents, intent.neighbours, spec.positions)
        self.register_buffer("hears", hears, persistent=False)
        if intent is not None:
            self.intent_encoder = IntentEncoder(config.hidden, self.action_encoder.size, intent.size)
            if intent.message_attention:
                self.message_attention = MessageAttention(intent.size, intent.key_size)
            if intent.environment_attention:
                self.environment_attention = EnvironmentAttention(intent.size, config.hidden, intent.tokens, intent.key_size)
            self.merge = nn.Linear(config.hidden + intent.size, config.hidden)

    @property
    def message_bytes(self) -> int:
        """Bytes that the team's agents send each other in one step: one float32 intent to each listener."""
        if self.hears is None or self.intent_config is None:
            return 0
        return int(self.hears.sum()) * self.intent_config.size * 4

    def fit(self, packed: Tensor) -> None:
        """Takes the statistics that standardise inputs from `[..., D]` observations, once, before learning."""
        self.encoder.fit(packed)

    def initial_state(self, batch: int) -> Tensor:
        """`[batch, N, hidden]` zeros."""
        return torch.zeros(batch, self.num_agents, self.hidden_size, device=self.heads.value.weight.device)

    def perceive(self, observation: Tensor, previous_actions: Tensor, hidden: Tensor, agents: Tensor) -> Perception:
        """Own trajectory to hidden states and Gaussian intents.

        Args:
            observation: `[B, T, n, D]` packed (`models.encoders.ObservationPacker`).
            previous_actions: `[B, T, n, H]`, -1 before the first action of an episode.
            hidden: `[B, n, hidden]` state of the GRU before the first of the T steps.
            agents: `[n]` int64, the agents' places in the team.
        """
        batch, steps, n, _ = observation.shape
        encoded, entities = self.encoder(observation)
        last_action = self.action_encoder(previous_actions)
        place = nn.functional.one_hot(agents, self.num_agents).to(encoded.dtype).expand(batch, steps, n, -1)
        inputs = torch.cat([encoded, last_action, place], dim=-1).transpose(1, 2).flatten(0, 1)
        states, last = self.recurrence(inputs, hidden.flatten(0, 1).unsqueeze(0))
        states = states.unflatten(0, (batch, n)).transpose(1, 2)
        last_hidden = last.squeeze(0).unflatten(0, (batch, n))
        mean = deviation = None
        if self.intent_config is not None:
            mean, deviation = self.intent_encoder(states, last_action)
        return Perception(states, last_hidden, entities, mean, deviation)

    def decide(
        self, hidden: Tensor, entities: dict[str, Members], intent: Tensor | None, heard: Tensor | None, hears: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Scores `[..., n, H, C]` and values `[..., n]`, of a diffusion actor without noise.

        Args:
            hidden: `[..., n, hidden]`.
            intent: `[..., n, G]`, the agents' own.
            heard: `[..., k, G]`, the intents sent to them.
            hears: `[n, k]` or `[..., n, k]` bool.
        """
        branches, value = self.score(self._informed(hidden, intent, heard, hears), entities)
        return branches.dense(), value

    def score(
        self, informed: Tensor, entities: dict[str, Members], denoising: Tensor | None = None
    ) -> tuple[BranchScores, Tensor]:
        """Scores of the branches and values `[..., n]` of hidden states that know what was heard (`denoising`: `forward`)."""
        branches, value = self.heads.listed(informed, entities)
        return branches if self.diffusion is None else self.diffusion(informed, branches, denoising), value

    def _informed(self, hidden: Tensor, intent: Tensor | None, heard: Tensor | None, hears: Tensor | None) -> Tensor:
        """Hidden states `[..., n, hidden]` that the heads read (arguments: `decide`)."""
        if self.intent_config is not None and intent is not None:
            if self.intent_config.message_attention and heard is not None and hears is not None:
                intent = self.message_attention(intent, heard, hears)
            if self.intent_config.environment_attention:
                hidden = hidden + self.environment_attention(intent, hidden)
            hidden = torch.relu(self.merge(torch.cat([hidden, intent], dim=-1)))
        return hidden

    def forward(
        self,
        observation: Tensor,
        previous_actions: Tensor,
        hidden: Tensor,
        noise: Tensor | None = None,
        denoising: Tensor | None = None,
    ) -> NetworkOutput:
        """The whole team over T steps, each agent hearing the intents of the same step.

        Args:
            observation: `[B, T, N, D]` packed.
            previous_actions: `[B, T, N, H]`.
            hidden: `[B, N, hidden]`.
            noise: `[B, T, N, G]` standard normal numbers for the intents; None takes their means.
            denoising: `[B, T, N, steps, W]` standard normal numbers for the diffusion actor (`DiffusionActor`); None: zeros.
        """
        seen = self.perceive(observation, previous_actions, hidden, torch.arange(self.num_agents, device=observation.device))
        intent = seen.mean
        if intent is not None and noise is not None and seen.deviation is not None:
            intent = intent + seen.deviation * noise
        informed = self._informed(seen.hidden, intent, intent, self.hears)
        branches, value = self.score(informed, seen.entities, denoising)
        return NetworkOutput(branches, value, seen.last_hidden, intent, seen.mean, seen.deviation)


class SeparateNetworks(nn.Module):
    """A network of its own for every agent, used as if it were one `TeamNetwork` without intents.

    The agents' networks run one after the other, so a step takes N times as many kernels as with shared weights.
    """

    message_bytes = 0

    def __init__(self, spec: TeamSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.networks = nn.ModuleList([TeamNetwork(spec, config) for _ in spec.agents])
        self.action_encoder = ActionEncoder(spec)

    def fit(self, packed: Tensor) -> None:
        """See `TeamNetwork.fit`; all agents take the same statistics."""
        for network in self._each():
            network.fit(packed)

    def initial_state(self, batch: int) -> Tensor:
        """See `TeamNetwork.initial_state`."""
        return self._each()[0].initial_state(batch)

    def forward(
        self,
        observation: Tensor,
        previous_actions: Tensor,
        hidden: Tensor,
        noise: Tensor | None = None,
        denoising: Tensor | None = None,
    ) -> NetworkOutput:
        """See `TeamNetwork.forward`."""
        scores, values, states = [], [], []
        for i, network in enumerate(self._each()):
            agent = slice(i, i + 1)
            place = torch.tensor([i], device=observation.device)
            seen = network.perceive(observation[:, :, agent], previous_actions[:, :, agent], hidden[:, agent], place)
            own = None if denoising is None else denoising[:, :, agent]
            branches, value = network.score(seen.hidden, seen.entities, own)
            scores.append(branches.dense())
            values.append(value)
            states.append(seen.last_hidden)
        listed = BranchScores.everywhere(torch.cat(scores, dim=2))
        return NetworkOutput(listed, torch.cat(values, dim=2), torch.cat(states, dim=1))

    def _each(self) -> list[TeamNetwork]:
        return cast(list[TeamNetwork], list(self.networks))


def make_team_network(spec: TeamSpec, config: NetworkConfig) -> TeamNetwork | SeparateNetworks:
    """The team's network: shared weights, or every agent's own (`NetworkConfig.shared`)."""
    return TeamNetwork(spec, config) if config.shared else SeparateNetworks(spec, config)


def masked_argmax(scores: Tensor, action_mask: Tensor) -> Tensor:
    """The best legal choice of every branch, the first of equals: `[..., H, C]` to `[..., H]`."""
    return scores.masked_fill(~action_mask, -torch.inf).argmax(-1)
