"""The RLModule around a team's networks: what the runner, the learner and the policies of this project agree on."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from envs.team import TeamSpec
from models.encoders import ObservationPacker
from models.team_network import NetworkConfig, make_team_network

OBSERVATION = "observation"  # [B, T + 1, N, D] float16, packed
STATE = "state"  # [B, T + 1, S] float32
ACTION_MASK = "action_mask"  # [B, T + 1, N, H, C] bool
ALIVE = "alive"  # [B, T + 1, N] bool
ACTIONS = "actions"  # [B, T, N, H] int16
REWARD = "reward"  # [B, T] float32
TERMINATED = "terminated"  # [B, T] bool
FILLED = "filled"  # [B, T] bool, False after the end of the episode
AGENT_REWARD = "agent_reward"  # [B, T, N] float32, where the problem knows single agents' parts of the reward
LOG_PROB = "log_prob"  # [B, T, N, H] float32, of stochastic policies: of each branch's choice when it was made
DENOISING = "denoising"  # [B, T, N, steps, W] float32, of diffusion actors: the noise that a decision came from


class TeamModule(TorchRLModule, InferenceOnlyAPI):
    """One module for the whole team; a row of its batches is one joint episode (the constants above name its parts).

    `model_config` holds `spec` (TeamSpec), `network` (NetworkConfig) and `settings` (the algorithm's own). Subclasses add
    critics, mixers and target networks in `setup_learning`, and the algorithm's way to choose actions.

    Attributes:
        scores_are: What `weigh` returns.
    """

    scores_are: Literal["probabilities", "q_values"]

    def setup(self) -> None:
        self.spec: TeamSpec = self.model_config["spec"]
        self.settings: Any = self.model_config["settings"]
        self.packer = ObservationPacker(self.spec)
        self.network = make_team_network(self.spec, self.network_config)
        if not self.inference_only:
            self.setup_learning()

    @property
    def network_config(self) -> NetworkConfig:
        return self.model_config["network"]

    @abstractmethod
    def setup_learning(self) -> None:
        """Creates what only the learner needs. Name it all in `get_non_inference_attributes`."""

    def trained_parameters(self) -> dict[str, list[Tensor]]:
        """What is optimised, by group; the groups are clipped and stepped apart. Default: everything in one group."""
        return {"actor": [p for p in self.parameters() if p.requires_grad]}

    def slow_copies(self) -> list[tuple[nn.Module, nn.Module]]:
        """(copy, original) of what follows by `settings.target_tau` after every update. Default: none."""
        return []

    def fit_inputs(self, rows: dict[str, Tensor]) -> None:
        """Takes the statistics by which inputs are standardised from sampled rows; called once, before the first update.

        Subclasses that own copies or further inputs (target networks, the global state) extend it.
        """
        self.network.fit(rows[OBSERVATION][rows[ALIVE]].to(self.device))

    def initial_state(self, num_envs: int) -> dict[str, Tensor]:
        """What the agents remember at the start of an episode; every tensor has leading dimension E."""
        heads = self.spec.num_branches
        previous = torch.full((num_envs, self.spec.num_agents, heads), -1, device=self.device)
        return {"hidden": self.network.initial_state(num_envs), "previous_actions": previous}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def message_bytes(self) -> int:
        """Bytes that the agents send each other in a step."""
        return self.network.message_bytes

    @abstractmethod
    def act(
        self,
        packed: Tensor,
        action_mask: Tensor,
        state: dict[str, Tensor],
        explore: bool,
        env_steps: int = 0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """One decision for E teams.

        Args:
            packed: `[E, N, D]` float16.
            action_mask: `[E, N, H, C]` bool.
            state: What `initial_state` or the last `act` returned.
            explore: False chooses the best known actions, deterministically.
            env_steps: Environment steps of the training so far, for exploration schedules.
            generator: Source of all randomness of the decision.

        Returns:
            Actions `[E, N, H]` int64, the next state, and what the learner needs to know about the decision (`[E, …]` each).
        """

    @abstractmethod
    def weigh(self, packed: Tensor, action_mask: Tensor, state: dict[str, Tensor]) -> Tensor:
        """What the agents think of each choice in the decision that `act` would make without exploring (arguments: there).

        Returns:
            `[E, N, H, C]`: probabilities, or values whose differences between the choices of a branch count (`scores_are`).
        """
