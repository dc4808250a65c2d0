"""The `dag` problem as a mixed-integer programme: variables and rows. `trainers.baselines.dag_optimum` solves it."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import csr_array

from trainers.baselines.dag_search import Flat, step_order

Terms = list[tuple[int, float]]
"""A linear expression: (variable, coefficient)."""
Candidate = tuple[Terms, float, int | None]
"""A term of a maximum, the most by which the maximum can exceed it, and a binary that must be 1 for it to be reached."""


class Rows:
    """Variables and rows of a programme, as scipy wants them."""

    def __init__(self) -> None:
        self._low: list[float] = []
        self._high: list[float] = []
        self._whole: list[int] = []
        self._cost: list[float] = []
        self._entries: list[tuple[int, int, float]] = []
        self._row_low: list[float] = []
        self._row_high: list[float] = []
        self._one = self.variable(1.0, 1.0)

    def variable(self, low: float, high: float, cost: float = 0.0, whole: bool = False) -> int:
        self._low.append(low)
        self._high.append(max(low, high))
        self._cost.append(cost)
        self._whole.append(int(whole))
        return len(self._low) - 1

    def binary(self, cost: float = 0.0) -> int:
        return self.variable(0.0, 1.0, cost, whole=True)

    def constant(self, value: float) -> Terms:
        return [(self._one, value)]

    def row(self, terms: Terms, low: float = -math.inf, high: float = math.inf) -> None:
        self._entries += [(len(self._row_low), variable, factor) for variable, factor in terms]
        self._row_low.append(low)
        self._row_high.append(high)

    def same(self, a: Terms, b: Terms) -> None:
        self.row(a + times(b, -1.0), 0.0, 0.0)

    def at_least(self, a: Terms, b: Terms) -> None:
        self.row(a + times(b, -1.0), 0.0)

    def at_least_if(self, condition: int, a: Terms, b: Terms, big: float) -> None:
        """`a >= b` where the binary `condition` is 1; `big` is the most by which `b` can exceed `a` otherwise."""
        big = max(0.0, big)
        self.row([*a, *times(b, -1.0), (condition, -big)], -big)

    def limit(self, cutoff: float) -> None:
        """Only solutions with an objective of at most `cutoff`."""
        if math.isfinite(cutoff):
            self.row([(variable, cost) for variable, cost in enumerate(self._cost) if cost], high=cutoff)

    def solve(self, time_limit_s: float) -> OptimizeResult:
        rows, columns, factors = zip(*self._entries, strict=True)
        matrix = csr_array((factors, (rows, columns)), shape=(len(self._row_low), len(self._low)))
        return milp(
            self._cost,
            integrality=self._whole,
            bounds=Bounds(self._low, self._high),
            constraints=LinearConstraint(matrix, self._row_low, self._row_high),
            options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
        )


def times(terms: Terms, factor: float) -> Terms:
    return [(variable, factor * value) for variable, value in terms]


@dataclass(frozen=True)
class Known:
    """What is known before the programme is solved; it only makes the programme smaller.

    Attributes:
        forbidden: (subtask, location) pairs that cannot be part of a better schedule.
        value: An objective that is known to be reachable by the programme's tasks.
        shares: Bounds of each task's share of the objective, in the order of the tasks; empty where none are known.
    """

    forbidden: frozenset[tuple[int, int]] = frozenset()
    value: float = math.inf
    shares: tuple[tuple[float, float], ...] = field(default=())


class Programme(Rows):
    """All schedules of some of the tasks.

    Args:
        tasks: Indices into `flat.tasks`.
        exact: Starts are not only late enough but exactly the recursion's maximum, so that no task can improve its T_i by
            starting later than it must. Needed where tasks share servers, not for a task alone.
        stepwise: Only orders that the simulator's steps allow; needs `exact`, and all of the tasks.
        deadline_s: The longest T_i.

    Variables, for subtask v, location l:
        at[v, l]       1 if v runs at l
        start[v]       ST
        ready[v]       WT: the last input's arrival (none for subtasks without predecessors, whose WT is 0)
        before[a, b, l]  1 if both run on edge l, a first
        places[v][k]   (stepwise) 1 if v is its task's choice in step k
        first[i], last[i]  min ST and max EN of task i
    """

    def __init__(
        self,
        flat: Flat,
        tasks: list[int],
        exact: bool = False,
        stepwise: bool = False,
        deadline_s: float = math.inf,
        known: Known | None = None,
    ) -> None:
        super().__init__()
        known = known or Known()
        self.flat, self.exact, self.stepwise, self._tasks = flat, exact, stepwise, tasks
        self._members = [v for task in tasks for v in flat.tasks[task]]
        self._allowed = {v: [at for at in flat.subtasks[v].locations if (v, at) not in known.forbidden] for v in self._members}
        self._measure()
        self._horizon = self._longest(known.value)
        self._at: dict[tuple[int, int], int] = {}
        self._start: dict[int, int] = {}
        self._ready: dict[int, int] = {}
        self._arrivals: dict[tuple[int, int], Terms] = {}
        self._before: dict[tuple[int, int, int], int] = {}
        self._places: dict[int, dict[int, int]] = {}
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        for v in self._members:
            self._place_subtask(v)
        self._order_edges()
        for task in tasks:
            self._time_task(task)
        for task in tasks if math.isfinite(deadline_s) else []:
            self.row(self._span(task) + self._returns(task), high=deadline_s)
        for task, (low, high) in zip(tasks, known.shares, strict=False):
            self._bound_share(task, low, high)
        if stepwise:
            self._take_steps()
        if exact:
            self._start_no_later()

    # What the numbers themselves say.

    def _measure(self) -> None:
        """Least time before each start (`head`), and from each start to its task's last end (`tail`)."""
        subtasks = self.flat.subtasks
        self._shortest = {v: min(subtasks[v].service_s[at] for at in self._allowed[v]) for v in self._members}
        self._head: dict[int, float] = {}
        self._tail: dict[int, float] = {}
        for v in self._members:
            self._head[v] = max((self._earliest_arrival(p, v) for p in subtasks[v].predecessors), default=0.0)
        for v in reversed(self._members):
            rest = [min(self._transfers(v, s)) + self._tail[s] for s in subtasks[v].successors]
            self._tail[v] = self._shortest[v] + max(rest, default=0.0)

    def _earliest_arrival(self, p: int, v: int) -> float:
        return self._head[p] + self._shortest[p] + min(self._transfers(p, v))

    def _transfers(self, a: int, b: int) -> list[float]:
        """Seconds from `a` to its successor `b`, for all their locations."""
        table = self.flat.subtasks[a].transfer_s
        return [table[x][y] for x in self._allowed[a] for y in self._allowed[b]]

    def _longest(self, value: float) -> float:
        """A time by which everything is done.

        A chain of subtasks that wait for each other, each of them once, leads from time 0 to the last end. Along it some task
        is always under way, so all latencies together, which the objective bounds, are no shorter.
        """
        subtasks, g = self.flat.subtasks, self.flat.weight
        longest = 0.0
        for v in self._members:
            longest += max(subtasks[v].service_s[at] for at in self._allowed[v])
            longest += max((max(self._transfers(v, s)) for s in subtasks[v].successors), default=0.0)
        if g > 0 and math.isfinite(value):
            costs, returns = (sum(part) for part in zip(*map(self._least, self._tasks), strict=True))
            longest = min(longest, (value - (1 - g) * costs) / g - returns)
        return longest

    def _least(self, task: int) -> tuple[float, float]:
        """Least cost and least time for the return of results of a task."""
        subtasks, members = self.flat.subtasks, self.flat.tasks[task]
        cost = sum(min(subtasks[v].cost_usd[at] for at in self._allowed[v]) for v in members)
        back = sum(min(subtasks[v].return_s[at] for at in self._allowed[v]) for v in members)
        return cost, back

    # Expressions.

    def _locations(self, v: int) -> Terms:
        return [(self._at[v, at], 1.0) for at in self._allowed[v]]

    def _starts(self, v: int) -> Terms:
        return [(self._start[v], 1.0)]

    def _readies(self, v: int) -> Terms:
        """WT; nothing, which is 0, without predecessors."""
        return [(self._ready[v], 1.0)] if v in self._ready else []

    def _ends(self, v: int) -> Terms:
        service_s = self.flat.subtasks[v].service_s
        return self._starts(v) + [(self._at[v, at], service_s[at]) for at in self._allowed[v]]

    def _span(self, task: int) -> Terms:
        return [(self._last[task], 1.0), (self._first[task], -1.0)]

    def _returns(self, task: int) -> Terms:
        subtasks = self.flat.subtasks
        return [(self._at[v, at], subtasks[v].return_s[at]) for v in self.flat.tasks[task] for at in self._allowed[v]]

    def _costs(self, task: int) -> Terms:
        subtasks = self.flat.subtasks
        return [(self._at[v, at], subtasks[v].cost_usd[at]) for v in self.flat.tasks[task] for at in self._allowed[v]]

    def _steps(self, v: int) -> Terms:
        """The step in which `v` is placed."""
        return [(variable, float(k)) for k, variable in self._places[v].items()]

    # The parts of the model.

    def _place_subtask(self, v: int) -> None:
        """One location; all inputs are there before the start."""
        g, s = self.flat.weight, self.flat.subtasks[v]
        for at in self._allowed[v]:
            self._at[v, at] = self.binary((1 - g) * s.cost_usd[at] + g * s.return_s[at])
        self.row(self._locations(v), 1.0, 1.0)
        latest = self._horizon - self._tail[v]
        self._start[v] = self.variable(self._head[v], latest)
        if s.predecessors:
            self._ready[v] = self.variable(self._head[v], latest)
            self.at_least(self._starts(v), self._readies(v))
        for p in s.predecessors:
            self._arrivals[p, v] = self._ends(p) + self._transfer(p, v)
            self.at_least(self._readies(v), self._arrivals[p, v])

    def _transfer(self, a: int, b: int) -> Terms:
        """Seconds from `a` to `b`: the product of their locations, written as a flow from the one's to the other's."""
        flow = {(x, y): self.variable(0.0, 1.0) for x in self._allowed[a] for y in self._allowed[b]}
        for x in self._allowed[a]:
            self.same([(flow[x, y], 1.0) for y in self._allowed[b]], [(self._at[a, x], 1.0)])
        for y in self._allowed[b]:
            self.same([(flow[x, y], 1.0) for x in self._allowed[a]], [(self._at[b, y], 1.0)])
        table = self.flat.subtasks[a].transfer_s
        return [(flow[x, y], table[x][y]) for x, y in flow if table[x][y] > 0]

    def _order_edges(self) -> None:
        """One of two subtasks on the same edge comes first; where one needs the other, that is settled."""
        for edge in range(self.flat.cloud):
            here = [v for v in self._members if (v, edge) in self._at]
            for index, a in enumerate(here):
                for b in here[index + 1 :]:
                    if a not in self.flat.ancestors[b] and b not in self.flat.ancestors[a]:
                        self._order_pair(a, b, edge)

    def _order_pair(self, a: int, b: int, edge: int) -> None:
        for x, y in ((a, b), (b, a)):
            order = self._before[x, y, edge] = self.binary()
            for v in (a, b):
                self.at_least([(self._at[v, edge], 1.0)], [(order, 1.0)])
            end = self._starts(x) + self.constant(self.flat.subtasks[x].service_s[edge])
            latest = self._horizon - self._tail[x] + self.flat.subtasks[x].service_s[edge]
            self.at_least_if(order, self._starts(y), end, latest - self._head[y])
        either = [(self._before[a, b, edge], 1.0), (self._before[b, a, edge], 1.0)]
        self.row(either, high=1.0)
        self.row([*either, (self._at[a, edge], -1.0), (self._at[b, edge], -1.0)], -1.0)

    def _time_task(self, task: int) -> None:
        """First start, last end; a task's work on one edge is done between the two."""
        g, members, subtasks = self.flat.weight, self.flat.tasks[task], self.flat.subtasks
        latest = min(self._horizon - self._tail[v] for v in members) if self.exact else 0.0
        self._first[task] = self.variable(0.0, latest, -g)
        self._last[task] = self.variable(max(self._head[v] + self._shortest[v] for v in members), self._horizon, g)
        first, last = [(self._first[task], 1.0)], [(self._last[task], 1.0)]
        for v in members:
            if not subtasks[v].successors:
                self.at_least(last, self._ends(v))
            self.at_least(self._starts(v), first + self.constant(self._head[v]))
            self.at_least(last, self._starts(v) + self.constant(self._tail[v]))
        for edge in range(self.flat.cloud):
            work = [(self._at[v, edge], subtasks[v].service_s[edge]) for v in members if (v, edge) in self._at]
            self.at_least(self._span(task), work)

    def _bound_share(self, task: int, low: float, high: float) -> None:
        """What is known of a task's share of the objective, and so of the time from its first start to each other start."""
        g = self.flat.weight
        self.row(times(self._span(task) + self._returns(task), g) + times(self._costs(task), 1 - g), low, high)
        if g > 0 and math.isfinite(high):
            cost, back = self._least(task)
            longest = (high - (1 - g) * cost) / g - back
            for v in self.flat.tasks[task]:
                self.row([(self._start[v], 1.0), (self._first[task], -1.0)], high=longest - self._tail[v])

    def _start_no_later(self) -> None:
        """Some term of every maximum is reached: WT by a predecessor's output, ST by WT or by the edge's queue."""
        for v in self._members:
            latest = self._horizon - self._tail[v]
            arrivals: list[Candidate] = [
                (self._arrivals[p, v], latest - self._earliest_arrival(p, v), None) for p in self.flat.subtasks[v].predecessors
            ]
            self._reach(self._readies(v), arrivals)
            queue: list[Candidate] = [(self._readies(v), latest - self._head[v], None)]
            for (a, b, edge), order in self._before.items():
                if b == v:
                    # Where `order` is 1, `a` runs on this edge, so its end needs no product.
                    service_s = self.flat.subtasks[a].service_s[edge]
                    end = self._starts(a) + self.constant(service_s)
                    queue.append((end, latest - self._head[a] - service_s, order))
            self._reach(self._starts(v), queue)

    def _reach(self, left: Terms, terms: list[Candidate]) -> None:
        """`left` is at most one of `terms`."""
        chosen = [self.binary() for _ in terms]
        if chosen:
            self.row([(one, 1.0) for one in chosen], 1.0, 1.0)
        for one, (term, big, condition) in zip(chosen, terms, strict=True):
            self.at_least_if(one, term, left, big)
            if condition is not None:
                self.at_least([(condition, 1.0)], [(one, 1.0)])

    # Steps.

    def _take_steps(self) -> None:
        """Every task places one subtask per step; an edge accepts a step's subtasks by arrival of their data, ties by task."""
        for task in self._tasks:
            self._permute(task)
        for (a, b, _), order in self._before.items():
            self._keep_steps(a, b, order)
        self._open()

    def _permute(self, task: int) -> None:
        members, ancestors = self.flat.tasks[task], self.flat.ancestors
        for v in members:
            after = sum(v in ancestors[w] for w in members)
            self._places[v] = {k: self.binary() for k in range(len(ancestors[v]), len(members) - after)}
            self.row([(variable, 1.0) for variable in self._places[v].values()], 1.0, 1.0)
        for k in range(len(members)):
            self.row([(self._places[v][k], 1.0) for v in members if k in self._places[v]], 1.0, 1.0)
        for v in members:
            for p in self.flat.subtasks[v].predecessors:
                self.at_least(self._steps(v), self._steps(p) + self.constant(1.0))

    def _keep_steps(self, a: int, b: int, order: int) -> None:
        """`a` is accepted before `b` in an earlier step, or in the same one where its data arrive first.

        Data of a subtask without predecessors are there at 0, before all others'; two such subtasks go by task.
        """
        one, other = self.flat.subtasks[a], self.flat.subtasks[b]
        late_a, late_b = bool(one.predecessors), bool(other.predecessors)
        if one.task == other.task or (late_a and not late_b):
            self._sooner(order, a, b)
        elif late_a and late_b:
            earlier = self.binary()
            self._sooner(earlier, a, b)
            self._sooner(order, a, b, by=0.0)
            apart = max(0.0, self._horizon - self._tail[a] - self._head[b])
            # WT_a <= WT_b if `order` without `earlier`
            self.row([*self._readies(b), *times(self._readies(a), -1.0), (order, -apart), (earlier, apart)], -apart)
        else:
            self._sooner(order, a, b, by=float(not late_b and one.task > other.task))

    def _sooner(self, condition: int, a: int, b: int, by: float = 1.0) -> None:
        steps = float(max(len(self.flat.tasks[task]) for task in self._tasks))
        self.at_least_if(condition, self._steps(b), self._steps(a) + self.constant(by), steps + by)

    def _open(self) -> None:
        """In the first step all data are there at 0, so a start is the sum of the services before it on the edge: a sharp
        upper bound of each task's first start.
        """
        subtasks = self.flat.subtasks
        opening: dict[tuple[int, int], int] = {}
        for v in self._members:
            if 0 in self._places[v]:
                for at in self._allowed[v]:
                    opening[v, at] = self.variable(0.0, 1.0)
                    self.at_least([(self._at[v, at], 1.0)], [(opening[v, at], 1.0)])
                self.same([(opening[v, at], 1.0) for at in self._allowed[v]], [(self._places[v][0], 1.0)])
        for task in self._tasks:
            for at in range(self.flat.cloud + 1):
                here = [variable for (v, where), variable in opening.items() if where == at and v in self.flat.tasks[task]]
                if not here:
                    continue
                earlier = [
                    (variable, subtasks[v].service_s[at])
                    for (v, where), variable in opening.items()
                    if where == at != self.flat.cloud and v < self.flat.tasks[task][0]
                ]
                latest = self._high[self._first[task]]
                # first <= sum of the services before it, if one of these is the task's opening
                self.row(
                    [(self._first[task], 1.0), *times(earlier, -1.0), *((variable, latest) for variable in here)], high=latest
                )

    # Solutions.

    def read(self, x: list[float]) -> tuple[list[int], list[int], float]:
        """Order of acceptance, locations, and the objective of the schedule that the decisions in a solution give."""
        where = [max(self._allowed[v], key=lambda at: x[self._at[v, at]]) for v in self._members]
        if self.stepwise:
            placed = {v: sum(k * x[variable] for variable, k in self._steps(v)) for v in self._members}
            order = step_order(self.flat, sorted(self._members, key=placed.__getitem__), where)
        else:
            order = self._order(x)
        return order, where, self.flat.value(order, where)

    def _order(self, x: list[float]) -> list[int]:
        """Whoever must come first does; where nothing decides, the earlier start."""
        waits_for = {v: set(self.flat.subtasks[v].predecessors) for v in self._members}
        for (a, b, _), variable in self._before.items():
            if x[variable] > 0.5:
                waits_for[b].add(a)
        free = [(x[self._start[v]], v) for v, others in waits_for.items() if not others]
        heapq.heapify(free)
        order: list[int] = []
        while free:
            _, done = heapq.heappop(free)
            order.append(done)
            for v, others in waits_for.items():
                if done in others:
                    others.remove(done)
                    if not others:
                        heapq.heappush(free, (x[self._start[v]], v))
        if len(order) < len(self._members):
            raise ValueError("subtasks that take no time wait for each other in a circle")
        return order
