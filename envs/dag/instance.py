"""One episode's scheduling problem as plain numbers, and its timing rules one by one in plain Python.

The simulator computes the same rules with tensors for many episodes at once; exact solvers and tests use these.

    I  tasks      J  places for subtasks in a task      L  locations: the edges, and the cloud last
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Instance:
    """One episode's problem. Where a subtask does not exist the numbers are 0.

    Attributes:
        exists: `[I, J]`.
        modality: `[I, J]`, -1 where there is no subtask.
        successors: `[I, J, J]`, whether the column's subtask needs the row's output.
        allowed: `[I, J, L]`, whether the location hosts the subtask's modality (failures are not part of an instance).
        input_s: `[I, J, L]`, TR of the subtask's own input, with the cloud's round trip.
        compute_s: `[I, J, L]`, T^com.
        transfer_s: `[I, J, L, L]`, TR of the subtask's output from the first location to the second, 0 on the diagonal.
        return_s: `[I, J, L]`, TR of the subtask's output back to the device; it counts for subtasks without successors.
        cost_usd: `[I, J, L]`.
        deadline_s: T_max.
        weight: gamma, of latency against cost.
    """

    exists: Bools
    modality: Integers
    successors: Bools
    allowed: Bools
    input_s: Floats
    compute_s: Floats
    transfer_s: Floats
    return_s: Floats
    cost_usd: Floats
    deadline_s: float
    weight: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """I, J, L."""
        tasks, places, locations = self.allowed.shape
        return tasks, places, locations

    @property
    def cloud(self) -> int:
        """The location without a queue."""
        return self.allowed.shape[2] - 1

    @property
    def service_s(self) -> Floats:
        """`[I, J, L]`: how long the subtask holds its server."""
        return self.input_s + self.compute_s

    def predecessors(self, task: int, subtask: int) -> list[int]:
        return [int(k) for k in np.flatnonzero(self.successors[task, :, subtask])]


@dataclass(frozen=True)
class Schedule:
    """What has been decided of an instance, and when it happens.

    Attributes:
        location: `[I, J]`, -1 where not scheduled.
        order: `(task, subtask)` in the order in which the servers accepted them.
        start_s, end_s: `[I, J]`, ST and EN; 0 where not scheduled.
    """

    location: Integers
    order: list[tuple[int, int]]
    start_s: Floats
    end_s: Floats


def run_schedule(instance: Instance, order: Iterable[tuple[int, int, int]]) -> Schedule:
    """Times of `(task, subtask, location)` accepted one after the other (paper, Sec. 3.2).

    Raises:
        ValueError: A subtask does not exist, comes twice or before a predecessor, or its location does not host it.
    """
    tasks, places, locations = instance.shape
    location = np.full((tasks, places), -1, dtype=np.int64)
    start_s, end_s = np.zeros((tasks, places)), np.zeros((tasks, places))
    free_s = [0.0] * locations
    accepted: list[tuple[int, int]] = []
    service_s = instance.service_s
    for i, j, at in order:
        _require_legal(instance, location, i, j, at)
        data_ready_s = 0.0
        for k in instance.predecessors(i, j):
            arrives_s = end_s[i, k] + instance.transfer_s[i, k, location[i, k], at]
            data_ready_s = max(data_ready_s, float(arrives_s))
        start = data_ready_s if at == instance.cloud else max(data_ready_s, free_s[at])
        end = start + float(service_s[i, j, at])
        location[i, j], start_s[i, j], end_s[i, j] = at, start, end
        free_s[at] = end
        accepted.append((i, j))
    return Schedule(location, accepted, start_s, end_s)


def _require_legal(instance: Instance, location: Integers, i: int, j: int, at: int) -> None:
    name = f"subtask {j} of task {i}"
    if not instance.exists[i, j]:
        raise ValueError(f"{name} does not exist")
    if location[i, j] >= 0:
        raise ValueError(f"{name} is scheduled twice")
    if not instance.allowed[i, j, at]:
        raise ValueError(f"{name} may not run at location {at}")
    if late := [k for k in instance.predecessors(i, j) if location[i, k] < 0]:
        raise ValueError(f"{name} comes before its predecessor {late[0]}")


def is_complete(instance: Instance, schedule: Schedule) -> Bools:
    """`[I]`: whether every subtask of the task is scheduled."""
    return np.asarray(((schedule.location >= 0) | ~instance.exists).all(1))


def task_latency_s(instance: Instance, schedule: Schedule) -> Floats:
    """`[I]`: T_i = last end - first start + return of the results (paper, Sec. 3.3); NaN where a task is incomplete."""
    latency_s = np.full(len(instance.exists), math.nan)
    for i in np.flatnonzero(is_complete(instance, schedule)):
        there = np.flatnonzero(instance.exists[i])
        sinks = [j for j in there if not instance.successors[i, j].any()]
        return_s = sum(instance.return_s[i, j, schedule.location[i, j]] for j in sinks)
        latency_s[i] = schedule.end_s[i, there].max() - schedule.start_s[i, there].min() + return_s
    return latency_s


def task_cost_usd(instance: Instance, schedule: Schedule) -> Floats:
    """`[I]`: Cost_i; NaN where a task is incomplete."""
    cost_usd = np.full(len(instance.exists), math.nan)
    for i in np.flatnonzero(is_complete(instance, schedule)):
        there = np.flatnonzero(instance.exists[i])
        cost_usd[i] = sum(instance.cost_usd[i, j, schedule.location[i, j]] for j in there)
    return cost_usd


def objective(instance: Instance, schedule: Schedule) -> float:
    """Sum over the complete tasks of `weight * T_i + (1 - weight) * Cost_i` (paper, eq. 1)."""
    latency_s, cost_usd = task_latency_s(instance, schedule), task_cost_usd(instance, schedule)
    return float(np.nansum(instance.weight * latency_s + (1.0 - instance.weight) * cost_usd))


def upward_ranks(instance: Instance) -> Floats:
    """`[I, J]`: HEFT's upward rank in seconds (Topcuoglu et al. 2002, eqs. 2, 3 and 8), 0 where there is no subtask.

    A subtask's own time is the mean of input and compute over the locations that host it; a transfer is the mean over the
    pairs of locations that host its two ends.
    """
    tasks, places, _ = instance.shape
    rank_s = np.zeros((tasks, places))
    for i in range(tasks):
        waiting = [int(j) for j in np.flatnonzero(instance.exists[i])]
        while waiting:
            j = next(j for j in waiting if not instance.successors[i, j, waiting].any())
            waiting.remove(j)
            at = instance.allowed[i, j]
            tail_s = 0.0
            for k in np.flatnonzero(instance.successors[i, j]):
                transfer_s = instance.transfer_s[i, j][np.ix_(at, instance.allowed[i, k])].mean()
                tail_s = max(tail_s, float(transfer_s + rank_s[i, k]))
            rank_s[i, j] = instance.service_s[i, j, at].mean() + tail_s
    return rank_s
