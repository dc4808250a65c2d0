"""Episodes of a problem's expert that a learner is shown at first (Yao et al., "Enhancing LLM QoS Through Cloud-Edge
Collaboration", Algorithm 1)."""

from __future__ import annotations

import numpy as np
import torch

from envs.registry import Scenario, make_simulator
from envs.team import episode_seeds
from models.team_module import FILLED
from trainers.algorithms.policy_gradient import join_rows
from trainers.rollout import Expert, JointEpisodes, play_episodes

_STREAM = 20_250_418  # apart from the streams of runners


def play_demonstrations(scenario: Scenario, count: int, at_once: int, seed: int, device: str) -> JointEpisodes:
    """`count` joint episodes of the expert as rows, the same ones for the same `seed`, `at_once` of them in parallel."""
    stream = int(np.random.SeedSequence([seed, _STREAM]).generate_state(1, np.uint64)[0])
    parts = []
    for seeds in episode_seeds(stream, 0, count).split(at_once):
        simulator = make_simulator(scenario, len(seeds), device)
        parts.append(play_episodes(simulator, Expert(simulator), seeds.to(device), explore=False)[0])
        simulator.close()
    return join_rows(parts)


def demonstrations_in_round(first: int, least: int, learning_round: int) -> int:
    """Episodes that round u = 1, 2, … learns from besides its own: `first / u`, rounded down, 0 once it is below `least`
    (lines 8 to 15)."""
    count = first // learning_round
    return count if count >= least else 0


def steps_in(rows: JointEpisodes) -> int:
    """Environment steps that were played in joint rows."""
    return int(rows[FILLED].sum())


def draw(rows: JointEpisodes, count: int, rng: np.random.Generator) -> JointEpisodes:
    """`count` different ones of the episodes."""
    picked = torch.from_numpy(rng.permutation(len(rows[FILLED]))[:count])
    return {name: column[picked] for name, column in rows.items()}
