"""MADDPG on discrete actions: actors trained through a centralised critic by Gumbel-softmax (Lowe et al. 2017).

In the order in which things happen: `PolicyModule.act` samples (Gumbel noise on the logits is the exploration), `EpisodeReplay`
keeps episodes, `MaddpgModule._forward_train` computes the critic's error and every agent's actor loss,
`MaddpgLearner.compute_loss_for_module` weighs them, `ReplayAlgorithm.training_step` ties it together.

The reward is the team's, so one critic of the joint action serves all agents. Agent i's actor is improved with its own action
from the actor and the others' from replay, as in the paper; one-hot going forward, relaxed going backward.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from models.critics import JointCritic
from models.distributions import BranchCategorical, straight_through
from models.team_module import ACTION_MASK, ACTIONS, ALIVE, FILLED, OBSERVATION, REWARD, STATE, TERMINATED
from trainers.algorithms.policy_gradient import PolicyModule
from trainers.algorithms.replay_algorithm import ReplayAlgorithm, ReplaySettings
from trainers.algorithms.team_algorithm import FIGURES, TeamAlgorithmConfig
from trainers.algorithms.team_learner import TeamLearner
from trainers.rollout import JointEpisodes


class MaddpgSettings(ReplaySettings):
    """Settings of MADDPG."""

    critic_lr: float | None = Field(None, gt=0, description="Adam's learning rate for the critic; null: lr")
    temperature: float = Field(1.0, gt=0, description="of the Gumbel-softmax relaxation")
    logit_weight: float = Field(
        1e-3, ge=0, description="weight of the squared logits, summed over an agent's choices: they keep policies from freezing"
    )
    target_tau: float = Field(
        0.01, gt=0, le=1, description="share of actor and critic that enters their slow copies per update"
    )
    rewards: Literal["standardise", "scale", "raw"] = "scale"


class MaddpgModule(PolicyModule):
    """Actors, the joint critic, and slow copies of both."""

    records_noise = False  # replay says what was done; the losses ask what the actors would do
    settings: MaddpgSettings

    def setup_learning(self) -> None:
        self.critic = JointCritic(self.spec, self.network_config)
        self.target_network = copy.deepcopy(self.network).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def get_non_inference_attributes(self) -> list[str]:
        return ["critic", "target_network", "target_critic"]

    def slow_copies(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.target_network, self.network), (self.target_critic, self.critic)]

    def trained_parameters(self) -> dict[str, list[Tensor]]:
        return {"actor": list(self.network.parameters()), "critic": list(self.critic.parameters())}

    def fit_inputs(self, rows: JointEpisodes) -> None:
        super().fit_inputs(rows)
        alive = rows[ALIVE]
        self.critic.fit(rows[OBSERVATION][alive].to(self.device), rows[STATE][alive.any(-1)].to(self.device))
        self.target_network.load_state_dict(self.network.state_dict())
        self.target_critic.load_state_dict(self.critic.state_dict())

    def _forward_train(self, batch: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        actions = batch[ACTIONS].to(torch.int64)
        decides = (batch[ACTION_MASK].sum(-1) > 1).unsqueeze(-1)  # [B, T + 1, N, H, 1]; a forced choice tells nothing
        observation, state = batch[OBSERVATION], batch[STATE]
        taken = F.one_hot(actions, self.spec.max_choices).to(torch.float32) * decides[:, :-1]
        with torch.no_grad():
            targets = self._targets(batch, actions, decides)
        look = self.critic.look(observation[:, :-1], state[:, :-1])
        q = self.critic.value_of(look, taken)

        policy, out = self.unroll(batch)
        proposed = straight_through(policy, self.settings.temperature) * decides[:, :-1]
        # [N, B, T, N, H, C]: alternative i is agent i's proposal among what the others did.
        own = torch.eye(self.spec.num_agents, device=q.device).view(self.spec.num_agents, 1, 1, self.spec.num_agents, 1, 1)
        alternatives = own * proposed + (1.0 - own) * taken
        frozen = {name: value.detach() for name, value in [*self.critic.named_parameters(), *self.critic.named_buffers()]}
        improved = functional_call(
            _ValueOf(self.critic),
            {f"critic.{name}": value for name, value in frozen.items()},
            (tuple(part.detach() for part in look), alternatives),
        )
        logits = (out.scores * batch[ACTION_MASK][:, :-1]).square().sum((-1, -2))
        return {
            "q": q,
            "targets": targets,
            "improved": improved.movedim(0, -1),
            "logits": logits,
            "entropy": policy.entropy(),
        }

    def _targets(self, batch: dict[str, Tensor], actions: Tensor, decides: Tensor) -> Tensor:
        """`r + gamma * Q'(s', a')` with the slow actors' actions, `[B, T]`."""
        previous = F.pad(actions, (0, 0, 0, 0, 1, 0), value=-1)
        start = self.target_network.initial_state(len(actions))
        out = self.target_network(batch[OBSERVATION], previous, start, denoising=self.draw_noise(batch[OBSERVATION]))
        policy = BranchCategorical.of(out.scores, batch[ACTION_MASK])
        choices = F.one_hot(policy.sample(), self.spec.max_choices).to(torch.float32) * decides
        following = self.target_critic(batch[OBSERVATION], batch[STATE], choices)[:, 1:]
        return batch[REWARD] + self.settings.gamma * (1.0 - batch[TERMINATED].to(torch.float32)) * following


class _ValueOf(torch.nn.Module):
    """A critic's `value_of` as a module, so that it can be called with other (detached) parameters."""

    def __init__(self, critic: JointCritic) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, look: tuple[Tensor, Tensor], choices: Tensor) -> Tensor:
        return self.critic.value_of(look, choices)


class MaddpgLearner(TeamLearner):
    """The critic's squared TD error, and minus its value of what the actors propose."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        settings: MaddpgSettings = config.settings
        filled = batch[FILLED].to(torch.float32)
        filled = filled / filled.sum()
        acts = (batch[ALIVE][:, :-1] & batch[FILLED].unsqueeze(-1)).to(torch.float32)
        acts = acts / acts.sum()
        error = (fwd_out["q"] - fwd_out["targets"]) * (filled > 0)
        critic_loss = (error.square() * filled).sum()
        actor_loss = -(fwd_out["improved"] * acts).sum() + settings.logit_weight * (fwd_out["logits"] * acts).sum()
        figures = {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "q": (fwd_out["q"].detach() * filled).sum(),
            "entropy": (fwd_out["entropy"].detach() * acts).sum(),
        }
        self.metrics.log_dict(figures, key=(module_id, FIGURES), window=1)
        return critic_loss + actor_loss


class Maddpg(ReplayAlgorithm):
    """Off-policy learning from replay, as its base does it."""

    config: MaddpgConfig

    @classmethod
    def get_default_config(cls) -> MaddpgConfig:
        return MaddpgConfig()


class MaddpgConfig(TeamAlgorithmConfig):
    """RLlib configuration of MADDPG."""

    algorithm_class = Maddpg
    module_class = MaddpgModule
    learner_class = MaddpgLearner
    settings_class = MaddpgSettings
    settings: MaddpgSettings


CONFIG = MaddpgConfig
