"""The exact optimum of one `dag` instance, as a mixed-integer programme for HiGHS (`scipy.optimize.milp`).

The paper's problem (Sec. 3.3): choose every subtask's location and the order in which the servers accept subtasks, so that the
sum over tasks of `weight * T_i + (1 - weight) * Cost_i` is least. Times follow from these by the recursions of Sec. 3.2.

Two kinds of orders:

* `stepwise=False`: any order that accepts predecessors first: the paper's problem as it is written. T_i counts from the task's
  own first start, so a queue before it costs nothing, and to serve the tasks one after the other is often optimal.
* `stepwise=True`: only orders that come about where every unfinished task places one subtask in each step, and the subtasks of
  a step are accepted in order of their data's arrival, ties by task. This is what policies can reach in the simulator with
  action masks and without failures; without masks an agent can also wait a step, by an illegal choice that it pays for.

Failures of edges are not part of an instance: the optimum is of the same episode without them.

How the programme is made strong enough: simulated annealing gives a schedule first, and only better ones are searched for
(infeasible means that it was optimal). Every task alone on all servers gives a lower bound of its share of the objective. What
is left between the sum of these and the annealed schedule bounds the shares from above, which settles most locations and keeps
the big-M small.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from scipy.optimize import OptimizeResult

from envs.dag.instance import Instance, Schedule, task_latency_s
from trainers.baselines.dag_programme import Known, Programme
from trainers.baselines.dag_search import Flat, anneal

TOLERANCE = 1e-6
"""Of objectives: a schedule is optimal if none is better by more than this."""

MOVES, RUNS = 600, 3
"""Moves of simulated annealing per subtask, and how often it is run."""


@dataclass(frozen=True)
class Optimum:
    """The best schedule found and what is proved of it.

    Attributes:
        status: `optimal` where the gap is closed, `time limit` where it is not, `infeasible` where no schedule keeps the
            deadlines.
        objective: Of `schedule`; infinite where there is none.
        bound: No schedule's objective is lower (to within `TOLERANCE`).
        schedule: None where none was found that keeps the deadlines.
        seconds: Spent on it.
    """

    status: Literal["optimal", "time limit", "infeasible"]
    objective: float
    bound: float
    schedule: Schedule | None
    seconds: float

    @property
    def gap(self) -> float:
        """(objective - bound) / objective."""
        return max(0.0, self.objective - self.bound) / self.objective if math.isfinite(self.objective) else math.inf


def optimum(
    instance: Instance,
    time_limit_s: float = 60.0,
    stepwise: bool = False,
    deadlines: bool = False,
    moves: int = MOVES,
    seed: int = 0,
) -> Optimum:
    """Solves one instance.

    Args:
        time_limit_s: For all of it; up to half of it for annealing.
        stepwise: Only orders that the simulator's steps allow (see the module).
        deadlines: Whether T_i <= T_max is required (C3); without it, late tasks are only as bad as they are long.
        moves: Of simulated annealing per subtask, in each of its runs; 0 leaves only simple list schedules to start from.
        seed: Of simulated annealing.
    """
    began = time.monotonic()
    flat = Flat(instance)
    if not flat.subtasks:
        return Optimum("optimal", 0.0, 0.0, flat.schedule([], []), time.monotonic() - began)
    until = [began + time_limit_s * (run + 1) / (2 * RUNS) for run in range(RUNS)]
    runs = (anneal(flat, moves * len(flat.subtasks), seed + run, stepwise, until[run]) for run in range(RUNS))
    order, where, value = min(runs, key=lambda found: found[2])
    best: Schedule | None = flat.schedule(order, where)
    if deadlines and best is not None and (task_latency_s(instance, best) > instance.deadline_s).any():
        best, value = None, math.inf
    problem = _Problem(flat, stepwise, deadlines, value, began + time_limit_s)
    if math.isinf(problem.bound):
        return Optimum("infeasible", math.inf, math.inf, None, time.monotonic() - began)
    if problem.bound >= value - TOLERANCE:
        return Optimum("optimal", value, value, best, time.monotonic() - began)
    result, found = problem.solve()
    if found is not None and (best is None or found[2] < value):
        best, value = flat.schedule(*found[:2]), found[2]
    seconds = time.monotonic() - began
    if result.status == 2:  # nothing is better than the annealed schedule
        return Optimum("infeasible" if best is None else "optimal", value, value, best, seconds)
    bound = min(value, max(problem.bound, -math.inf if result.mip_dual_bound is None else result.mip_dual_bound))
    return Optimum("optimal" if value - bound <= 2 * TOLERANCE else "time limit", value, bound, best, seconds)


class _Problem:
    """The whole instance with what is known before the large programme is solved."""

    def __init__(self, flat: Flat, stepwise: bool, deadlines: bool, value: float, until: float) -> None:
        self.flat, self.stepwise, self.until = flat, stepwise, until
        self.deadline_s = float(flat.instance.deadline_s) if deadlines else math.inf
        self.value = value
        self._each_s = max(0.1, 0.3 * (until - time.monotonic()) / len(flat.tasks))  # for a task alone
        self.forbidden: set[tuple[int, int]] = set()
        self.lower = [self._alone(task, math.inf) for task in range(len(flat.tasks))]
        self.bound = sum(self.lower)
        if math.isfinite(value) and math.isfinite(self.bound) and self.bound < value - TOLERANCE:
            self._settle_locations()

    @property
    def upper(self) -> list[float]:
        """The most that each task's share can be in a schedule that is better than the one known."""
        return [lower + self.value - self.bound for lower in self.lower]

    def _alone(self, task: int, cutoff: float, forbidden: Iterable[tuple[int, int]] = ()) -> float:
        """A lower bound of the task's share of the objective in any schedule; infinite where it exceeds `cutoff`.

        Others only delay: shift a task's part of a schedule to start at 0 and let all of it start as early as it can; the first
        that a server accepts then starts at 0, and no subtask ends later.
        """
        share = Programme(self.flat, [task], deadline_s=self.deadline_s, known=Known(frozenset(forbidden)))
        share.limit(cutoff)
        result = share.solve(max(0.1, min(self._each_s, self.until - time.monotonic())))
        if result.status == 2:
            return math.inf
        return 0.0 if result.mip_dual_bound is None else float(result.mip_dual_bound)

    def _settle_locations(self) -> None:
        """Rules out locations that alone make their task's share too large."""
        upper, stop = self.upper, time.monotonic() + 0.3 * max(0.0, self.until - time.monotonic())
        for task, members in enumerate(self.flat.tasks):
            for v in members:
                for at in self.flat.subtasks[v].locations:
                    if time.monotonic() > stop:
                        return
                    others = {(v, other) for other in self.flat.subtasks[v].locations if other != at}
                    if others - self.forbidden and self._too_much(task, upper[task], others):
                        self.forbidden.add((v, at))

    def _too_much(self, task: int, upper: float, others: set[tuple[int, int]]) -> bool:
        return self._alone(task, upper + TOLERANCE, self.forbidden | others) > upper + TOLERANCE

    def solve(self) -> tuple[OptimizeResult, tuple[list[int], list[int], float] | None]:
        """HiGHS's result, and the schedule in it as (order, where, objective)."""
        shares = tuple(zip(self.lower, self.upper, strict=True))
        programme = Programme(
            self.flat,
            list(range(len(self.flat.tasks))),
            exact=True,
            stepwise=self.stepwise,
            deadline_s=self.deadline_s,
            known=Known(frozenset(self.forbidden), self.value, shares),
        )
        programme.limit(self.value - TOLERANCE)
        result = programme.solve(max(1.0, self.until - time.monotonic()))
        return result, None if result.x is None else programme.read(result.x)
