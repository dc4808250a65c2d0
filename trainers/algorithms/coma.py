"""COMA and UCB-COMA: actors with a counterfactual baseline from a central critic (Foerster et al. 2018; Liao et al. 2025).

In the order in which things happen: `ComaModule.act` plays, by sampling or by upper confidence bounds, `EpisodeReplay` keeps
the latest episodes, `ComaModule._forward_train` computes every agent's counterfactual advantage and the critic's targets,
`ComaLearner.compute_loss_for_module` is the loss, `ReplayAlgorithm.training_step` ties it together.

Public versions of COMA differ. This one regularises the policy by its entropy instead of mixing it with a uniform one, its
critic learns TD(lambda) targets of a slowly moving copy, and it learns from the latest `replay_capacity` episodes, as
UCB-COMA's Algorithm 1 does. Choices that the policy would no longer make count less, by importance weights cut at 1 (Espeholt
et al. 2018): without them, what old episodes say of them throws the policy about.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.critics import CounterfactualCritic
from models.distributions import BranchCategorical
from models.team_module import (
    ACTION_MASK,
    ACTIONS,
    ALIVE,
    FILLED,
    LOG_PROB,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
)
from trainers.algorithms.policy_gradient import PolicyModule
from trainers.algorithms.replay_algorithm import ReplayAlgorithm, ReplaySettings
from trainers.algorithms.returns import td_lambda_targets
from trainers.algorithms.team_algorithm import FIGURES, TeamAlgorithmConfig
from trainers.algorithms.team_learner import TeamLearner
from trainers.rollout import JointEpisodes


class ComaSettings(ReplaySettings):
    """Settings of COMA; `exploration: ucb` makes it UCB-COMA."""

    critic_lr: float | None = Field(None, gt=0, description="Adam's learning rate for the critic; null: lr")
    td_lambda: float = Field(0.8, ge=0, le=1, description="mix of n-step targets of the critic (0: one step)")
    entropy_weight: float = Field(0.01, ge=0)
    target_tau: float = Field(0.05, gt=0, le=1, description="share of the critic that enters its slow copy per update")
    replay_capacity: int = Field(64, ge=1, description="latest episodes that are learnt from")
    batch_episodes: int = Field(16, ge=1, description="episodes in an update")
    learning_starts: int = Field(1, ge=1, description="episodes in replay before the first update")
    rewards: Literal["standardise", "scale", "raw"] = "scale"
    exploration: Literal["sample", "ucb"] = Field("sample", description="how experience is gathered")
    ucb_start: float = Field(1.0, ge=0, description="exploration factor of eqs. 2 and 3 at the start")
    ucb_end: float = Field(0.0, ge=0, description="and after ucb_steps")
    ucb_steps: int = Field(10_000, ge=1, description="environment steps over which the factor falls linearly")

    def exploration_factor(self, env_steps: int) -> float:
        """The factor of eqs. 2 and 3 after `env_steps` steps of training."""
        share = min(1.0, env_steps / self.ucb_steps)
        return self.ucb_start + share * (self.ucb_end - self.ucb_start)


class ComaModule(PolicyModule):
    """Policies, the counterfactual critic, and how often each agent has made each choice."""

    settings: ComaSettings
    counts: Tensor  # [N, H, C]

    def setup(self) -> None:
        super().setup()
        spec = self.spec
        self.register_buffer("counts", torch.zeros(spec.num_agents, spec.num_branches, spec.max_choices))
        # A choice of a (member, option) pair is two decisions, each of which has its score.
        parts = [2.0 if head.members else 1.0 for head in spec.heads for _ in range(head.count)]
        self.register_buffer("parts", torch.tensor(parts), persistent=False)

    def setup_learning(self) -> None:
        self.critic = CounterfactualCritic(self.spec, self.network_config)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def get_non_inference_attributes(self) -> list[str]:
        return ["critic", "target_critic"]

    def slow_copies(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.target_critic, self.critic)]

    def trained_parameters(self) -> dict[str, list[Tensor]]:
        return {"actor": list(self.network.parameters()), "critic": list(self.critic.parameters())}

    def fit_inputs(self, rows: JointEpisodes) -> None:
        super().fit_inputs(rows)
        alive = rows[ALIVE]
        self.critic.fit(rows[OBSERVATION][alive].to(self.device), rows[STATE][alive.any(-1)].to(self.device))
        self.target_critic.load_state_dict(self.critic.state_dict())

    # -- upper confidence bounds --

    def _explore(self, policy: BranchCategorical, env_steps: int, generator: torch.Generator | None) -> Tensor:
        if self.settings.exploration == "sample":
            return policy.sample(generator)
        scores = ucb_scores(policy.log_p, self.counts, self.parts, self.settings.exploration_factor(env_steps))
        actions = scores.argmax(-1)
        self.count(actions, torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device))
        return actions

    @torch.no_grad()
    def count(self, actions: Tensor, acted: Tensor) -> None:
        """Adds choices `[..., N, H]` of agents that `acted` `[..., N]` to the counts."""
        n, h, c = self.counts.shape
        place = torch.arange(n * h, device=actions.device).view(n, h) * c + actions.to(torch.int64)
        weight = acted.unsqueeze(-1).expand_as(actions).to(torch.float32)
        self.counts.view(-1).index_add_(0, place.flatten().to(self.device), weight.flatten().to(self.device))

    def count_rows(self, rows: JointEpisodes) -> None:
        """Adds the choices of joint rows, which several runners may have played."""
        self.count(rows[ACTIONS], rows[ALIVE][:, :-1] & rows[FILLED].unsqueeze(-1))

    # -- learning --

    def _forward_train(self, batch: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        actions = batch[ACTIONS].to(torch.int64)
        everywhere, _ = self.unroll(batch, after=True)
        policy = BranchCategorical(everywhere.log_p[:, :-1])
        scores, value = self.critic(batch[OBSERVATION][:, :-1], batch[STATE][:, :-1], actions)
        decides = batch[ACTION_MASK][:, :-1].sum(-1) > 1  # [B, T, N, H]; a forced choice is neither good nor bad
        chosen = scores.gather(-1, actions.unsqueeze(-1)).squeeze(-1) * decides
        with torch.no_grad():
            advantage = counterfactual_advantage(policy, scores, actions) * decides
            targets = self._targets(batch, actions, everywhere)
        return {
            "q": chosen.sum(-1) + value,
            "targets": targets,
            "advantage": advantage,
            "log_p": policy.of_branches(actions),
            "entropy": policy.entropy(),
        }

    def _targets(self, batch: dict[str, Tensor], actions: Tensor, policy: BranchCategorical) -> Tensor:
        """TD(lambda) targets from the slow critic, `[B, T]`; an episode that was cut off goes on as the policy would.

        Args:
            policy: `[B, T + 1, N, H]`.
        """
        settings, alive = self.settings, batch[ALIVE]
        filled = batch[FILLED].unsqueeze(-1).unsqueeze(-1)
        ends = F.pad(filled, (0, 0, 0, 0, 1, 0), value=True) & ~F.pad(filled, (0, 0, 0, 0, 0, 1))
        actions = torch.where(ends, policy.sample(), F.pad(actions, (0, 0, 0, 0, 0, 1)))
        scores, value = self.target_critic(batch[OBSERVATION], batch[STATE], actions)
        decides = batch[ACTION_MASK].sum(-1) > 1
        chosen = scores.gather(-1, actions.unsqueeze(-1)).squeeze(-1) * decides
        # All agents estimate the same quantity, the value of the joint action: the mean over those that are there.
        joint = ((chosen.sum(-1) + value) * alive).sum(-1) / alive.sum(-1).clamp(min=1)
        return td_lambda_targets(
            batch[REWARD], batch[TERMINATED], batch[FILLED], joint[:, 1:], settings.gamma, settings.td_lambda
        )


def counterfactual_advantage(policy: BranchCategorical, scores: Tensor, actions: Tensor) -> Tensor:
    """`A_i = Q(s, a) - sum over a'_i of pi(a'_i) Q(s, (a'_i, a_-i))` for each branch, `[..., H]` (UCB-COMA, Sec. 4.2).

    Args:
        policy: `[..., H, C]`.
        scores: `[..., H, C]`, Q of every choice up to what the choices share.
        actions: `[..., H]`.
    """
    baseline = (policy.log_p.exp() * scores).sum(-1)
    return scores.gather(-1, actions.unsqueeze(-1)).squeeze(-1) - baseline


def ucb_scores(log_p: Tensor, counts: Tensor, parts: Tensor, factor: float) -> Tensor:
    """Scores `[..., N, H, C]` by which UCB-COMA explores (eqs. 2 and 3).

    `g = ln omega(a | s) + factor * sqrt(2 ln N_i / (n_i(a) + 1))`, with N_i all choices of agent i so far, n_i(a) those of a.
    Where a choice names a subtask and a location it is the sum of both equations: their policy terms add up to the logarithm of
    the pair's probability, and both have the pair's count, so the second term counts twice.

    Args:
        log_p: `[..., N, H, C]`.
        counts: `[N, H, C]`.
        parts: `[H]`, how many of the equations a branch's choice sums up.
    """
    total = counts.sum(-1, keepdim=True).clamp(min=1.0)
    bonus = (2.0 * total.log() / (counts + 1.0)).sqrt()
    return log_p + factor * parts.unsqueeze(-1) * bonus


class ComaLearner(TeamLearner):
    """The critic's squared TD error, and the policy gradient of the counterfactual advantages."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        settings: ComaSettings = config.settings
        filled = batch[FILLED].unsqueeze(-1)
        acts = (batch[ALIVE][:, :-1] & filled).to(torch.float32)
        acts = acts / acts.sum()
        error = (fwd_out["q"] - fwd_out["targets"].unsqueeze(-1)) * (acts > 0)
        critic_loss = (error.square() * acts).sum()
        weight = (fwd_out["log_p"].detach() - batch[LOG_PROB]).exp().clamp(max=1.0)
        policy_loss = -((weight * fwd_out["log_p"] * fwd_out["advantage"]).sum(-1) * acts).sum()
        entropy = (fwd_out["entropy"] * acts).sum()
        figures = {
            "critic_loss": critic_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "entropy": entropy.detach(),
            "q": (fwd_out["q"].detach() * acts).sum(),
        }
        self.metrics.log_dict(figures, key=(module_id, FIGURES), window=1)
        return critic_loss + policy_loss - settings.entropy_weight * entropy


class Coma(ReplayAlgorithm):
    """Learning from the latest episodes, whose choices are counted."""

    config: ComaConfig

    @classmethod
    def get_default_config(cls) -> ComaConfig:
        return ComaConfig()

    def sampled(self, rows: JointEpisodes) -> None:
        if self.config.settings.exploration == "ucb":
            self.on_learners("count_rows", rows)


class ComaConfig(TeamAlgorithmConfig):
    """RLlib configuration of the family."""

    algorithm_class = Coma
    module_class = ComaModule
    learner_class = ComaLearner
    settings_class = ComaSettings
    settings: ComaSettings


CONFIG = ComaConfig
