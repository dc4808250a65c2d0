"""Value decomposition: VDN, QMIX, QPLEX, and IDMAC, which is one of them whose agents tell each other their intents.

In the order in which things happen: `ValueModule.act` plays (epsilon-greedy per branch), `EpisodeReplay` keeps whole joint
episodes, `ValueModule._forward_train` unrolls online and target networks over them and mixes the agents' values,
`ValueLearner.compute_loss_for_module` is the loss, `ValueDecomposition.training_step` ties it together.

An agent's action has H branches. Its value is `value + sum over branches of the chosen branch's score`, so the greedy joint
action is the greedy choice of every branch of every agent, and mixing over agents is untouched by how many branches there are.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
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
from trainers.algorithms.team_algorithm import FIGURES, Settings, TeamAlgorithm, TeamAlgorithmConfig
from trainers.replay import EpisodeReplay
from trainers.rollout import JointEpisodes

REPLAY_FILE = "replay.safetensors"


class ValueSettings(Settings):
    """Settings of the family. IDMAC's two regularisers act where the network has intents (`network.intent`)."""

    mixer: MixerName = Field("qmix", description="how the agents' values become the team's")
    mixer_embedding: int = Field(32, ge=1, description="QMIX: width of the mixing layer")
    mixer_hidden: int = Field(64, ge=1, description="width of the mixer's hypernetworks")
    replay_capacity: int = Field(512, ge=1, description="episodes kept")
    batch_episodes: int = Field(32, ge=1, description="episodes in an update")
    updates: int = Field(8, ge=1, description="updates after each round of sampling")
    learning_starts: int = Field(32, ge=1, validate_default=True, description="episodes in replay before the first update")
    td_lambda: float = Field(0.6, ge=0, le=1, description="mix of n-step targets (0: one step)")
    standardise_rewards: bool = Field(
        True, description="subtract mean and divide by deviation of all rewards so far (Papoudakis et al. 2021)"
    )
    double_q: bool = Field(True, description="online network chooses, target network values (van Hasselt et al. 2016)")
    target_tau: float = Field(0.01, gt=0, le=1, description="share of the online weights that enters the targets per update")
    epsilon_start: float = Field(1.0, ge=0, le=1)
    epsilon_end: float = Field(0.05, ge=0, le=1)
    epsilon_steps: int = Field(50_000, ge=1, description="environment steps over which epsilon falls linearly")
    entropy_loss: Literal["kl", "paper"] = Field("kl", description="sign of eq. 34, see models.intent.entropy_loss")
    entropy_weight: float = Field(1e-3, ge=0, description="beta_ent of eq. 38")
    continuity_weight: float = Field(1e-2, ge=0, description="beta_cont of eq. 38")
    continuity_window: int = Field(3, ge=1, description="K of eq. 35, steps")

    @field_validator("learning_starts")
    @classmethod
    def _fits_into_replay(cls, learning_starts: int, info: ValidationInfo) -> int:
        capacity = info.data.get("replay_capacity", learning_starts)
        if learning_starts > capacity:
            raise ValueError(f"expected at most replay_capacity = {capacity}, or learning never starts")
        return learning_starts

    def epsilon(self, env_steps: int) -> float:
        """Probability that a branch explores after `env_steps` steps of training."""
        share = min(1.0, env_steps / self.epsilon_steps)
        return self.epsilon_start + share * (self.epsilon_end - self.epsilon_start)


class ValueModule(TeamModule):
    """Agent network, mixer, and target copies of both."""

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


def td_lambda_targets(
    reward: Tensor, terminated: Tensor, filled: Tensor, next_value: Tensor, gamma: float, td_lambda: float
) -> Tensor:
    """Peng's Q(lambda) targets, `[B, T]` each.

    `y_t = r_t + gamma * (1 - terminated_t) * ((1 - lambda) * next_value_t + lambda * y_{t+1})`, where the last step of an
    episode (terminated, truncated or the end of the batch) takes `next_value` alone.
    """
    goes_on = F.pad(filled[:, 1:], (0, 1)).to(reward.dtype)
    discount = gamma * (1.0 - terminated.to(reward.dtype))
    trace = td_lambda * goes_on
    target = next_value[:, -1]
    steps = []
    for t in reversed(range(reward.shape[1])):
        target = reward[:, t] + discount[:, t] * ((1.0 - trace[:, t]) * next_value[:, t] + trace[:, t] * target)
        steps.append(target)
    return torch.stack(steps[::-1], dim=1)


