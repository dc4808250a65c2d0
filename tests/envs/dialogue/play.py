"""What the tests of the dialogue problem share."""

import torch

from envs import random
from envs.registry import make_scenario, make_simulator

HAND_TASKS = {
    "categories": {
        "ask": {
            "share": 1.0,
            "local_quality": 0.8,
            "cloud_quality": 1.0,
            "visual_gain": 0.5,
            "views": {"first-person": 1.0, "overhead": 0.5},
            "prompt_tokens": (40, 40),
            "answer_tokens": (60, 60),
        }
    }
}
HAND_ENDPOINTS = {
    "local": {"latency_s": 1.0, "history_s_per_token": 0.01},
    "cloud": {
        "usd": (0.001, 0.004, 0.006, 0.008),
        "latency_s": {"cable": (0.5, 2.0, 3.0, 4.0)},
        "history_s_per_token": 0.001,
        "history_usd_per_token": 1e-5,
        "view_tokens": 900,
    },
}
HAND = {
    "min_turns": 4,
    "max_turns": 4,
    "tasks": HAND_TASKS,
    "endpoints": HAND_ENDPOINTS,
    "network": "cable",
    "relevance_spread": 0.0,
    "local_difficulty": 0.0,
    "cloud_difficulty": 0.0,
    "quality_noise": 0.0,
    "latency_jitter": 0.0,
    "latency_budget_s": 6.0,
    "usd_budget": 0.02,
    "quality_scale": 2.0,
    "latency_scale_s": 10.0,
    "usd_scale": 0.01,
}
"""A conversation without anything random: every turn asks for the first-person view, and half for the one from above."""


def simulator(num_envs=1, preset="d1", **overrides):
    return make_simulator(make_scenario(f"dialogue/{preset}", overrides), num_envs)


def seeded_actions(mask, seeds, step):
    """Random legal actions that depend on the episode seed and the step only."""
    agents, choices = torch.arange(mask.shape[1])[:, None, None], torch.arange(mask.shape[3])
    score = random.uniform(seeds[:, None, None, None], 77, step, agents, choices)
    return score.masked_fill(~mask, -1.0).argmax(-1)


def play(sim, seeds):
    """All results of an episode of random legal actions, beginning with the reset's, and the actions between them."""
    results, actions = [sim.reset(seeds)], []
    for step in range(sim.spec.max_steps):
        actions.append(seeded_actions(results[-1].action_mask, seeds, step))
        results.append(sim.step(actions[-1]))
    return results, actions
