"""Personalised LLM service updating between vehicles, edges and the cloud (IDMAC)."""

from __future__ import annotations

from typing import Any

import torch

from envs.vehicular.scenario import VehicularScenario
from envs.vehicular.simulator import VehicularSimulator

SCENARIO = VehicularScenario
HEURISTICS = "trainers.baselines.vehicular"
PRESETS: dict[str, dict[str, Any]] = {
    "v50-e6": {"num_vehicles": 50},
    "v100-e6": {"num_vehicles": 100},
    "v200-e6": {"num_vehicles": 200},
    "v200-e12": {"num_vehicles": 200, "num_edges": 12, "area_m": (4_800.0, 3_600.0)},
}


def make_simulator(scenario: VehicularScenario, num_envs: int = 1, device: torch.device | str = "cpu") -> VehicularSimulator:
    """A simulator of `num_envs` parallel episodes."""
    return VehicularSimulator(scenario, num_envs, device)
