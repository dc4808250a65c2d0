"""Sampling: TeamEnvRunner against stock RLlib's MultiAgentEnvRunner. `python -m tests.benchmarks.sampling_speed`.

Both play the same scenario in this process with freshly made networks of the same width, explore, and count steps of
the whole team. The target is 30 times the stock runner with its default network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner

from envs.registry import make_simulator
from envs.rllib import register
from tests.benchmarks import measure
from trainers.algorithms import find_algorithm
from trainers.algorithms.team_algorithm import initialise_ray
from trainers.config import make_run_config
from trainers.rollout import TeamEnvRunner

TARGET = 30.0
LATE = 1_000_000  # environment steps of a training in which exploration has reached its end value


def team_runner(algorithm: str, scenario: str, num_envs: int) -> Callable[[], int]:
    """One call is one episode in each of `num_envs` rows."""
    run = make_run_config(algorithm, scenario)
    spec = make_simulator(run.scenario, 1).spec
    config = find_algorithm(algorithm).config_class()().team(run.scenario, spec, run.network, run.algorithm, LATE)
    runner = TeamEnvRunner(config=config.env_runners(num_envs_per_env_runner=num_envs).debugging(seed=0))

    def sample() -> int:
        _, figures = runner.sample(env_steps=LATE)
        return int(figures["steps"].sum())

    sample()
    return sample


def stock_runner(scenario: str, steps: int, lstm: bool, envs: int) -> Callable[[], int]:
    """One call is `steps` steps of the environment."""
    runner = MultiAgentEnvRunner(config=measure.stock_ppo(scenario, lstm, envs=envs))

    def sample() -> int:
        return sum(len(episode) for episode in runner.sample(num_timesteps=steps))

    sample()
    return sample


def main() -> None:
    parser = measure.arguments("Environment steps per second of sampling: ours against stock RLlib's.")
    parser.add_argument("--scenario", default="vehicular/v50-e6", help="problem/preset")
    parser.add_argument("--algorithm", default="vdn", help="whose network and exploration our runner uses")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[1, 16, 64, 256], help="parallel episodes of our runner")
    parser.add_argument("--peer-steps", type=int, default=180, help="steps of the stock runner in a repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    initialise_ray(0)
    register()
    torch.set_num_threads(options.threads)

    peers = {
        "stock, MLP": stock_runner(options.scenario, options.peer_steps, lstm=False, envs=1),
        "stock, LSTM": stock_runner(options.scenario, options.peer_steps, lstm=True, envs=1),
        "stock, MLP, 8 envs": stock_runner(options.scenario, options.peer_steps, lstm=False, envs=8),
    }
    ours = {f"team, {envs} envs": team_runner(options.algorithm, options.scenario, envs) for envs in options.num_envs}
    measured = measure.alternate({**peers, **ours}, options.repetitions, deterministic=lambda name: name in ours)
    results = measure.summary(measured, list(peers))
    settings: dict[str, Any] = {name: value for name, value in vars(options).items() if name not in ("json", "threads")}
    best = max(ours, key=lambda name: results[name]["env_steps_per_s"])
    default = "team, 64 envs" if "team, 64 envs" in ours else best
    text = (
        measure.table(results, list(peers)) + "\n\n" + measure.verdict(results, sorted({default, best}), "stock, MLP", TARGET)
    )
    measure.show(options.json, "sampling speed", settings, results, text)


if __name__ == "__main__":
    main()
