"""Good schedules of a `dag` instance by list scheduling and simulated annealing: upper bounds for the exact optimum.

Everything here works on one episode's `Instance` with all of it known; policies, which see observations, are in
`trainers.baselines.dag`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from envs.dag.instance import Instance, Schedule, run_schedule, upward_ranks

Decisions = list[tuple[int, int, int]]
"""(task, subtask, location) in the order of acceptance."""


LOOK_AT_CLOCK = 256
"""Moves of simulated annealing between two looks at the clock."""


@dataclass(frozen=True)
class Subtask:
    """One subtask of an instance, by numbers within `Flat.subtasks`; times in seconds, costs in dollars.

    Attributes:
        predecessors, successors: Numbers of the neighbours.
        locations: Where it may run; the last location of the instance is the cloud.
        service_s, cost_usd, return_s: By location; `return_s` is 0 unless the subtask is a sink.
        transfer_s: Of its output, by (location, location of the successor).
    """

    task: int
    place: int
    predecessors: tuple[int, ...]
    successors: tuple[int, ...]
    locations: tuple[int, ...]
    service_s: tuple[float, ...]
    cost_usd: tuple[float, ...]
    return_s: tuple[float, ...]
    transfer_s: tuple[tuple[float, ...], ...]


class Flat:
    """An instance as plain Python numbers, subtasks of all tasks in one list: what searches loop over.

    Attributes:
        subtasks: Task by task, in a topological order within each task.
        tasks: The subtasks' numbers of each task that has any.
        ancestors: By subtask, all that it needs directly or indirectly.
        cloud: Number of the cloud among the locations.
    """

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.weight = float(instance.weight)
        self.cloud = instance.allowed.shape[2] - 1
        self.subtasks: list[Subtask] = []
        self.tasks: list[tuple[int, ...]] = []
        for task in range(instance.exists.shape[0]):
            self._add(task)
        self.ancestors: list[set[int]] = []
        for s in self.subtasks:
            self.ancestors.append(set(s.predecessors).union(*(self.ancestors[p] for p in s.predecessors)))

    def _add(self, task: int) -> None:
        n = self.instance
        places = _topological(n.exists[task], n.successors[task])
        if not places:
            return
        number = {place: len(self.subtasks) + index for index, place in enumerate(places)}
        for place in places:
            after = tuple(number[int(b)] for b in np.flatnonzero(n.successors[task, place] & n.exists[task]))
            before = tuple(number[int(a)] for a in np.flatnonzero(n.successors[task, :, place] & n.exists[task]))
            service = n.input_s[task, place] + n.compute_s[task, place]
            back = np.zeros_like(service) if after else n.return_s[task, place]
            self.subtasks.append(
                Subtask(
                    task=task,
                    place=place,
                    predecessors=before,
                    successors=after,
                    locations=tuple(int(at) for at in np.flatnonzero(n.allowed[task, place])),
                    service_s=tuple(service.tolist()),
                    cost_usd=tuple(n.cost_usd[task, place].tolist()),
                    return_s=tuple(back.tolist()),
                    transfer_s=tuple(tuple(row) for row in n.transfer_s[task, place].tolist()),
                )
            )
        self.tasks.append(tuple(number.values()))

    def run(self, order: list[int], where: list[int]) -> tuple[list[float], list[float]]:
        """Start and end `[V]` of every subtask, accepted in `order` at `where`."""
        free = [0.0] * (self.cloud + 1)
        start, end = [0.0] * len(order), [0.0] * len(order)
        for v in order:
            at = where[v]
            begin = max(self.arrival(v, at, end, where), free[at])
            start[v] = begin
            end[v] = begin + self.subtasks[v].service_s[at]
            if at != self.cloud:
                free[at] = end[v]
        return start, end

    def arrival(self, v: int, at: int, end: list[float], where: list[int]) -> float:
        """When the outputs of all predecessors are at location `at`."""
        last = 0.0
        for p in self.subtasks[v].predecessors:
            there = end[p] + self.subtasks[p].transfer_s[where[p]][at]
            if there > last:
                last = there
        return last

    def objective(self, start: list[float], end: list[float], where: list[int]) -> float:
        """Sum over tasks of weight * latency + (1 - weight) * cost."""
        total = 0.0
        for members in self.tasks:
            latency = max(end[v] for v in members) - min(start[v] for v in members)
            cost = 0.0
            for v in members:
                latency += self.subtasks[v].return_s[where[v]]
                cost += self.subtasks[v].cost_usd[where[v]]
            total += self.weight * latency + (1.0 - self.weight) * cost
        return total

    def value(self, order: list[int], where: list[int]) -> float:
        return self.objective(*self.run(order, where), where)

    def decisions(self, order: list[int], where: list[int]) -> Decisions:
        return [(self.subtasks[v].task, self.subtasks[v].place, where[v]) for v in order]

    def schedule(self, order: list[int], where: list[int]) -> Schedule:
        return run_schedule(self.instance, self.decisions(order, where))


def _topological(exists: np.ndarray, successors: np.ndarray) -> list[int]:
    """Places of the subtasks that exist, predecessors first."""
    waiting = [int(place) for place in np.flatnonzero(exists)]
    done: list[int] = []
    while waiting:
        ready = next(place for place in waiting if not successors[waiting, place].any())
        waiting.remove(ready)
        done.append(ready)
    return done


def list_schedules(flat: Flat) -> Iterator[tuple[list[int], list[int]]]:
    """`(order, where)` of some simple rules: by HEFT's rank over all tasks, and task after task; earliest or cheapest finish.

    Task after task is a good start because a task's latency counts from its own first start only (`Instance`'s T_i).
    """
    rank_s = upward_ranks(flat.instance)
    by_rank = sorted(range(len(flat.subtasks)), key=lambda v: (-rank_s[flat.subtasks[v].task, flat.subtasks[v].place], v))
    one_by_one = [v for members in flat.tasks for v in members]
    for order in (by_rank, one_by_one):
        for time_weight in (1.0, flat.weight):
            yield order, _place(flat, order, time_weight)
        yield order, [s.locations[0] for s in flat.subtasks]
        yield order, [s.locations[-1] for s in flat.subtasks]


def _place(flat: Flat, order: list[int], time_weight: float) -> list[int]:
    """Subtask by subtask the location with the least `time_weight * end + (1 - time_weight) * cost`."""
    free = [0.0] * (flat.cloud + 1)
    where, end = [-1] * len(order), [0.0] * len(order)
    for v in order:
        s = flat.subtasks[v]
        ends = {at: max(flat.arrival(v, at, end, where), free[at]) + s.service_s[at] for at in s.locations}
        best = min(s.locations, key=lambda at: time_weight * ends[at] + (1.0 - time_weight) * s.cost_usd[at])
        where[v], end[v] = best, ends[best]
        if best != flat.cloud:
            free[best] = end[v]
    return where


def step_order(flat: Flat, order: list[int], where: list[int]) -> list[int]:
    """The order of acceptance if every task places one subtask per step, its own in the order in which they are in `order`.

    As in the simulator, the subtasks of one step are accepted by arrival of their data, ties by task.
    """
    queues: dict[int, list[int]] = {}
    for v in order:
        queues.setdefault(flat.subtasks[v].task, []).append(v)
    free = [0.0] * (flat.cloud + 1)
    end = [0.0] * len(order)
    accepted: list[int] = []
    for step in range(max(map(len, queues.values()), default=0)):
        chosen = [queue[step] for queue in queues.values() if step < len(queue)]
        arrival = {v: flat.arrival(v, where[v], end, where) for v in chosen}
        for v in sorted(chosen, key=lambda v: (arrival[v], flat.subtasks[v].task)):
            at = where[v]
            end[v] = max(arrival[v], free[at]) + flat.subtasks[v].service_s[at]
            if at != flat.cloud:
                free[at] = end[v]
            accepted.append(v)
    return accepted


def anneal(
    flat: Flat, moves: int = 20_000, seed: int = 0, stepwise: bool = False, until: float = math.inf
) -> tuple[list[int], list[int], float]:
    """Simulated annealing over orders of acceptance and locations, from the best of `list_schedules`.

    A move takes one subtask to another location, or to another place in the order between its predecessors and successors.

    Args:
        stepwise: Only orders that `step_order` gives; then moves change the order within a task.
        until: `time.monotonic` at which it stops early.

    Returns:
        Order of acceptance `[V]`, location by subtask `[V]`, and the objective of the best schedule seen.
    """
    draw = random.Random(seed)

    def accepted(order: list[int], where: list[int]) -> list[int]:
        return step_order(flat, order, where) if stepwise else order

    def evaluate(order: list[int], where: list[int]) -> float:
        return flat.value(accepted(order, where), where)

    order, where = min(list_schedules(flat), key=lambda start: evaluate(*start))
    order, where = list(order), list(where)
    if stepwise:
        order.sort(key=lambda v: flat.subtasks[v].task)
    value = evaluate(order, where)
    best = (list(order), list(where), value)
    movable = [v for v, s in enumerate(flat.subtasks) if len(s.locations) > 1]
    hot, cold = 0.02 * value / max(1, len(flat.tasks)), 1e-5 * value
    for move in range(moves if value > 0 else 0):
        if move % LOOK_AT_CLOCK == 0 and time.monotonic() > until:
            break
        temperature = hot * (cold / hot) ** (move / moves)
        if movable and draw.random() < 0.4:
            undo = _relocate(flat, where, movable, draw)
        else:
            undo = _reorder(flat, order, draw, stepwise)
        trial = evaluate(order, where)
        if trial <= value or draw.random() < math.exp((value - trial) / temperature):
            value = trial
            if value < best[2]:
                best = (list(order), list(where), value)
        else:
            undo()
    order, where, value = best
    return accepted(order, where), where, value


def _relocate(flat: Flat, where: list[int], movable: list[int], draw: random.Random) -> Callable[[], None]:
    v = draw.choice(movable)
    before = where[v]
    where[v] = draw.choice([at for at in flat.subtasks[v].locations if at != before])

    def undo() -> None:
        where[v] = before

    return undo


def _reorder(flat: Flat, order: list[int], draw: random.Random, within_task: bool) -> Callable[[], None]:
    old = draw.randrange(len(order))
    s = flat.subtasks[order[old]]

    def passes(other: int, neighbours: tuple[int, ...]) -> bool:
        return other not in neighbours and not (within_task and flat.subtasks[other].task != s.task)

    low, high = old, old
    while low > 0 and passes(order[low - 1], s.predecessors):
        low -= 1
    while high < len(order) - 1 and passes(order[high + 1], s.successors):
        high += 1
    new = draw.randint(low, high)
    order.insert(new, order.pop(old))

    def undo() -> None:
        order.insert(old, order.pop(new))

    return undo
