"""Value decomposition: VDN, QMIX, QPLEX, and IDMAC, which is one of them whose agents tell each other their intents.

In the order in which things happen: `ValueModule.act` plays (epsilon-greedy per branch), `EpisodeReplay` keeps whole joint
episodes, `ValueModule._forward_train` unrolls online and target networks over them and mixes the agents' values,
`ValueLearner.compute_loss_for_module` is the loss, `ReplayAlgorithm.training_step` ties it together.

An agent's action has H branches. Its value is `value + sum over branches of the chosen branch's score`, so the greedy joint
action is the greedy choice of every branch of every agent, and mixing over agents is untouched by how many branches there are.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from envs.team import random_actions
from models.encoders import Standardiser
from models.intent import continuity_loss, entropy_loss
from models.mixers import MixerName, make_mixer
from models.team_module import (
    ACTION_MASK,
    ACTIONS,
    ALIVE,
    FILLED,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TeamModule,
)
from models.team_network import NetworkOutput, masked_argmax
from trainers.algorithms.replay_algorithm import ReplayAlgorithm, ReplaySettings
from trainers.algorithms.returns import td_lambda_targets
from trainers.algorithms.team_algorithm import FIGURES, TeamAlgorithmConfig
from trainers.algorithms.team_learner import TeamLearner
from trainers.rollout import JointEpisodes


class ValueSettings(ReplaySettings):
    """Settings of the family. IDMAC's two regularisers act where the network has intents (`network.intent`)."""

    mixer: MixerName = Field("qmix", description="how the agents' values become the team's")
    mixer_embedding: int = Field(32, ge=1, description="QMIX: width of the mixing layer")
    mixer_hidden: int = Field(64, ge=1, description="width of the mixer's hypernetworks")
    td_lambda: float = Field(0.6, ge=0, le=1, description="mix of n-step targets (0: one step)")
    double_q: bool = Field(True, description="online network chooses, target network values (van Hasselt et al. 2016)")
    target_tau: float = Field(0.01, gt=0, le=1, description="share of the online weights that enters the targets per update")
    epsilon_start: float = Field(1.0, ge=0, le=1)
    epsilon_end: float = Field(0.05, ge=0, le=1)
    epsilon_steps: int = Field(50_000, ge=1, description="environment steps over which epsilon falls linearly")
    entropy_loss: Literal["kl", "paper"] = Field("kl", description="sign of eq. 34, see models.intent.entropy_loss")
    entropy_weight: float = Field(1e-3, ge=0, description="beta_ent of eq. 38")
    continuity_weight: float = Field(1e-2, ge=0, description="beta_cont of eq. 38")
    continuity_window: int = Field(3, ge=1, description="K of eq. 35, steps")

    def epsilon(self, env_steps: int) -> float:
        """Probability that a branch explores after `env_steps` steps of training."""
        share = min(1.0, env_steps / self.epsilon_steps)
        return self.epsilon_start + share * (self.epsilon_end - self.epsilon_start)


