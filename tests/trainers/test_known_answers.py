"""Games whose solutions the papers state: does each learner find what it can represent, and only that?"""

import pytest
import torch

from envs.registry import make_simulator
from trainers.algorithms.team_algorithm import initialise_ray
from trainers.config import make_run_config
from trainers.train import build_algorithm

# Uniform exploration and one-step targets, as in the papers' own experiments.
GAME = [
    *("algorithm.epsilon_end=1.0", "algorithm.gamma=1.0", "algorithm.td_lambda=0.0", "algorithm.target_tau=0.02"),
    *("algorithm.lr=1e-3", "algorithm.standardise_rewards=false", "training.evaluation_interval=1000"),
]


def greedy_return(algorithm: str, game: str, iterations: int, seed: int, updates: int) -> float:
    """Return of the greedy joint policy after training."""
    torch.set_num_threads(1)
    initialise_ray(0)
    config = make_run_config(algorithm, f"games/{game}", seed, [*GAME, f"algorithm.updates={updates}"])
    learner = build_algorithm(config, make_simulator(config.scenario).spec)
    try:
        for _ in range(iterations):
            learner.train()
        return learner.evaluate()["return"]
    finally:
        learner.stop()


@pytest.mark.parametrize(("algorithm", "expected"), [("vdn", 7.0), ("qmix", 8.0), ("qplex", 8.0), ("idmac", 8.0)])
def test_two_step_game(algorithm: str, expected: float) -> None:
    """Rashid et al. 2018, Sec. 5: VDN settles for the safe 7, monotonic mixing and QPLEX reach 8."""
    assert greedy_return(algorithm, "two-step", iterations=140, seed=1, updates=4) == expected


@pytest.mark.parametrize(("algorithm", "finds_optimum"), [("vdn", False), ("qmix", False), ("qplex", True)])
def test_non_monotonic_matrix_game(algorithm: str, finds_optimum: bool) -> None:
    """Wang et al. 2021, Table 1: only QPLEX finds the 8 that is surrounded by -12."""
    assert (greedy_return(algorithm, "qplex-matrix", iterations=90, seed=1, updates=32) == 8.0) == finds_optimum
