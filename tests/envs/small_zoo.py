"""A small parallel environment with everything unusual that PettingZoo allows, for `test_pettingzoo.py`.

It is a module of its own because worker processes import it by name.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Leaving(ParallelEnv):
    """Three different agents, one of which leaves after two steps; the others see the clock and the seed.

    * `wide` acts with MultiDiscrete([3, 2]) and sees an image,
    * `brief` acts with Discrete(2) counted from 5, sees a category, and leaves after 2 steps,
    * `masked` acts with Discrete(4), of which it may not choose the clock's number, and sees two numbers.

    After 4 steps `wide` is truncated, and `masked` is too or (with `goal`) has terminated. The reward of each agent is its
    action, so that tests see what arrived.
    """

    metadata: dict[str, Any] = {"name": "leaving"}  # noqa: RUF012 - PettingZoo's own form
    possible_agents: list[str] = ["wide", "brief", "masked"]  # noqa: RUF012

    def __init__(
        self, goal: bool = False, raise_at: int = -1, exit_at: int = -1, sleep_at: int = -1, closed_file: str = ""
    ) -> None:
        self.goal, self.raise_at, self.exit_at, self.sleep_at = goal, raise_at, exit_at, sleep_at
        self.closed_file = closed_file
        self._observation_spaces = {
            "wide": spaces.Box(0, 255, (2, 2, 1), np.uint8),
            "brief": spaces.Discrete(3),
            "masked": spaces.Dict(
                {"observation": spaces.Box(-1, 9, (2,), np.float64), "action_mask": spaces.Box(0, 1, (4,), np.int8)}
            ),
        }
        self._action_spaces = {
            "wide": spaces.MultiDiscrete([3, 2]),
            "brief": spaces.Discrete(2, start=5),
            "masked": spaces.Discrete(4),
        }

    def observation_space(self, agent):
        return self._observation_spaces[agent]

    def action_space(self, agent):
        return self._action_spaces[agent]

    def reset(self, seed=None, options=None):
        self.clock, self.noise = 0, int(np.random.default_rng(seed).integers(256))
        self.agents = list(self.possible_agents)
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions):
        self.clock += 1
        self._misbehave()
        assert set(actions) == set(self.agents)
        for agent, action in actions.items():
            assert self.action_space(agent).contains(action), f"{agent}: {action!r}"
        acting = self.agents
        rewards = {agent: float(np.dot(np.atleast_1d(actions[agent]), [10, 1][-np.size(actions[agent]) :])) for agent in acting}
        over = self.clock == 4
        terminated = {
            agent: (agent == "brief" and self.clock == 2) or (agent == "masked" and over and self.goal) for agent in acting
        }
        truncated = {agent: over and not terminated[agent] for agent in acting}
        observations = self._observations()
        self.agents = [agent for agent in acting if not (terminated[agent] or truncated[agent])]
        return observations, rewards, terminated, truncated, {agent: {} for agent in acting}

    def close(self):
        """Leaves a file behind, so that a test sees it from another process."""
        if self.closed_file:
            Path(self.closed_file).touch()

    def _misbehave(self):
        if self.clock == self.raise_at:
            raise ArithmeticError("a bug in the environment")
        if self.clock == self.exit_at:
            os._exit(7)
        if self.clock == self.sleep_at:
            time.sleep(60)

    def _observations(self):
        allowed = np.ones(4, np.int8)
        allowed[self.clock % 4] = 0
        shown = {
            "wide": np.array([self.noise, self.clock, 0, 255], np.uint8).reshape(2, 2, 1),
            "brief": self.clock % 3,
            "masked": {"observation": np.array([-1.0, self.clock]), "action_mask": allowed},
        }
        return {agent: shown[agent] for agent in self.agents}


class Stateful(Leaving):
    """With a global state, a larger limit of its own and info masks that forbid everything."""

    max_cycles = 3

    def state(self):
        if not self.agents:
            raise RuntimeError("nobody is left")
        return np.array([[self.clock, self.noise]])

    def step(self, actions):
        *rest, infos = super().step(actions)
        infos = {agent: ({"action_mask": np.zeros(5)} if agent == "wide" else {}) for agent in infos}
        return *rest, infos


class OddSpace(Leaving):
    """An observation that is no vector."""

    def observation_space(self, agent):
        return spaces.Graph(spaces.Discrete(2), spaces.Discrete(2))


class Nobody(Leaving):
    possible_agents: list[str] = []  # noqa: RUF012


def parallel_env(kind: str = "Leaving", **kwargs: Any) -> Leaving:
    return {"Leaving": Leaving, "Stateful": Stateful, "OddSpace": OddSpace, "Nobody": Nobody}[kind](**kwargs)
