"""Heuristics for the velo problem.

`greedy-*` are the paper's; `best-threshold` is the best of their kind, `vcache` learns a threshold for each entry. All see what
the servers observe and nothing else, but for `expert`.

    N  servers      P  results of a query      J  exchanges of a store
"""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache

import torch
from torch import Tensor

from envs.errors import InputError
from envs.registry import make_simulator
from envs.team import TeamSpec, episode_seeds
from envs.velo.scenario import VeloScenario
from envs.velo.spec import VeloSpec
from trainers.policy import Policy, RandomPolicy, SimulatorPolicy

CLOUD = 1
"""The choice of asking the LLM directly, in both action spaces."""
SEARCH_SEED = 20_260_101
"""Run seed of the episodes in which thresholds are tried; comparisons and trainings use others."""


class VeloPolicy(Policy):
    """Base of the heuristics that decide between the store and the cloud; the cloud where the store is illegal.

    With ternary actions, the store's side follows the binary rule: the nearest entry's answer where that is a question within
    `reuse_distance`, else augmentation.

    Raises:
        InputError: The spec is not one of the velo problem.
    """

    def __init__(self, spec: TeamSpec, seed: int = 0) -> None:
        super().__init__(spec)
        if not isinstance(spec, VeloSpec):
            raise InputError(f"policy {self.name!r} is for the velo problem, not for {spec.problem}/{spec.scenario}")
        self.scenario: VeloScenario = spec.physics

    def act(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        stays, state = self.stay(observation, state)
        choice = torch.where(stays, self._store_choice(observation), CLOUD)
        legal = mask[:, :, 0].gather(2, choice[..., None])
        return torch.where(legal, choice[..., None], CLOUD), state

    @abstractmethod
    def stay(self, observation: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """`[E, N]` bool, whether each request goes to the store, and the next state."""

    def _store_choice(self, observation: dict[str, Tensor]) -> Tensor:
        nearest_is_question = observation["kind"][..., 0] == 0
        reusable = nearest_is_question & (observation["distance"][..., 0] <= self.scenario.reuse_distance)
        return torch.where(reusable | (self.scenario.action_space == "binary"), 0, 2)


def nearest(observation: dict[str, Tensor]) -> Tensor:
    """`[E, N]`: distance of the nearest entry, inf where there is none."""
    return observation["distance"][..., 0].masked_fill(observation["kind"][..., 0] < 0, torch.inf)


class ThresholdPolicy(VeloPolicy):
    """The store for what is at most `threshold` away from an entry."""

    threshold: float | Tensor

    def stay(self, observation: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return nearest(observation) <= self.threshold, state


class StorePolicy(ThresholdPolicy):
    """Everything to the store: nothing is ever added to it."""

    name, threshold = "store", 2.0


class CloudPolicy(ThresholdPolicy):
    """Everything to the LLM."""

    name, threshold = "cloud", -1.0


class Greedy01(ThresholdPolicy):
    """The paper's Greedy-0.1."""

    name, threshold = "greedy-0.1", 0.1


class Greedy03(ThresholdPolicy):
    """The paper's Greedy-0.3."""

    name, threshold = "greedy-0.3", 0.3


class Greedy05(ThresholdPolicy):
    """The paper's Greedy-0.5."""

    name, threshold = "greedy-0.5", 0.5


class GreedyLlmPolicy(VeloPolicy):
    """The paper's Greedy-LLM: the store for what is nearer to an entry than the LLM's answers are to their references.

    That mean is each server's own, of its direct requests so far; `first_estimate` until there is one.
    """

    name, first_estimate = "greedy-llm", -0.5

    def stay(self, observation: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        measured = observation["direct_satisfaction"][..., 0]
        return -nearest(observation) > torch.where(measured < 0, measured, self.first_estimate), state


class BestThresholdPolicy(ThresholdPolicy):
    """The fixed threshold with the highest return in other episodes of the scenario, without its test."""

    name = "best-threshold"

    def __init__(self, spec: TeamSpec, seed: int = 0) -> None:
        super().__init__(spec, seed)
        self.threshold = best_threshold(self.scenario)


class VCachePolicy(VeloPolicy):
    """A learned threshold for each cached exchange, with a bound on the share of wrong answers (after vCache; see README.md).

    The answer of an exchange is right for a request at distance `d` with probability `sigmoid((t - d) / width)`. What is known
    of its `t` is a posterior over a grid. Each direct request shows whether the nearest cached answer would have been right,
    which updates that exchange's posterior, and with weight `pooling` that of all exchanges of the server. The store is used
    where the probability of a right answer is at least `1 - error`; elsewhere the LLM is asked, and the cache learns.
    """

    name, error, pooling, width, right = "vcache", 0.2, 0.3, 0.05, -0.95
    grid = (0.0, 1.2, 25)

    def initial_state(self, num_envs: int) -> dict[str, Tensor]:
        exchanges = self.scenario.initial_exchanges + self.scenario.steps
        servers = (num_envs, self.scenario.num_servers)
        return {
            "step": torch.zeros(num_envs, dtype=torch.int64),
            "exchange": torch.zeros(servers, dtype=torch.int64),
            "distance": torch.zeros(servers),
            "own": torch.zeros(*servers, exchanges, self.grid[2]),
            "all": torch.zeros(*servers, self.grid[2]),
        }

    def stay(self, observation: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        thresholds = torch.linspace(*self.grid, device=observation["distance"].device)
        state = self._learn(observation["reuse_satisfaction"][..., 0], thresholds, state)
        distance = nearest(observation)
        exchange = (self.scenario.initial_exchanges + state["step"][:, None] - observation["age"][..., 0].long()).clamp(min=0)
        own = state["own"].gather(2, exchange[..., None, None].expand(-1, -1, 1, self.grid[2])).squeeze(2)
        known = (own + self.pooling * state["all"]).softmax(-1)
        chance = (known * torch.sigmoid((thresholds - distance[..., None]) / self.width)).sum(-1)
        state = {**state, "step": state["step"] + 1, "exchange": exchange, "distance": distance}
        return chance >= 1.0 - self.error, state

    def _learn(self, satisfaction: Tensor, thresholds: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """`satisfaction [E, N]` that the nearest cached answer would have brought the last request; 0 where not known."""
        side = torch.where(satisfaction > self.right, 1.0, -1.0)
        state = {name: value.to(satisfaction.device) for name, value in state.items()}
        farther = (thresholds - state["distance"][..., None]).nan_to_num(neginf=-2.0) / self.width
        evidence = torch.nn.functional.logsigmoid(side[..., None] * farther) * (satisfaction < 0)[..., None]
        at = state["exchange"][..., None, None].expand(-1, -1, 1, self.grid[2])
        return {**state, "own": state["own"].scatter_add(2, at, evidence[:, :, None]), "all": state["all"] + evidence}


def thresholds_tried() -> Tensor:
    """0.05, 0.1, … 1.2."""
    return torch.arange(1, 25) * 0.05


@lru_cache(maxsize=32)
def best_threshold(scenario: VeloScenario, episodes: int = 16) -> float:
    """By trying all of `thresholds_tried` on the same episodes of the scenario, without its test."""
    trial = scenario.model_copy(update={"test": "none"})
    tried = thresholds_tried()
    simulator = make_simulator(trial, len(tried) * episodes)
    policy = ThresholdPolicy(simulator.spec)
    policy.threshold = tried.repeat_interleave(episodes)[:, None]
    result = simulator.reset(episode_seeds(SEARCH_SEED, 0, episodes).repeat(len(tried)))
    total = torch.zeros(simulator.num_envs, dtype=torch.float64)
    for _ in range(simulator.spec.max_steps):
        actions, _ = policy.act(result.observation, {}, result.action_mask)
        result = simulator.step(actions)
        total += result.reward
    return float(tried[total.view(len(tried), episodes).sum(1).argmax()])


HEURISTICS: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        *(RandomPolicy, StorePolicy, CloudPolicy, Greedy01, Greedy03, Greedy05, GreedyLlmPolicy, BestThresholdPolicy),
        *(VCachePolicy, SimulatorPolicy),
    )
}
"""Name to class; called with (spec, seed)."""
