"""CS-UCB: a bandit for every agent over the choices that satisfy the constraints (Yang et al. 2024; UCB-COMA, Sec. 5.2).

Each agent holds the mean of its own rewards and the number of times for every choice, and takes the legal choice with the
largest upper confidence bound. It has no network and no state: it learns which subtask and location pay on average.

What is legal comes from the action mask; where a scenario leaves the mask open (`dag` with `mask_invalid` off), from the
observation, as the constraint filter of the paper does.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from envs.team import random_actions
from models.team_module import ACTIONS, AGENT_REWARD, ALIVE, FILLED, REWARD, TeamModule
from trainers.algorithms.policy_gradient import join_rows
from trainers.algorithms.team_algorithm import Settings, TeamAlgorithm, TeamAlgorithmConfig
from trainers.algorithms.team_learner import TeamLearner
from trainers.rollout import JointEpisodes


class CsUcbSettings(Settings):
    """Settings of CS-UCB."""

    bonus: float = Field(1.0, ge=0, description="weight of the confidence term, in units of the rewards' deviation")


class CsUcbModule(TeamModule):
    """Counts, mean rewards and mean squared rewards of every choice, `[N, H, C]` each."""

    scores_are = "q_values"
    settings: CsUcbSettings
    counts: Tensor
    means: Tensor
    squares: Tensor

    def setup(self) -> None:
        super().setup()
        del self.network  # a bandit has none
        shape = (self.spec.num_agents, self.spec.num_branches, self.spec.max_choices)
        for name in ("counts", "means", "squares"):
            self.register_buffer(name, torch.zeros(shape))

    def setup_learning(self) -> None:
        """Nothing: what is learnt is what acts."""

    def get_non_inference_attributes(self) -> list[str]:
        return []

    def trained_parameters(self) -> dict[str, list[Tensor]]:
        return {}

    def fit_inputs(self, rows: JointEpisodes) -> None:
        """Nothing: it has no inputs."""

    @property
    def device(self) -> torch.device:
        return self.counts.device

    @property
    def message_bytes(self) -> int:
        return 0

    def initial_state(self, num_envs: int) -> dict[str, Tensor]:
        return {}

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
        legal = action_mask & self._constraints(packed, action_mask)
        scores = self.scores(explore).masked_fill(~legal, -torch.inf)
        if not explore:
            return scores.argmax(-1), {}, {}
        best = scores == scores.amax(-1, keepdim=True)  # among equals, as all are at the start, any
        return random_actions(best, generator), {}, {}

    def weigh(self, packed: Tensor, action_mask: Tensor, state: dict[str, Tensor]) -> Tensor:
        return self.means.expand(action_mask.shape)

    def scores(self, explore: bool) -> Tensor:
        """`[N, H, C]`: mean reward plus, when it explores, `bonus * deviation * sqrt(2 ln N_i / n_i(a))`.

        A choice that was never made comes first when it explores, and last when it does not.
        """
        if not explore:
            return torch.where(self.counts > 0, self.means, -1e9)
        total = self.counts.sum(-1, keepdim=True).clamp(min=1.0)
        square = (self.squares * self.counts).sum() / self.counts.sum().clamp(min=1.0)
        mean = (self.means * self.counts).sum() / self.counts.sum().clamp(min=1.0)
        deviation = (square - mean.square()).clamp(min=0.0).sqrt()
        bound = self.settings.bonus * deviation * (2.0 * total.log() / self.counts.clamp(min=1.0)).sqrt()
        return torch.where(self.counts > 0, self.means + bound, 1e9)

    def _constraints(self, packed: Tensor, action_mask: Tensor) -> Tensor:
        """The pairs that are legal by what the agents see, `[E, N, H, C]`; all where the observation does not tell."""
        slices = self.packer.slices
        if not {"subtask_ready", "subtask_service_s", "server_up"} <= slices.keys():
            return torch.ones_like(action_mask)
        ready, hosted, up = (
            packed[..., slices[name].start : slices[name].stop] > 0
            for name in ("subtask_ready", "subtask_service_s", "server_up")
        )
        pairs = ready.unsqueeze(-1) & hosted.unflatten(-1, (ready.shape[-1], -1)) & up.unsqueeze(-2)
        pairs = pairs.flatten(-2).unsqueeze(-2)
        return pairs | ~pairs.any(-1, keepdim=True)  # an agent that has left has no pair: its mask decides

    @torch.no_grad()
    def learn_rows(self, rows: JointEpisodes) -> None:
        """Takes the rewards of joint rows into the means; the team's reward where single agents' are not known."""
        acted = (rows[ALIVE][:, :-1] & rows[FILLED].unsqueeze(-1)).to(torch.float32)
        reward = rows[AGENT_REWARD] if AGENT_REWARD in rows else rows[REWARD].unsqueeze(-1).expand_as(acted)
        n, h, c = self.counts.shape
        place = torch.arange(n * h).view(n, h) * c + rows[ACTIONS].to(torch.int64)

        def total(value: Tensor) -> Tensor:
            value = (value * acted).unsqueeze(-1).expand(*acted.shape, h)
            return torch.zeros(n * h * c).index_add_(0, place.flatten(), value.flatten()).view(n, h, c).to(self.device)

        added = total(torch.ones_like(reward))
        counts = (self.counts + added).clamp(min=1.0)
        self.means.copy_((self.means * self.counts + total(reward)) / counts)
        self.squares.copy_((self.squares * self.counts + total(reward.square())) / counts)
        self.counts.add_(added)


class CsUcbLearner(TeamLearner):
    """Holds the module; there is nothing to differentiate."""

    def compute_loss_for_module(self, **kwargs: Any) -> Tensor:
        raise NotImplementedError("CS-UCB learns by counting (CsUcbModule.learn_rows)")


class CsUcb(TeamAlgorithm):
    """Sample a round of episodes, take its rewards into the means, send them out."""

    config: CsUcbConfig

    @classmethod
    def get_default_config(cls) -> CsUcbConfig:
        return CsUcbConfig()

    def training_step(self) -> None:
        parts = self.sample_episodes()
        if parts:
            self.on_learners("learn_rows", join_rows(parts))
            self.sync()


class CsUcbConfig(TeamAlgorithmConfig):
    """RLlib configuration of CS-UCB."""

    algorithm_class = CsUcb
    module_class = CsUcbModule
    learner_class = CsUcbLearner
    settings_class = CsUcbSettings
    settings: CsUcbSettings

    def learners(self, *, num_learners: int = 0, **kwargs: Any) -> CsUcbConfig:
        """At most one: without parameters there is nothing that several could share."""
        return super().learners(num_learners=min(num_learners, 1), **kwargs)


CONFIG = CsUcbConfig
