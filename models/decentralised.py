"""One agent of a trained team on its own: an edge server in the field, with its own trajectory and what its peers tell it.

Agents hear the intents of the same step, so a step has two phases: `intend` (what I am up to, from my own trajectory) and
`decide` (what I do, given what I heard). Between them the agents send each other their intents, which depend on nothing that is
heard. All agents together decide exactly as the whole team does at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from envs.team import TeamSpec
from models.encoders import ObservationPacker
from models.team_network import Perception, TeamNetwork, masked_argmax


@dataclass
class Intention:
    """What an agent knows before it has heard its peers.

    Attributes:
        intent: `[E, G]`, the message for its `listeners`; None where the network has no intents.
        perception: What `decide` goes on with.
    """

    intent: Tensor | None
    perception: Perception


@dataclass
class Decision:
    """What an agent does, and what it remembers.

    Attributes:
        actions: `[E, H]` int64.
        scores: `[E, H, C]`, the scores that it chose by.
        intent: As in `Intention`.
        state: For the next step, as `DecentralisedAgent.initial_state` returns it.
    """

    actions: Tensor
    scores: Tensor
    intent: Tensor | None
    state: dict[str, Tensor]


class DecentralisedAgent(nn.Module):
    """The agent number `agent` of a team that shares `network`; it takes the best known choices, deterministically.

    E agents with this number, of E separate teams, decide at once; in the field E is 1. Like a policy it holds no episode: what
    it remembers is in the `state` that it returns, which is its part of the team's (`TeamModule.initial_state`).

    Attributes:
        sources: Names of the peers that the topology lets it hear.
        listeners: Names of the peers that hear it: where its intent has to be sent.
    """

    _place: Tensor  # [1], the agent's number
    _hears: Tensor  # [N] bool, whom it can hear

    def __init__(self, spec: TeamSpec, network: TeamNetwork, agent: int) -> None:
        super().__init__()
        if not 0 <= agent < spec.num_agents:
            raise ValueError(f"agent = {agent}: expected the number of an agent, 0 to {spec.num_agents - 1}")
        self.spec = spec
        self.agent = agent
        self.network = network
        self._packer = ObservationPacker(spec)
        device = network.heads.value.weight.device
        nobody = torch.zeros(spec.num_agents, spec.num_agents, dtype=torch.bool, device=device)
        hears = nobody if network.hears is None else network.hears
        self.register_buffer("_place", torch.tensor([agent], device=device), persistent=False)
        self.register_buffer("_hears", hears[agent], persistent=False)
        self.sources = self._names(hears[agent])
        self.listeners = self._names(hears[:, agent])

    def _names(self, chosen: Tensor) -> tuple[str, ...]:
        return tuple(name for name, one in zip(self.spec.agents, chosen.tolist(), strict=True) if one)

    def initial_state(self, num_envs: int = 1) -> dict[str, Tensor]:
        """What it remembers at the start of an episode: `hidden` `[E, hidden]` and `previous_actions` `[E, H]`, -1 each."""
        device = self._place.device
        return {
            "hidden": torch.zeros(num_envs, self.network.hidden_size, device=device),
            "previous_actions": torch.full((num_envs, self.spec.num_branches), -1, device=device),
        }

    def intend(self, observation: Tensor | Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Intention:
        """The first phase.

        Args:
            observation: The agent's own: fields in physical units, `[E, *shape]` each (see `TeamSpec.observation`), or packed
                `[E, D]`.
            state: What `initial_state` or the last decision returned.
        """
        packed = observation if isinstance(observation, Tensor) else self.pack(observation)
        with torch.no_grad():
            seen = self._perceive(packed, state["hidden"], state["previous_actions"])
        return Intention(None if seen.mean is None else seen.mean[:, 0, 0], seen)

    def decide(self, intention: Intention, action_mask: Tensor, messages: Mapping[str, Tensor]) -> Decision:
        """The second phase.

        Args:
            intention: Of the same step.
            action_mask: `[E, H, C]` bool, the legal choices.
            messages: Name of the peer to its intent of this step, `[E, G]`. A message that is missing, or in which a number is
                not finite, is lost: the agent decides without it. Messages from others than its `sources` do not count.

        Raises:
            ValueError: A message is not from a member of the team, or not of the intents' size.
        """
        with torch.no_grad():
            scores = self._score(intention.perception, self._inbox(intention.intent, messages))
        actions = masked_argmax(scores, action_mask)
        state = {"hidden": intention.perception.last_hidden[:, 0], "previous_actions": actions}
        return Decision(actions, scores, intention.intent, state)

    def step(
        self,
        observation: Tensor | Mapping[str, Tensor],
        action_mask: Tensor,
        state: Mapping[str, Tensor],
        messages: Mapping[str, Tensor],
    ) -> Decision:
        """Both phases at once, for one who has the peers' messages already (arguments: `intend`, `decide`)."""
        return self.decide(self.intend(observation, state), action_mask, messages)

    def forward(
        self, packed: Tensor, action_mask: Tensor, hidden: Tensor, previous_actions: Tensor, heard: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """`step` on tensors alone, which can be exported as one graph (`network.encoder.every_place` makes its shapes fixed).

        Args:
            packed: `[E, D]`.
            action_mask: `[E, H, C]` bool.
            hidden, previous_actions: The parts of the state.
            heard: `[E, N, G]`, the intents of all agents, NaN where there is none; None where the network has no intents.

        Returns:
            Actions `[E, H]`, own intent `[E, G]`, and the next `hidden`. The actions are the next `previous_actions`.
        """
        seen = self._perceive(packed, hidden, previous_actions)
        actions = masked_argmax(self._score(seen, heard), action_mask)
        return actions, None if seen.mean is None else seen.mean[:, 0, 0], seen.last_hidden[:, 0]

    def pack(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Fields in physical units, `[E, *shape]` each, to the vector that the network reads, `[E, D]`."""
        return self._packer({name: observation[name].unsqueeze(1) for name in self.spec.observation}).squeeze(1)

    def _perceive(self, packed: Tensor, hidden: Tensor, previous_actions: Tensor) -> Perception:
        """One step (T = 1) of one agent (n = 1)."""
        return self.network.perceive(packed[:, None, None], previous_actions[:, None, None], hidden[:, None], self._place)

    def _score(self, seen: Perception, heard: Tensor | None) -> Tensor:
        """Scores `[E, H, C]`, with `heard` as in `forward`."""
        hears = None
        if heard is not None:
            arrived = heard.isfinite().all(-1)
            heard = torch.where(arrived.unsqueeze(-1), heard, 0.0)[:, None]
            hears = (arrived & self._hears)[:, None, None]
        scores, _ = self.network.decide(seen.hidden, seen.entities, seen.mean, heard, hears)
        return scores[:, 0, 0]

    def _inbox(self, own: Tensor | None, messages: Mapping[str, Tensor]) -> Tensor | None:
        """Messages by name to `heard` as in `forward`."""
        strangers = set(messages) - set(self.spec.agents)
        if strangers:
            raise ValueError(f"message from {min(strangers)!r}: expected one of {', '.join(self.spec.agents)}")
        if own is None:
            return None
        heard = own.new_full((len(own), self.spec.num_agents, own.shape[-1]), torch.nan)
        for name, message in messages.items():
            if message.shape != own.shape:
                raise ValueError(f"message from {name!r} is {list(message.shape)}: expected {list(own.shape)}")
            heard[:, self.spec.agents.index(name)] = message
        return heard
