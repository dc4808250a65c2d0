"""Fine-grained offloading of LLM inference tasks whose subtasks form a directed acyclic graph (UCB-COMA)."""

from __future__ import annotations

from typing import Any

import torch

from envs.dag.scenario import DagScenario
from envs.dag.simulator import DagSimulator

SCENARIO = DagScenario
HEURISTICS = "trainers.baselines.dag"
REPORT = "trainers.baselines.dag_report"
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"mask_invalid": False, "cloud_round_trip_s": 0.0},
    "paper-masked": {"cloud_round_trip_s": 0.0},
    # a deadline that binds: with the paper's 3 s the return rewards cheap servers however long their queues, see README.md
    "t5": {"deadline_s": 1.5},
    "t20": {"num_tasks": 20},
    "t50": {"num_tasks": 50},
    "random-t10-n20": {"num_tasks": 10, "random_graphs": {"nodes": 20}},
}


def make_simulator(scenario: DagScenario, num_envs: int = 1, device: torch.device | str = "cpu") -> DagSimulator:
    """A simulator of `num_envs` parallel episodes."""
    return DagSimulator(scenario, num_envs, device)
