"""Heuristics for the dag problem.

All of them see what agents observe and nothing else. Except for `random` they choose only legal pairs of a subtask and a
location even where the mask leaves the others open: which are legal follows from the observation.

    I  tasks, the agents      J  places for subtasks in a task      L  locations: the edges, and the cloud last
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from envs.dag.graphs import MODALITIES
from envs.dag.scenario import DagScenario
from envs.dag.spec import DagSpec
from envs.errors import InputError
from envs.team import TeamSpec
from trainers.policy import Policy, RandomPolicy


class DagPolicy(Policy):
    """Base of the heuristics that choose one (subtask, location) pair per task.

    Raises:
        InputError: The spec is not one of the dag problem.
    """

    def __init__(self, spec: TeamSpec, seed: int = 0) -> None:
        super().__init__(spec)
        if not isinstance(spec, DagSpec):
            raise InputError(f"policy {self.name!r} is for the dag problem, not for {spec.problem}/{spec.scenario}")
        self.scenario: DagScenario = spec.physics

    def act(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        legal = legal_pairs(observation)
        subtask, location = self.choose(observation, legal)
        choice = subtask * legal.shape[3] + location
        return (choice * legal.flatten(2).any(2))[..., None], state

    @abstractmethod
    def choose(self, observation: dict[str, Tensor], legal: Tensor) -> tuple[Tensor, Tensor]:
        """Subtask and location `[E, I]` int64 from the legal pairs `[E, I, J, L]`; anything where a task has none."""


def legal_pairs(observation: dict[str, Tensor]) -> Tensor:
    """`[E, I, J, L]` bool: ready subtasks and locations that are up and host their modality."""
    up = observation["server_up"] > 0
    hosts = observation["server_hosts"].unflatten(2, (-1, len(MODALITIES))) > 0  # [E, I, L, modalities]
    modality = observation["subtask_modality"].clamp(min=0)
    wanted = modality[..., None].expand(-1, -1, -1, up.shape[2])
    hosted = hosts.transpose(2, 3).gather(2, wanted)
    return hosted & up[:, :, None] & (observation["subtask_ready"] > 0)[..., None]


def most_urgent(observation: dict[str, Tensor], legal: Tensor) -> tuple[Tensor, Tensor]:
    """Of each task, the subtask with the highest upward rank of those that can be placed `[E, I]` int64, and that rank."""
    rank_s = observation["subtask_rank_s"].masked_fill(~legal.any(3), -torch.inf)
    best = rank_s.max(2)
    return best.indices, best.values


def of_subtask(table: Tensor, subtask: Tensor) -> Tensor:
    """Rows of `table [E, I, J, L]` that belong to `subtask [E, I]`: `[E, I, L]`."""
    return table.gather(2, subtask[..., None, None].expand(-1, -1, 1, table.shape[3])).squeeze(2)


def end_s(observation: dict[str, Tensor]) -> Tensor:
    """`[E, I, J, L]`: when a ready subtask would end on each location, if no other is accepted in this step."""
    free_s = observation["server_free_s"][:, :, None]
    return torch.maximum(observation["subtask_data_ready_s"], free_s) + observation["subtask_service_s"]


class CloudPolicy(DagPolicy):
    """Everything to the cloud, the most urgent subtask first; elsewhere what the cloud does not host."""

    name = "cloud"

    def choose(self, observation: dict[str, Tensor], legal: Tensor) -> tuple[Tensor, Tensor]:
        subtask, _ = most_urgent(observation, legal)
        places = torch.arange(legal.shape[3], device=legal.device)
        return subtask, places.masked_fill(~of_subtask(legal, subtask), -1).argmax(2)


class EdgePolicy(DagPolicy):
    """To the edge that hosts the most urgent subtask (the quickest if several do), to the cloud where none does."""

    name = "edge"

    def choose(self, observation: dict[str, Tensor], legal: Tensor) -> tuple[Tensor, Tensor]:
        subtask, _ = most_urgent(observation, legal)
        service_s = of_subtask(observation["subtask_service_s"], subtask).clone()
        service_s[..., -1] = torch.finfo(service_s.dtype).max
        return subtask, service_s.masked_fill(~of_subtask(legal, subtask), torch.inf).argmin(2)


class GreedyPolicy(DagPolicy):
    """The pair with the least weight * end + (1 - weight) * cost, as if no other task chose in this step."""

    name = "greedy"

    def choose(self, observation: dict[str, Tensor], legal: Tensor) -> tuple[Tensor, Tensor]:
        weight, locations = self.scenario.weight, legal.shape[3]
        price = weight * end_s(observation) + (1.0 - weight) * observation["subtask_cost"]
        pair = price.masked_fill(~legal, torch.inf).flatten(2).argmin(2)
        return pair // locations, pair % locations


class HeftPolicy(DagPolicy):
    """Heterogeneous earliest finish time (Topcuoglu et al., 2002), one subtask of each task per step.

    Every task brings its ready subtask of the highest upward rank. Tasks are served in order of these ranks: each takes the
    location where its subtask ends first, after what was taken before it in this step. (The simulator accepts the subtasks of a
    step by arrival of their data, so an end can come out later than was expected here.)
    """

    name = "heft"

    def choose(self, observation: dict[str, Tensor], legal: Tensor) -> tuple[Tensor, Tensor]:
        subtask, rank_s = most_urgent(observation, legal)
        ready_s = of_subtask(observation["subtask_data_ready_s"], subtask)
        service_s = of_subtask(observation["subtask_service_s"], subtask)
        closed = ~of_subtask(legal, subtask)
        free_s = observation["server_free_s"][:, 0].clone()
        location = torch.zeros_like(subtask)
        rows = torch.arange(len(subtask), device=subtask.device)
        for turn in rank_s.argsort(dim=1, descending=True, stable=True).unbind(1):  # one task of every row
            ends_s = torch.maximum(ready_s[rows, turn], free_s) + service_s[rows, turn]
            first_s, at = ends_s.masked_fill(closed[rows, turn], torch.inf).min(1)
            location[rows, turn] = at
            queues = (at < free_s.shape[1] - 1) & torch.isfinite(first_s)
            free_s[rows, at] = torch.where(queues, first_s, free_s[rows, at])
        return subtask, location


HEURISTICS: dict[str, type[Policy]] = {
    policy.name: policy for policy in (RandomPolicy, CloudPolicy, EdgePolicy, GreedyPolicy, HeftPolicy)
}
"""Name to class; called with (spec, seed)."""