class ValueModule(TeamModule):
    """Agent network, mixer, and target copies of both."""

    scores_are = "q_values"
    settings: ValueSettings

    def setup_learning(self) -> None:
        settings = self.settings
        self.state_standard = Standardiser(self.spec.state_size)
        self.mixer = make_mixer(
            settings.mixer,
            self.spec.num_agents,
            self.spec.state_size,
            self.network.action_encoder.size,
            settings.mixer_embedding,
            settings.mixer_hidden,
        )
        self.target_network = copy.deepcopy(self.network).requires_grad_(False)
        self.target_mixer = copy.deepcopy(self.mixer).requires_grad_(False)

    def get_non_inference_attributes(self) -> list[str]:
        return ["mixer", "target_network", "target_mixer", "state_standard"]

    def slow_copies(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.target_network, self.network), (self.target_mixer, self.mixer)]

    def fit_inputs(self, rows: JointEpisodes) -> None:
        super().fit_inputs(rows)
        self.state_standard.fit(rows[STATE][rows[ALIVE].any(-1)].to(self.device))
        self.target_network.load_state_dict(self.network.state_dict())

    @torch.no_grad()
    def act(
        self,
        packed: Tensor,
        action_mask: Tensor,
        state: dict[str, Tensor],
        explore: bool,
        env_steps: int = 0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        noise = self._noise(packed, explore, generator)
        out = self.network(packed.unsqueeze(1), state["previous_actions"].unsqueeze(1), state["hidden"], noise)
        actions = masked_argmax(out.scores.squeeze(1), action_mask)
        if explore:
            dice = torch.rand(actions.shape, generator=generator, device=packed.device)
            explores = (dice < self.settings.epsilon(env_steps)) & (action_mask.sum(-1, dtype=torch.int16) > 1)
            actions[explores] = random_actions(action_mask[explores], generator)
        return actions, {"hidden": out.hidden, "previous_actions": actions}, {}

    @torch.no_grad()
    def weigh(self, packed: Tensor, action_mask: Tensor, state: dict[str, Tensor]) -> Tensor:
        return self.network(packed.unsqueeze(1), state["previous_actions"].unsqueeze(1), state["hidden"]).scores.squeeze(1)

    def _noise(self, packed: Tensor, explore: bool, generator: torch.Generator | None) -> Tensor | None:
        intent = self.network_config.intent
        if intent is None or not explore:
            return None
        return torch.randn((len(packed), 1, self.spec.num_agents, intent.size), generator=generator, device=packed.device)

    def _forward_train(self, batch: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Joint values `[B, T]`, their targets `[B, T]`, and the regularisers of the intents `[B, T]`."""
        settings = self.settings
        actions = batch[ACTIONS].to(torch.int64)
        state, alive = self.state_standard(batch[STATE]), batch[ALIVE]
        previous = F.pad(actions, (0, 0, 0, 0, 1, 0), value=-1)
        noise = self._training_noise(previous)
        start = self.network.initial_state(len(actions))
        with torch.no_grad():  # before the other, which keeps what its gradient needs: fewer large tensors at once
            target = self.target_network(batch[OBSERVATION], previous, start, noise)
        online = self.network(batch[OBSERVATION], previous, start, noise)
        branches = online.branches
        mask = branches.listed(batch[ACTION_MASK])
        decides = mask.sum(-1, dtype=torch.int16) > 1
        chosen = branch_value(online, branches.listed(F.pad(actions, (0, 0, 0, 0, 0, 1))), decides, alive)[:, :-1]
        best = masked_argmax(branches.values.detach(), mask)
        greedy = encoded = None
        if self.mixer.duels:
            greedy = branch_value(online, best, decides, alive)[:, :-1]
            encoded = self.network.action_encoder(actions)
        joint = self.mixer(chosen, greedy, state[:, :-1], encoded)

        with torch.no_grad():
            if not settings.double_q:
                best = masked_argmax(target.branches.values, mask)
            picked = branch_value(target, best, decides, alive)
            if self.mixer.duels:
                greedy = branch_value(target, masked_argmax(target.branches.values, mask), decides, alive)
                first_legal = batch[ACTION_MASK].to(torch.uint8).argmax(-1)
                encoded = self.network.action_encoder(branches.spread(best, first_legal))
            next_joint = self.target_mixer(picked, greedy, state, encoded)[:, 1:]
            targets = td_lambda_targets(
                batch[REWARD], batch[TERMINATED], batch[FILLED], next_joint, settings.gamma, settings.td_lambda
            )
        return {"joint_value": joint, "targets": targets, **self._intent_losses(online)}

    def _training_noise(self, previous: Tensor) -> Tensor | None:
        intent = self.network_config.intent
        if intent is None:
            return None
        return torch.randn((*previous.shape[:3], intent.size), device=previous.device)

    def _intent_losses(self, out: NetworkOutput) -> dict[str, Tensor]:
        """Eqs. 34 and 35, mean over agents, for every step that was acted in: `[B, T]`."""
        if out.intent is None or out.intent_mean is None or out.intent_deviation is None:
            return {}
        entropy = entropy_loss(out.intent_mean, out.intent_deviation, self.settings.entropy_loss)
        continuity = continuity_loss(out.intent, self.settings.continuity_window)
        return {"entropy_loss": entropy.mean(-1)[:, :-1], "continuity_loss": continuity.mean(-1)[:, :-1]}


def branch_value(out: NetworkOutput, choices: Tensor, decides: Tensor, alive: Tensor) -> Tensor:
    """The agents' values of their joint branch choices, `[B, T, N]`.

    Branches with a single legal choice decide nothing and count 0, as do agents that have left the episode.

    Args:
        out: Of `[B, T, N]` agents and steps, with P branches in its list.
        choices: `[P]`.
        decides: `[P]` bool, more than one choice is legal.
        alive: `[B, T, N]`.
    """
    return (out.value + out.branches.totals(choices, decides)) * alive


class ValueLearner(TeamLearner):
    """Mean squared TD error (eq. 37) plus the weighted regularisers (eq. 38), then a soft target update."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        settings: ValueSettings = config.settings
        weight = batch[FILLED].to(torch.float32)
        weight = weight / weight.sum()
        error = (fwd_out["joint_value"] - fwd_out["targets"]) * (weight > 0)
        loss = (error.square() * weight).sum()
        figures = {"td_loss": loss.detach(), "joint_value": (fwd_out["joint_value"].detach() * weight).sum()}
        for name, factor in (("entropy_loss", settings.entropy_weight), ("continuity_loss", settings.continuity_weight)):
            if name in fwd_out:
                term = (fwd_out[name] * weight).sum()
                figures[name] = term.detach()
                loss = loss + factor * term
        self.metrics.log_dict(figures, key=(module_id, FIGURES), window=1)
        return loss


class ValueDecomposition(ReplayAlgorithm):
    """Off-policy learning from replay, as its base does it."""

    config: ValueDecompositionConfig

    @classmethod
    def get_default_config(cls) -> ValueDecompositionConfig:
        return ValueDecompositionConfig()


class ValueDecompositionConfig(TeamAlgorithmConfig):
    """RLlib configuration of the family."""

    algorithm_class = ValueDecomposition
    module_class = ValueModule
    learner_class = ValueLearner
    settings_class = ValueSettings
    settings: ValueSettings


CONFIG = ValueDecompositionConfig