class ValueLearner(TorchLearner):
    """Mean squared TD error (eq. 37) plus the weighted regularisers (eq. 38), then a soft target update."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        trained = [p for p in self.module[module_id].parameters() if p.requires_grad]
        self.register_optimizer(
            module_id=module_id, optimizer=torch.optim.Adam(trained), params=trained, lr_or_lr_schedule=config.lr
        )

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        # The intents' noise: a function of the seed and the number of updates, so that resuming repeats it.
        sequence = np.random.SeedSequence([self.config.seed or 0, self._weights_seq_no])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))

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

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        for module_id in self.module.keys():  # noqa: SIM118 - MultiRLModule is not iterable as a dict
            module = self.module[module_id].unwrapped()
            tau = module.settings.target_tau
            _move_towards(module.target_network, module.network, tau)
            _move_towards(module.target_mixer, module.mixer, tau)


@torch.no_grad()
def _move_towards(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Polyak averaging of all parameters (Algorithm 2, line 36)."""
    targets: list[Tensor] = list(target.parameters())
    if targets:
        torch._foreach_lerp_(targets, list(online.parameters()), tau)


@dataclass
class RewardMoments:
    """Mean and deviation of all rewards that were sampled (Chan et al.'s update, by batches).

    Team rewards of these problems are a large constant plus small differences that the decisions make; a network that has to
    output the constant, times the horizon, learns the differences late.
    """

    count: float = 0.0
    mean: float = 0.0
    square: float = 0.0

    def add(self, rows: JointEpisodes) -> None:
        rewards = rows[REWARD][rows[FILLED]].to(torch.float64)
        count, mean = len(rewards), float(rewards.mean())
        apart, total = mean - self.mean, self.count + count
        self.square += float((rewards - mean).square().sum()) + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    def standardise(self, rows: JointEpisodes) -> JointEpisodes:
        """The rows with standardised rewards."""
        deviation = math.sqrt(self.square / max(self.count, 1.0)) or 1.0
        return {**rows, REWARD: (rows[REWARD] - self.mean) / deviation}


class ValueDecomposition(TeamAlgorithm):
    """Sample a round of episodes, remember them, learn from replay, send the weights out."""

    config: ValueDecompositionConfig

    def setup(self, config: ValueDecompositionConfig) -> None:
        self.replay = EpisodeReplay(config.settings.replay_capacity, config.seed or 0)
        self.draws = 0
        self.rewards = RewardMoments()
        super().setup(config)

    @classmethod
    def get_default_config(cls) -> ValueDecompositionConfig:
        return ValueDecompositionConfig()

    def training_step(self) -> None:
        settings = self.config.settings
        for rows in self.sample_episodes():
            self.replay.add(rows, self.config.spec.max_steps)
            self.rewards.add(rows)
        if self.replay.size < settings.learning_starts:
            return
        if self.draws == 0:
            self.fit_inputs(self.replay.sample(settings.batch_episodes, draw=0))
        for _ in range(settings.updates):
            rows = self.replay.sample(settings.batch_episodes, self.draws)
            self.learn(self.rewards.standardise(rows) if settings.standardise_rewards else rows)
            self.draws += 1
        self.sync()

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_state(*args, **kwargs), "draws": self.draws, "rewards": asdict(self.rewards)}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.draws = state.get("draws", self.draws)
        self.rewards = RewardMoments(**state.get("rewards", asdict(self.rewards)))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        super().save_checkpoint(checkpoint_dir)
        self.replay.save(Path(checkpoint_dir) / REPLAY_FILE)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        super().load_checkpoint(checkpoint_dir)
        self.replay.load(Path(checkpoint_dir) / REPLAY_FILE)


class ValueDecompositionConfig(TeamAlgorithmConfig):
    """RLlib configuration of the family."""

    module_class = ValueModule
    settings_class = ValueSettings
    settings: ValueSettings

    def __init__(self, algo_class: type[ValueDecomposition] | None = None) -> None:
        super().__init__(algo_class=algo_class or ValueDecomposition)
        self.settings = ValueSettings()

    def get_default_learner_class(self) -> type[ValueLearner]:
        return ValueLearner


CONFIG = ValueDecompositionConfig
