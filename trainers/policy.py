"""The one interface of learned policies and heuristics: the evaluator, the reports and the server see nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from envs.errors import InputError
from envs.team import TeamSimulator, TeamSpec, random_actions


class Policy(ABC):
    """Decides for a whole team from the agents' observations.

    A policy holds no episode: whatever it remembers between steps is in the `state` that it returns (a dict of tensors with
    leading dimension E, empty for policies without memory), so that a server can keep it anywhere.

    Attributes:
        scores_are: What `weigh` returns; None for a policy that cannot tell. One with probabilities can also `sample`.
    """

    name: str = ""
    scores_are: Literal["probabilities", "q_values"] | None = None

    def __init__(self, spec: TeamSpec) -> None:
        self.spec = spec

    def initial_state(self, num_envs: int) -> dict[str, Tensor]:
        """The memory at the start of an episode."""
        return {}

    @abstractmethod
    def act(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One decision.

        Args:
            observation: Field name to `[E, N, *shape]`, see `TeamSpec.observation`.
            state: What `initial_state` or the last `act` returned.
            mask: `[E, N, H, C]` bool, the legal choices.

        Returns:
            Actions `[E, N, H]` int64, and the next state.
        """

    def weigh(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> Tensor:
        """What the policy thinks of each choice in the decision that `act` makes (arguments: there).

        Returns:
            `[E, N, H, C]`: probabilities, or values whose differences between the choices of a branch count (`scores_are`).
        """
        raise NotImplementedError(f"policy {self.name!r} does not tell what it thinks of its choices")

    def sample(
        self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `act`, with choices drawn from the probabilities of `weigh`."""
        raise NotImplementedError(f"policy {self.name!r} has no probabilities to draw from")

    def metrics(self) -> dict[str, Any]:
        """Figures of the last `act` that only the policy knows, `[E]` each (bytes exchanged between agents, for one)."""
        return {}


class RandomPolicy(Policy):
    """A uniformly random legal choice in every branch, the same ones for the same seed."""

    name = "random"

    def __init__(self, spec: TeamSpec, seed: int = 0) -> None:
        super().__init__(spec)
        self._generator = torch.Generator().manual_seed(seed)

    def act(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return random_actions(mask.cpu(), self._generator).to(mask.device), state


class SimulatorPolicy(Policy):
    """Lets the simulator decide, which knows what no agent observes: a yardstick, not a policy that could be deployed.

    Raises:
        InputError: On `attend`: the simulator has no expert.
    """

    name = "expert"

    def __init__(self, spec: TeamSpec, seed: int = 0) -> None:
        super().__init__(spec)
        self._simulator: TeamSimulator | None = None

    def attend(self, simulator: TeamSimulator) -> None:
        """Takes the simulator whose episodes are played from now on."""
        if not simulator.has_expert():
            raise InputError(f"policy {self.name!r}: {simulator.spec.problem} has no expert")
        self._simulator = simulator

    def act(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self._simulator is None:
            raise InputError(f"policy {self.name!r} decides in simulations only: it needs to know what will happen")
        return self._simulator.expert_actions(), state
