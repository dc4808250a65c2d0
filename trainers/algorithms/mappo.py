"""MAPPO: proximal policy optimisation of all agents with a critic that sees the global state (Yu et al. 2022).

In the order in which things happen: `PolicyModule.act` samples whole episodes, `MappoModule.advantages` values their states and
estimates advantages (GAE), `Mappo.training_step` goes over them in epochs and minibatches of episodes,
`MappoModule._forward_train` computes the new probabilities and values, `MappoLearner.compute_loss_for_module` is the loss.

The team's advantage is every agent's advantage, unless `credit` is `agent`: then each learns from its own part of the reward,
and the critic has a value for each (Yao et al. 2025, eqs. 12 and 22). Each agent's probability ratio is clipped by itself.

G-MAPPO, T-MAPPO, LRS and DLRS (Yao et al. 2025) are this algorithm with expert episodes (`trainers.demonstrations`), with a
request encoder, with both, and with a diffusion actor besides. Demonstrations count as if the present policy had played them:
their ratios start at 1, and their advantages decide whether they are imitated.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from envs.errors import InputError
from envs.team import TeamSimulator, episode_seeds
from models.critics import StateCritic
from models.team_module import ACTIONS, AGENT_REWARD, ALIVE, DENOISING, FILLED, LOG_PROB, OBSERVATION, REWARD, STATE, TERMINATED
from trainers.algorithms.policy_gradient import PolicyModule, join_rows
from trainers.algorithms.returns import generalised_advantages
from trainers.algorithms.team_algorithm import FIGURES, Settings, TeamAlgorithm, TeamAlgorithmConfig
from trainers.algorithms.team_learner import TeamLearner
from trainers.demonstrations import demonstrations_in_round, draw, play_demonstrations, steps_in
from trainers.rollout import JointEpisodes

ADVANTAGE, TARGET, OLD_VALUE = "advantage", "target", "old_value"  # [B, T] float32 each; [B, T, N] with credit = agent


class MappoSettings(Settings):
    """Settings of MAPPO."""

    critic_lr: float | None = Field(None, gt=0, description="Adam's learning rate for the critic; null: lr")
    gae_lambda: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0, description="largest change of an agent's probability ratio, and of the normalised value")
    entropy_weight: float = Field(0.01, ge=0)
    epochs: int = Field(10, ge=1, description="passes over each round of episodes")
    minibatches: int = Field(1, ge=1, description="parts of a round, each one update")
    huber: float = Field(10.0, gt=0, description="deviations beyond which the value loss grows linearly")
    critic_hidden: int = Field(64, ge=4, description="width of the critic")
    credit: Literal["team", "agent"] = Field(
        "team",
        description="agent: every agent learns from its own part of the team's reward, where the problem knows the parts",
    )
    demonstrations: int = Field(
        0, ge=0, description="episodes of the problem's expert that the first round also learns from; round u from this / u"
    )
    demonstrations_min: int = Field(1, ge=1, description="fewest demonstrations of a round; of fewer it takes none")

    def check(self, simulator: TeamSimulator) -> None:
        if self.demonstrations and not simulator.has_expert():
            problem = simulator.spec.problem
            raise InputError(f"algorithm.demonstrations = {self.demonstrations}: expected 0, as {problem} has no expert")
        if self.credit == "agent" and simulator.reset(episode_seeds(0, 0, simulator.num_envs)).agent_reward is None:
            raise InputError(
                f"algorithm.credit = agent: expected team, as {simulator.spec.problem} has one reward for all agents"
            )


class ValueNormaliser(torch.nn.Module):
    """Running mean and deviation of value targets (Yu et al. 2022, Sec. 5.1), corrected for its start at 0."""

    moments: Tensor  # [3]: mean, mean square and total weight so far
    DECAY = 0.99

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moments", torch.zeros(3))

    @torch.no_grad()
    def update(self, targets: Tensor) -> None:
        """One step of the moving average, with all of a round's targets."""
        now = torch.stack([targets.mean(), targets.square().mean(), torch.ones_like(targets.mean())])
        self.moments.lerp_(now.to(self.moments), 1.0 - self.DECAY)

    def _mean_deviation(self) -> tuple[Tensor, Tensor]:
        mean, square, weight = self.moments
        if weight == 0:
            return torch.zeros_like(mean), torch.ones_like(mean)
        mean, square = mean / weight, square / weight
        return mean, (square - mean.square()).clamp(min=1e-2).sqrt()

    def normalise(self, values: Tensor) -> Tensor:
        """Values in units of the reward to about N(0, 1)."""
        mean, deviation = self._mean_deviation()
        return (values - mean) / deviation

    def restore(self, values: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        mean, deviation = self._mean_deviation()
        return values * deviation + mean


class MappoModule(PolicyModule):
    """Policies and the critic of their state."""

    settings: MappoSettings

    def setup_learning(self) -> None:
        self.critic = StateCritic(self.spec, self.settings.critic_hidden, per_agent=self.settings.credit == "agent")
        self.normaliser = ValueNormaliser()

    def get_non_inference_attributes(self) -> list[str]:
        return ["critic", "normaliser"]

    def trained_parameters(self) -> dict[str, list[Tensor]]:
        return {"actor": list(self.network.parameters()), "critic": list(self.critic.parameters())}

    def fit_inputs(self, rows: JointEpisodes) -> None:
        super().fit_inputs(rows)
        self.critic.standard.fit(rows[STATE][rows[ALIVE].any(-1)].to(self.device))

    @torch.no_grad()
    def advantages(self, rows: JointEpisodes) -> JointEpisodes:
        """Normalised advantages, value targets and the critic's old outputs; takes the targets into the normalisation."""
        settings = self.settings
        reward = AGENT_REWARD if settings.credit == "agent" else REWARD
        rows = {name: rows[name].to(self.device) for name in (STATE, reward, TERMINATED, FILLED)}
        old = self.critic(rows[STATE])
        value = self.normaliser.restore(old)
        advantage = generalised_advantages(
            rows[reward], rows[TERMINATED], rows[FILLED], value, settings.gamma, settings.gae_lambda
        )
        target = advantage + value[:, :-1]
        self.normaliser.update(target[rows[FILLED]])
        sampled = advantage[rows[FILLED]]
        advantage = (advantage - sampled.mean()) / (sampled.std(unbiased=False) + 1e-5)
        return {ADVANTAGE: advantage.cpu(), TARGET: target.cpu(), OLD_VALUE: old[:, :-1].cpu()}

    @torch.no_grad()
    def as_if_played(self, rows: JointEpisodes, seed: int) -> JointEpisodes:
        """What this policy would have recorded had it made the choices in `rows`: log-probabilities, and the noise if any."""
        rows = {name: column.to(self.device) for name, column in rows.items()}
        noise = self.draw_noise(rows[OBSERVATION][:, :-1], torch.Generator(self.device).manual_seed(seed))
        recorded = {} if noise is None else {DENOISING: noise}
        policy, _ = self.unroll({**rows, **recorded})
        recorded[LOG_PROB] = policy.of_branches(rows[ACTIONS].to(torch.int64))
        return {name: value.cpu() for name, value in recorded.items()}

    def _forward_train(self, batch: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        policy, _ = self.unroll(batch)
        return {
            LOG_PROB: policy.log_prob(batch[ACTIONS].to(torch.int64)),
            "entropy": policy.entropy(),
            "value": self.critic(batch[STATE][:, :-1]),
            "target": self.normaliser.normalise(batch[TARGET]),
        }


class MappoLearner(TeamLearner):
    """Clipped policy loss, clipped value loss, entropy bonus."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        settings: MappoSettings = config.settings
        filled = batch[FILLED].to(torch.float32)
        acts = batch[ALIVE][:, :-1] * filled.unsqueeze(-1)  # agents that decided, [B, T, N]
        acts = acts / acts.sum()
        ratio = (fwd_out[LOG_PROB] - batch[LOG_PROB].sum(-1)).exp()
        advantage = batch[ADVANTAGE]
        if settings.credit == "team":
            advantage = advantage.unsqueeze(-1)
        clipped = ratio.clamp(1.0 - settings.clip, 1.0 + settings.clip)
        policy_loss = -(torch.minimum(ratio * advantage, clipped * advantage) * acts).sum()
        entropy = (fwd_out["entropy"] * acts).sum()

        value, target, old = fwd_out["value"], fwd_out["target"], batch[OLD_VALUE]
        near = old + (value - old).clamp(-settings.clip, settings.clip)
        errors = torch.maximum(
            F.huber_loss(value, target, reduction="none", delta=settings.huber),
            F.huber_loss(near, target, reduction="none", delta=settings.huber),
        )
        if settings.credit == "agent":
            errors = errors.mean(-1)
        value_loss = (errors * filled).sum() / filled.sum()
        moved = ((ratio - 1.0).abs() > settings.clip).to(torch.float32)
        figures = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "clipped_share": (moved * acts).sum().detach(),
        }
        self.metrics.log_dict(figures, key=(module_id, FIGURES), window=1)
        return policy_loss + value_loss - settings.entropy_weight * entropy


class Mappo(TeamAlgorithm):
    """Sample a round of episodes, estimate advantages, learn from it in epochs, send the weights out."""

    config: MappoConfig

    rounds: int
    """Rounds of learning that have begun."""

    def setup(self, config: MappoConfig) -> None:
        self.rounds = 0
        self._demonstrations: JointEpisodes = {}
        super().setup(config)

    @classmethod
    def get_default_config(cls) -> MappoConfig:
        return MappoConfig()

    def training_step(self) -> None:
        settings = self.config.settings
        parts = self.sample_episodes()
        if not parts:
            return
        rows = join_rows(parts)
        if not self.inputs_fitted:  # these episodes were played before the inputs were standardised: by another policy
            self.fit_inputs(rows)
            self.sync()
            return
        self.rounds += 1
        rows = self._with_demonstrations(rows)
        rows = {**rows, **self.on_learners("advantages", rows)}
        rng = np.random.default_rng([self.config.seed or 0, self.env_steps])
        for _ in range(settings.epochs):
            for picked in np.array_split(rng.permutation(len(rows[REWARD])), settings.minibatches):
                if len(picked):
                    self.learn({name: column[torch.from_numpy(picked)] for name, column in rows.items()})
        self.sync()

    def _with_demonstrations(self, rows: JointEpisodes) -> JointEpisodes:
        """A round's rows and the demonstrations that belong to it."""
        settings = self.config.settings
        count = demonstrations_in_round(settings.demonstrations, settings.demonstrations_min, self.rounds)
        if not count:
            self._demonstrations = {}
            return rows
        if not self._demonstrations:
            self._demonstrations = self._play_demonstrations()
        rng = np.random.default_rng([self.config.seed or 0, self.rounds])
        drawn = draw(self._demonstrations, count, rng)
        return join_rows([rows, {**drawn, **self.on_learners("as_if_played", drawn, int(rng.integers(2**63)))}])

    def _play_demonstrations(self) -> JointEpisodes:
        """All of them; they count as experience when they are played first, and not again after a resumption."""
        config, environment = self.config, self.config.env_config
        rows = play_demonstrations(
            environment["scenario"],
            config.settings.demonstrations,
            config.num_envs_per_env_runner,
            config.seed or 0,
            environment.get("device", "cpu"),
        )
        if self.rounds == 1:
            self.env_steps += steps_in(rows)
            self.episodes += len(rows[FILLED])
        return rows

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_state(*args, **kwargs), "rounds": self.rounds}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.rounds = state.get("rounds", self.rounds)


class MappoConfig(TeamAlgorithmConfig):
    """RLlib configuration of MAPPO."""

    algorithm_class = Mappo
    module_class = MappoModule
    learner_class = MappoLearner
    settings_class = MappoSettings
    settings: MappoSettings


CONFIG = MappoConfig
