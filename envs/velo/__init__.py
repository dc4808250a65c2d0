"""Edge servers that answer from a vector store, augment the prompt with it, or ask a cloud LLM that they share (VELO)."""

from __future__ import annotations

from typing import Any

import torch

from envs.velo.scenario import VeloScenario
from envs.velo.simulator import VeloSimulator

SCENARIO = VeloScenario
HEURISTICS = "trainers.baselines.velo"
REPORT = "trainers.baselines.velo_report"
PRESETS: dict[str, dict[str, Any]] = {
    "n3": {},
    "n5": {"num_servers": 5, "llm": {"slots": 4}},
    "n10": {"num_servers": 10, "llm": {"slots": 8}},
    "n3-test": {"test": "both"},
    "n3-all": {"test": "both", "offloading": "all"},
    "n5-test": {"num_servers": 5, "llm": {"slots": 4}, "test": "both"},
    "n10-test": {"num_servers": 10, "llm": {"slots": 8}, "test": "both"},
    "ternary": {"action_space": "ternary"},
    "ternary-test": {"action_space": "ternary", "test": "both"},
    "large": {"corpus": {"questions": 30_000, "new_groups": 1_200}},
    "text": {"corpus": {"source": "text"}},
    "text-test": {"corpus": {"source": "text"}, "test": "both"},
    "paper": {"corpus": {"width": 768}, "initial_unrelated": 1.0, "mask_invalid": False},
}


def make_simulator(scenario: VeloScenario, num_envs: int = 1, device: torch.device | str = "cpu") -> VeloSimulator:
    """A simulator of `num_envs` parallel episodes."""
    return VeloSimulator(scenario, num_envs, device)
