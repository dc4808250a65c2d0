"""The exact optimum of the dag problem against an enumeration of everything, and annealing against both."""

import itertools

import numpy as np
import pytest

from envs.dag.instance import Instance, objective
from trainers.baselines.dag_optimum import optimum
from trainers.baselines.dag_search import Flat, step_order

TASKS, PLACES, LOCATIONS = 3, 3, 3


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
