"""Rewards brought to a size that networks learn well."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from models.team_module import FILLED, REWARD
from trainers.rollout import JointEpisodes


@dataclass
class RewardMoments:
    """Mean and deviation of all rewards that were sampled (Chan et al.'s update, by batches).

    Team rewards of these problems are a large constant plus small differences that the decisions make; a network that has to
    output the constant, times the horizon, learns the differences late.
    """

    count: float = 0.0
    mean: float = 0.0
    square: float = 0.0

    def add(self, rows: JointEpisodes) -> None:
        rewards = rows[REWARD][rows[FILLED]].to(torch.float64)
        count, mean = len(rewards), float(rewards.mean())
        apart, total = mean - self.mean, self.count + count
        self.square += float((rewards - mean).square().sum()) + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    def standardise(self, rows: JointEpisodes) -> JointEpisodes:
        """The rows with standardised rewards."""
        deviation = math.sqrt(self.square / max(self.count, 1.0)) or 1.0
        return {**rows, REWARD: (rows[REWARD] - self.mean) / deviation}

    def scale(self, rows: JointEpisodes) -> JointEpisodes:
        """The rows with rewards divided by their root mean square: unlike a shift, that leaves the best policy of an episode
        whose length depends on the decisions what it is."""
        size = math.sqrt(self.square / max(self.count, 1.0) + self.mean**2) or 1.0
        return {**rows, REWARD: rows[REWARD] / size}
