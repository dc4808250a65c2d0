"""Games whose solutions the papers state: does each learner find what it can represent, and only that?"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from envs.registry import make_simulator
from trainers.algorithms.team_algorithm import initialise_ray
from trainers.config import make_run_config
from trainers.train import build_algorithm

# Uniform exploration and one-step targets, as in the papers' own experiments.
VALUES = [
    *("algorithm.epsilon_end=1.0", "algorithm.gamma=1.0", "algorithm.td_lambda=0.0", "algorithm.target_tau=0.02"),
    *("algorithm.lr=1e-3", "algorithm.rewards=raw"),
]
POLICIES = {
    "mappo": ["algorithm.gamma=1.0"],
    "coma": ["algorithm.gamma=1.0", "algorithm.critic_lr=5e-3"],  # a critic that keeps ahead of the actors
    "ucb-coma": ["algorithm.gamma=1.0", "algorithm.ucb_steps=3000"],
    "maddpg": ["algorithm.gamma=1.0"],
}


def greedy_return(algorithm: str, game: str, iterations: int, seed: int, settings: list[str]) -> float:
    """Return of the greedy joint policy after training."""
    torch.set_num_threads(1)
    initialise_ray(0)
    config = make_run_config(algorithm, f"games/{game}", seed, [*settings, "training.evaluation_interval=1000"])
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
    assert greedy_return(algorithm, "two-step", iterations=140, seed=1, settings=[*VALUES, "algorithm.updates=4"]) == expected


@pytest.mark.parametrize(("algorithm", "finds_optimum"), [("vdn", False), ("qmix", False), ("qplex", True)])
def test_non_monotonic_matrix_game(algorithm: str, finds_optimum: bool) -> None:
    """Wang et al. 2021, Table 1: only QPLEX finds the 8 that is surrounded by -12."""
    settings = [*VALUES, "algorithm.updates=32"]
    assert (greedy_return(algorithm, "qplex-matrix", iterations=90, seed=1, settings=settings) == 8.0) == finds_optimum


@pytest.mark.parametrize(("game", "optimum"), [("agreement", 10.0), ("two-step", 8.0)])
@pytest.mark.parametrize("algorithm", ["mappo", "coma", "maddpg"])
def test_policy_gradients_find_the_best_joint_action(algorithm: str, game: str, optimum: float) -> None:
    assert greedy_return(algorithm, game, iterations=100, seed=1, settings=POLICIES[algorithm]) == optimum


@pytest.mark.parametrize(
    ("game", "optimum", "options"),
    [
        ("agreement", 10.0, ["network.diffusion.steps=5"]),
        ("two-step", 8.0, ["network.diffusion.schedule=vp", "network.diffusion.steps=5", "network.request_encoder.field=null"]),
    ],
)
def test_a_diffusion_actor_finds_the_best_joint_action(game: str, optimum: float, options: list[str]) -> None:
    settings = [*POLICIES["mappo"], *options, "network.diffusion.hidden=32"]
    assert greedy_return("mappo", game, iterations=40, seed=1, settings=settings) == optimum


@pytest.mark.parametrize(("demonstrations", "expected"), [(0, 5.0), (64, 11.0)])
def test_demonstrations_show_a_way_past_punishment(demonstrations: int, expected: float) -> None:
    """Claus and Boutilier 1998: who explores learns to be safe from the -30 beside the 11; an expert has shown the way."""
    settings = [*POLICIES["mappo"], f"algorithm.demonstrations={demonstrations}"]
    assert greedy_return("mappo", "climb", iterations=40, seed=1, settings=settings) == expected


def test_optimistic_exploration_solves_the_two_step_game() -> None:
    assert greedy_return("ucb-coma", "two-step", iterations=100, seed=1, settings=POLICIES["ucb-coma"]) == 8.0


def test_simple_spread_through_the_command_line(tmp_path: Path) -> None:
    """MPE's cooperative navigation by name: clearly above random (-27 in this horizon) after 20,000 steps."""
    environment = ["--env", "pettingzoo:mpe2.simple_spread_v3", "--set", "scenario.kwargs.max_cycles=25"]
    settings = ["algorithm.gamma=0.95", "algorithm.lr=1e-3", "algorithm.updates=12", "algorithm.target_tau=0.02"]
    options = [
        *(part for setting in [*settings, "algorithm.epsilon_steps=12000"] for part in ("--set", setting)),
        *("--env-steps", "20000", "--num-envs", "32", "--seed", "1", "--run", str(tmp_path / "run"), "--json"),
    ]
    command("train", "qmix", *environment, *options)
    policies = ["--policies", f"learned={tmp_path / 'run'},random", "--episodes", "128", "--out", str(tmp_path / "out")]
    rows = [json.loads(line) for line in command("compare", *environment, *policies, "--json").splitlines()]
    learned, rand = (next(row for row in rows if row.get("policy") == name) for name in ("learned", "random"))
    assert learned["return_difference"]["difference"]["low"] > 3.0
    assert learned["metrics"]["return"]["mean"]["low"] > rand["metrics"]["return"]["mean"]["high"]


def command(*arguments: str) -> str:
    """Runs `edgeflock` in a process of its own and returns what it printed."""
    done = subprocess.run([sys.executable, "-m", "trainers.cli", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
