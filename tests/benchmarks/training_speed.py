"""Training from end to end: our presets against stock multi-agent PPO. `python -m tests.benchmarks.training_speed`.

A step is a step of the whole team. Ours: sampling, replay, updates, weights, and the evaluation that is due every ten
iterations, with the default presets. Stock: sampling and updates with RLlib's defaults of PPO (batches of 4,000 environment
steps, 30 epochs, minibatches of 128), one policy that all agents share. The target is 15 times for VDN and QMIX.

What an algorithm learns from a step is another matter: this measures machinery, not sample efficiency.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from envs.registry import make_simulator
from envs.rllib import register
from tests.benchmarks import measure
from trainers.algorithms.team_algorithm import initialise_ray
from trainers.config import make_run_config
from trainers.train import build_algorithm

TARGET = 15.0


def team_training(name: str, scenario: str, num_envs: int | None, iterations: int) -> Callable[[], int]:
    """One call is `iterations` iterations; the first updates are over."""
    overrides = [] if num_envs is None else [f"training.num_envs={num_envs}"]
    config = make_run_config(name, scenario, overrides=overrides)
    simulator = make_simulator(config.scenario, 1)
    algorithm = build_algorithm(config, simulator.spec)

    def train() -> int:
        before = algorithm.env_steps
        for _ in range(iterations):
            algorithm.train()
        return algorithm.env_steps - before

    algorithm.train()
    return train


def stock_training(scenario: str, lstm: bool, runners: int) -> Callable[[], int]:
    """One call is one iteration."""
    algorithm = measure.stock_ppo(scenario, lstm, runners).build_algo()
    total = 0

    def train() -> int:
        nonlocal total
        before, total = total, int(algorithm.train()["env_runners"]["num_env_steps_sampled_lifetime"])
        return total - before

    return train


def main() -> None:
    parser = measure.arguments("Environment steps per second of training: ours against stock multi-agent PPO.")
    parser.add_argument("--scenario", default="vehicular/v50-e6", help="problem/preset")
    parser.add_argument("--algorithms", nargs="+", default=["vdn", "qmix", "qplex", "idmac"])
    parser.add_argument("--num-envs", type=int, default=None, help="parallel episodes of ours; None is the preset's")
    parser.add_argument("--iterations", type=int, default=10, help="of ours in a repetition; one evaluation is due in ten")
    parser.add_argument("--peer-lstm", action="store_true", help="the stock network has an LSTM")
    parser.add_argument("--peer-runners", type=int, default=0, help="remote runners of stock PPO (RLlib's own default is 2)")
    parser.add_argument("--repetitions", type=int, default=3, help="a stock iteration takes a minute or two")
    options = parser.parse_args()
    initialise_ray(options.peer_runners)
    register()
    torch.set_num_threads(options.threads)

    peer = "stock PPO"
    subjects = {peer: stock_training(options.scenario, options.peer_lstm, options.peer_runners)}
    for name in options.algorithms:
        subjects[name] = team_training(name, options.scenario, options.num_envs, options.iterations)
    measured = measure.alternate(subjects, options.repetitions, deterministic=lambda name: name != peer)
    results = measure.summary(measured, [peer])
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "threads")}
    targeted = [name for name in ("vdn", "qmix") if name in results]
    text = measure.table(results, [peer]) + "\n\n" + measure.verdict(results, targeted, peer, TARGET)
    measure.show(options.json, "training speed", settings, results, text)


if __name__ == "__main__":
    main()
