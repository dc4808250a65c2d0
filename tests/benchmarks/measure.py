"""What the benchmarks share: alternating measurements, stock RLlib's side, and how results are printed."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

HIDDEN = 64  # width of the networks on both sides: the default of `NetworkConfig`


@dataclass(frozen=True)
class Measured:
    """Environment steps (of the whole team), and what they took."""

    steps: int
    wall_s: float
    cpu_s: float

    @property
    def per_second(self) -> float:
        return self.steps / self.wall_s

    @property
    def per_cpu_second(self) -> float:
        return self.steps / self.cpu_s


def cpu_seconds() -> float:
    """Processor time of this process and all that it started."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:2])
        except psutil.Error:  # ended meanwhile
            continue
    return total


def alternate(
    subjects: dict[str, Callable[[], int]], repetitions: int, deterministic: Callable[[str], bool]
) -> dict[str, list[Measured]]:
    """Measures every subject `repetitions` times, one after the other in turns, so that a busy machine disturbs all alike.

    Args:
        subjects: Name to a function that does some work and returns the environment steps that it did.
        deterministic: Whether a subject runs in torch's deterministic mode, as RLlib sets it for the whole process where one
            algorithm has a seed. Stock RLlib has none, so it must not pay for ours.
    """
    measured: dict[str, list[Measured]] = {name: [] for name in subjects}
    names = list(subjects)
    for repetition in range(repetitions):
        for name in names if repetition % 2 == 0 else names[::-1]:
            torch.use_deterministic_algorithms(deterministic(name))
            wall, cpu = time.perf_counter(), cpu_seconds()
            steps = subjects[name]()
            measured[name].append(Measured(steps, time.perf_counter() - wall, cpu_seconds() - cpu))
    return measured


def summary(measured: dict[str, list[Measured]], peers: list[str]) -> dict[str, Any]:
    """Medians, and the ratios to each peer within every repetition: `[median, least, largest]`."""
    results: dict[str, Any] = {}
    for name, runs in measured.items():
        results[name] = {
            "env_steps_per_s": statistics.median(run.per_second for run in runs),
            "env_steps_per_cpu_s": statistics.median(run.per_cpu_second for run in runs),
            "env_steps": sum(run.steps for run in runs),
            "repetitions": len(runs),
        }
        for peer in peers if name not in peers else []:
            for key, rate in (("ratio", "per_second"), ("cpu_ratio", "per_cpu_second")):
                ratios = [getattr(mine, rate) / getattr(other, rate) for mine, other in zip(runs, measured[peer], strict=True)]
                results[name].setdefault(key, {})[peer] = [statistics.median(ratios), min(ratios), max(ratios)]
    return results


def table(results: dict[str, Any], peers: list[str]) -> str:
    """A Markdown table of `summary`."""
    lines = ["| | env-steps/s | per CPU second |" + "".join(f" x {peer} | x CPU |" for peer in peers)]
    lines.append("|---|---|---|" + "---|---|" * len(peers))
    for name, result in results.items():
        cells = [name, f"{result['env_steps_per_s']:,.0f}", f"{result['env_steps_per_cpu_s']:,.0f}"]
        for peer in peers:
            for key in ("ratio", "cpu_ratio"):
                middle, least, largest = result.get(key, {}).get(peer, [None] * 3)
                cells.append("" if middle is None else f"{middle:.1f} ({least:.1f} to {largest:.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(results: dict[str, Any], names: list[str], peer: str, target: float) -> str:
    """One line for each name: was the target met?"""
    lines = []
    for name in names:
        ratio, cpu_ratio = results[name]["ratio"][peer][0], results[name]["cpu_ratio"][peer][0]
        met = "met" if min(ratio, cpu_ratio) >= target else "MISSED"
        lines.append(f"target {target:g} x {peer}: {name} has {ratio:.1f} x ({cpu_ratio:.1f} x by CPU time): {met}")
    return "\n".join(lines)


def stock_ppo(scenario: str, lstm: bool, runners: int = 0, envs: int = 1) -> PPOConfig:
    """Stock multi-agent PPO with one policy that all agents share, on `problem/preset` as RLlib's MultiAgentEnv.

    Everything else is RLlib's default. The network is an MLP with two layers of `HIDDEN`, or one layer and an LSTM of `HIDDEN`.
    The MLP favours the peer: it is cheaper than our encoder with GRU, members and branches. So does that it ignores masks.
    """
    model = DefaultModelConfig(
        fcnet_hiddens=[HIDDEN] if lstm else [HIDDEN, HIDDEN], use_lstm=lstm, lstm_cell_size=HIDDEN, max_seq_len=60
    )
    problem, _, preset = scenario.partition("/")
    return (
        PPOConfig()
        .environment(f"edgeflock/{problem}", env_config={"scenario": preset})
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=envs)
        .multi_agent(policies={"shared"}, policy_mapping_fn=lambda agent, episode, **kwargs: "shared")
        .rl_module(model_config=model)
        .debugging(log_level="ERROR")
    )


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return models[0] if models else platform.processor()


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads, on both sides")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def show(as_json: bool, title: str, settings: dict[str, Any], results: dict[str, Any], text: str) -> None:
    """Prints the results for people or for machines."""
    described = {"benchmark": title, "machine": machine(), "settings": settings, "results": results}
    if as_json:
        print(json.dumps(described))
        return
    print(f"{title}\n")
    for part in ("machine", "settings"):
        print(f"{part}: " + ", ".join(f"{key} {value}" for key, value in described[part].items()))
    print(f"\n{text}")
