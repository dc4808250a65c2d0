"""What a comparison of policies on the dag problem adds: normalised objectives and gaps to the exact optimum."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from envs.dag.instance import Instance
from envs.dag.scenario import DagScenario
from envs.dag.simulator import DagSimulator
from envs.errors import InputError
from trainers.baselines.dag_optimum import Optimum, optimum

NORMALISED_LOW, NORMALISED_HIGH = 0.1, 1.0
MAX_ROWS = 64

_solved: dict[tuple[str, bool, int], tuple[float, Optimum]] = {}
"""(scenario, stepwise, seed) to the time limit and what was found within it, for the life of the process."""


@dataclass(frozen=True)
class EpisodeOptima:
    """The optimum of every episode, in the order of the seeds.

    Attributes:
        stepwise: Whether only orders that the simulator's steps allow count, see `trainers.baselines.dag_optimum`.
    """

    episodes: tuple[Optimum, ...]
    stepwise: bool

    @property
    def objective(self) -> NDArray[np.float64]:
        """`[episodes]`: of the best schedule found."""
        return np.array([episode.objective for episode in self.episodes])

    @property
    def bound(self) -> NDArray[np.float64]:
        """`[episodes]`: no schedule is better."""
        return np.array([episode.bound for episode in self.episodes])

    @property
    def proved(self) -> NDArray[np.bool_]:
        """`[episodes]`: whether the best schedule found is proved to be optimal."""
        return np.array([episode.status == "optimal" for episode in self.episodes])

    def gaps(self, objective: ArrayLike, completed_tasks: ArrayLike, num_tasks: int) -> NDArray[np.float64]:
        """`[episodes]`: by which share a policy's objectives exceed the optimum; NaN where it left tasks incomplete.

        Args:
            objective, completed_tasks: `[episodes]`, the metrics of these names.
            num_tasks: Tasks of an episode.
        """
        complete = np.asarray(completed_tasks) >= num_tasks
        return np.where(complete, np.asarray(objective, dtype=np.float64) / self.objective - 1.0, np.nan)


def normalised(values: ArrayLike) -> NDArray[np.float64]:
    """`values` moved and stretched to [0.1, 1], as in the paper's Figs. 6 and 8.

    The smallest becomes 0.1 and the largest 1. Equal values all become 0.1; NaN stays NaN and does not count.
    """
    values = np.asarray(values, dtype=np.float64)
    known = values[np.isfinite(values)]
    if known.size == 0:
        return np.full(values.shape, np.nan)
    low, width = known.min(), np.ptp(known)
    shares = (values - low) / width if width > 0 else values - low
    return np.where(np.isfinite(values), NORMALISED_LOW + (NORMALISED_HIGH - NORMALISED_LOW) * shares, np.nan)


def optimality_gaps(
    scenario: DagScenario,
    seeds: Tensor,
    time_limit_s: float = 60.0,
    stepwise: bool | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> EpisodeOptima:
    """Solves the episodes of `seeds`; those that this process has solved before are not solved again.

    Args:
        seeds: `[episodes]` int64.
        time_limit_s: For each episode.
        stepwise: None takes what policies of this scenario can reach: the orders that steps allow with action masks, any
            order without (an agent can let others go first by an illegal choice).
        workers: Processes that solve at the same time.
        progress: Called with (episodes solved, episodes).

    Raises:
        InputError: The scenario is not one of the dag problem.
    """
    if not isinstance(scenario, DagScenario):
        raise InputError(f"scenario {scenario.name!r}: the optimum is computed for the dag problem only")
    stepwise = scenario.mask_invalid if stepwise is None else stepwise
    numbers, described = seeds.tolist(), scenario.model_dump_json(exclude={"name"})
    open_seeds = [seed for seed in numbers if not _is_solved((described, stepwise, seed), time_limit_s)]
    done = len(numbers) - len(open_seeds)
    solve = partial(optimum, time_limit_s=time_limit_s, stepwise=stepwise)
    for seed, found in zip(open_seeds, _map(solve, instances(scenario, seeds.new_tensor(open_seeds)), workers), strict=True):
        _solved[described, stepwise, seed] = (time_limit_s, found)
        done += 1
        if progress is not None:
            progress(done, len(numbers))
    return EpisodeOptima(tuple(_solved[described, stepwise, seed][1] for seed in numbers), stepwise)


def instances(scenario: DagScenario, seeds: Tensor) -> list[Instance]:
    """The episodes of `seeds [episodes]` as plain problems."""
    found: list[Instance] = []
    for batch in seeds.split(MAX_ROWS) if len(seeds) else ():
        simulator = DagSimulator(scenario, len(batch))
        simulator.reset(batch)
        found += [simulator.instance(row) for row in range(len(batch))]
    return found


def _is_solved(key: tuple[str, bool, int], time_limit_s: float) -> bool:
    """Whether the cache has the optimum, or what as much time could find."""
    if key not in _solved:
        return False
    limit_s, found = _solved[key]
    return found.status != "time limit" or limit_s >= time_limit_s


def _map(solve: Callable[[Instance], Optimum], problems: Sequence[Instance], workers: int) -> Iterator[Optimum]:
    """`solve` of each problem, in order, as they become known."""
    if workers <= 1 or len(problems) <= 1:
        yield from map(solve, problems)
        return
    # Processes that start afresh: a fork of one that has used threads can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(solve, problems)
