"""Multi-turn conversations on devices that route between a local model and a paid cloud model under budgets."""

from __future__ import annotations

from typing import Any

import torch

from envs.dialogue.scenario import DialogueScenario
from envs.dialogue.simulator import DialogueSimulator
from envs.dialogue.tables import PAPER

SCENARIO = DialogueScenario
HEURISTICS = "trainers.baselines.dialogue"
REPORT = "trainers.baselines.dialogue_report"
PRESETS: dict[str, dict[str, Any]] = {
    "d1": {"num_devices": 1},
    "d8": {},
    "d64": {"num_devices": 64},
    "d1-wired": {"num_devices": 1, "network": "wired"},
    "d1-wifi": {"num_devices": 1, "network": "wifi"},
    "d1-5g": {"num_devices": 1, "network": "5g"},
    "d1-4g": {"num_devices": 1, "network": "4g"},
    "paper": {"num_devices": 1, "endpoints": PAPER.model_dump(mode="json"), "mask_invalid": False},
}


def make_simulator(scenario: DialogueScenario, num_envs: int = 1, device: torch.device | str = "cpu") -> DialogueSimulator:
    """A simulator of `num_envs` parallel episodes."""
    return DialogueSimulator(scenario, num_envs, device)
