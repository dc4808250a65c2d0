"""The exact optimum of the dag problem against an enumeration of everything, and annealing against both."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from envs.dag.instance import Instance, objective, task_latency_s
from envs.registry import make_scenario
from envs.team import episode_seeds
from trainers.baselines.dag_comparison import instances
from trainers.baselines.dag_optimum import optimum
from trainers.baselines.dag_search import Flat, anneal, list_schedules, step_order

LOCATIONS = 3


def tiny(seed, sizes=None, weight=None, hosts_everywhere=0.6):
    """A random instance of up to 3 tasks of up to 3 subtasks on two edges and the cloud; edges are fast but few."""
    draw = np.random.default_rng(seed)
    sizes = sizes or [(3, 3), (2, 2, 2), (3, 2, 1), (2, 3), (1, 2, 3)][seed % 5]
    shape = (len(sizes), max(sizes), LOCATIONS)
    exists = np.arange(shape[1]) < np.array(sizes)[:, None]
    successors = np.triu(draw.random((*shape[:2], shape[1])) < 0.45, 1) & exists[:, :, None] & exists[:, None, :]
    allowed = (draw.random(shape) < hosts_everywhere) & exists[:, :, None]
    allowed[..., -1] = exists

    def times(low, high, *more):
        return draw.uniform(low, high, (*shape, *more)) * exists.reshape(*shape[:2], *[1] * (1 + len(more)))

    transfer_s = times(0.0, 0.1, LOCATIONS) * (1 - np.eye(LOCATIONS))
    return Instance(
        exists=exists,
        modality=np.where(exists, 0, -1),
        successors=successors,
        allowed=allowed,
        input_s=times(0.01, 0.1) + np.array([0.0, 0.0, 0.3]) * exists[..., None],
        compute_s=times(0.1, 0.5),
        transfer_s=transfer_s,
        return_s=times(0.0, 0.05),
        cost_usd=times(0.0, 0.1),
        deadline_s=3.0,
        weight=draw.choice([0.5, 0.5, 0.9, 0.2]) if weight is None else weight,
    )


def orders(flat):
    """Every order of acceptance with predecessors first."""
    first = [set(s.predecessors) for s in flat.subtasks]

    def extend(done):
        if len(done) == len(first):
            yield list(done)
        for v, needed in enumerate(first):
            if v not in done and needed <= set(done):
                yield from extend([*done, v])

    return list(extend([]))


def enumerate_all(flat, stepwise):
    """Every (order, where) that can be told apart."""
    everything = orders(flat)
    if stepwise:  # only the order within each task is a choice
        everything = [order for order in everything if order == sorted(order, key=lambda v: flat.subtasks[v].task)]
    for where in itertools.product(*(s.locations for s in flat.subtasks)):
        for order in everything:
            yield (step_order(flat, order, where) if stepwise else order), list(where)


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_optimum_is_that_of_an_enumeration(seed, stepwise):
    instance = tiny(seed)
    flat = Flat(instance)
    best = min(flat.value(order, where) for order, where in enumerate_all(flat, stepwise))
    found = optimum(instance, stepwise=stepwise, moves=0)  # no annealing: the programme has to find it
    assert found.status == "optimal"
    assert found.objective == pytest.approx(best, abs=2e-6)
    assert found.bound == pytest.approx(best, abs=2e-6)
    assert objective(instance, found.schedule) == pytest.approx(found.objective, abs=1e-9)


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("seed", range(15, 20))
def test_annealing_helps_and_changes_nothing(seed, stepwise):
    instance = tiny(seed)
    flat = Flat(instance)
    best = min(flat.value(order, where) for order, where in enumerate_all(flat, stepwise))
    order, where, value = anneal(flat, 500, seed=1, stepwise=stepwise)
    start = min(flat.value(step_order(flat, *s) if stepwise else s[0], s[1]) for s in list_schedules(flat))
    assert best - 1e-9 <= value <= start
    assert objective(instance, flat.schedule(order, where)) == pytest.approx(value, abs=1e-9)
    found = optimum(instance, stepwise=stepwise)
    assert found.status == "optimal"
    assert found.objective == pytest.approx(best, abs=2e-6)


def test_fixed_numbers_serve_one_after_the_other():
    # Two tasks of one subtask each on one edge: 1 s each, and nothing else. A wait before the first start is not counted.
    one = np.ones((2, 1), dtype=bool)
    instance = Instance(
        exists=one,
        modality=np.zeros((2, 1), dtype=np.int64),
        successors=np.zeros((2, 1, 1), dtype=bool),
        allowed=np.stack([one, one], 2),
        input_s=np.zeros((2, 1, 2)),
        compute_s=np.stack([np.ones((2, 1)), np.full((2, 1), 1.5)], 2),
        transfer_s=np.zeros((2, 1, 2, 2)),
        return_s=np.zeros((2, 1, 2)),
        cost_usd=np.zeros((2, 1, 2)),
        deadline_s=3.0,
        weight=0.5,
    )
    found = optimum(instance)
    assert found.objective == pytest.approx(1.0)
    assert sorted(found.schedule.start_s[:, 0].tolist()) == [0.0, 1.0]


def test_deadlines_exclude_what_is_late():
    for seed in range(4):
        instance = tiny(seed)
        flat = Flat(instance)
        candidates = [(flat.value(*pair), flat.schedule(*pair)) for pair in enumerate_all(flat, stepwise=True)]
        slowest = [float(task_latency_s(instance, schedule).max()) for _, schedule in candidates]
        best = int(np.argmin([value for value, _ in candidates]))
        tight = replace(instance, deadline_s=slowest[best] - 1e-3)
        allowed = [value for (value, _), worst in zip(candidates, slowest, strict=True) if worst <= tight.deadline_s]
        found = optimum(tight, stepwise=True, deadlines=True)
        if not allowed:
            assert (found.status, found.schedule, found.objective) == ("infeasible", None, math.inf)
            continue
        assert found.objective == pytest.approx(min(allowed), abs=2e-6)
        assert task_latency_s(tight, found.schedule).max() <= tight.deadline_s + 1e-6
    never = optimum(replace(tiny(0), deadline_s=1e-3), deadlines=True)
    assert (never.status, never.gap) == ("infeasible", math.inf)


def test_a_short_time_limit_still_gives_a_schedule_and_a_bound():
    instance = instances(make_scenario("dag/t20"), episode_seeds(0, 0, 1))[0]
    found = optimum(instance, time_limit_s=2.0, stepwise=True)
    assert found.status == "time limit"
    assert 0 < found.bound < found.objective
    assert found.gap == pytest.approx(1 - found.bound / found.objective)
    assert objective(instance, found.schedule) == pytest.approx(found.objective, abs=1e-9)


def test_the_same_instance_has_the_same_schedule_again():
    instance = tiny(1)
    assert optimum(instance, seed=3).schedule.order == optimum(instance, seed=3).schedule.order


def test_nothing_to_do():
    empty = tiny(0)
    empty = replace(empty, exists=np.zeros_like(empty.exists), allowed=np.zeros_like(empty.allowed))
    assert optimum(empty).objective == 0.0
