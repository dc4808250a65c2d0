"""Every problem as an RLlib multi-agent environment that stock algorithms take: see `register`.

This is the slow way (one episode at a time, agents one by one); `trainers.rollout` is the fast one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.tune.registry import register_env
from torch import Tensor

from envs.errors import InputError
from envs.pettingzoo import TeamParallelEnv
from envs.registry import PETTINGZOO_PREFIX, PROBLEMS, Scenario, make_scenario, make_simulator, scenario_from_dict
from envs.team import UNBOUNDED_CLIP, Field, TeamSimulator, TeamSpec

OBSERVATIONS = ("flat", "with_mask")
AgentDict = dict[Any, Any]  # agent to its own
PETTINGZOO = PETTINGZOO_PREFIX.rstrip(":")


class TeamMultiAgentEnv(MultiAgentEnv):
    """One episode at a time of any team simulator, one observation vector per agent, scaled for a stock network.

    Every agent gets the team's reward, so that RLlib's episode return is N times the team's. Agents that leave early
    terminate. Seeds are those of `envs.pettingzoo.TeamParallelEnv`.

    Args:
        simulator: With one episode (`num_envs` is 1).
        observation: "flat" for the scaled vector alone, which stock algorithms take as it is; they then do not know which
            choices are legal. "with_mask" for `{"observations", "action_mask"}` as RLlib's action-masking modules take it,
            the masks of all branches one after another.

    Raises:
        InputError: `observation` is neither.
    """

    def __init__(self, simulator: TeamSimulator, observation: str = "flat") -> None:
        if observation not in OBSERVATIONS:
            raise InputError(f"env_config observation = {observation!r}: expected one of {', '.join(OBSERVATIONS)}")
        self.team = TeamParallelEnv(simulator)
        self._with_mask = observation == "with_mask"
        self.metadata = dict(self.team.metadata)
        self.possible_agents = list(self.team.possible_agents)
        self.agents = list(self.team.possible_agents)
        self.observation_spaces = dict.fromkeys(self.agents, _observation_space(simulator.spec, self._with_mask))
        self.action_spaces = {agent: self.team.action_space(agent) for agent in simulator.spec.agents}
        super().__init__()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[AgentDict, AgentDict]:
        """Starts an episode; returns the agents' observations and infos."""
        _, infos = self.team.reset(seed=seed)
        self.agents = list(self.team.agents)
        return self._observations(infos), infos

    def step(self, action_dict: AgentDict) -> tuple[AgentDict, AgentDict, AgentDict, AgentDict, AgentDict]:
        """One step of all agents; observations, rewards, terminations, truncations and infos of those who took part."""
        _, rewards, terminated, truncated, infos = self.team.step(action_dict)
        self.agents = list(infos)  # RLlib counts those who left in this step as still there
        result = self.team.result
        assert result is not None  # there was a step
        terminated["__all__"] = bool(result.terminated[0])
        truncated["__all__"] = bool(result.truncated[0])
        return self._observations(infos), rewards, terminated, truncated, infos

    def close(self) -> None:
        """Closes the simulator."""
        self.team.close()

    def _observations(self, agents: AgentDict) -> AgentDict:
        result, spec = self.team.result, self.team.simulator.spec
        assert result is not None  # there was a reset
        vectors = scaled_vector(result.observation, spec)[0].cpu().numpy()
        mask = result.action_mask[0][:, spec.choice_exists(result.action_mask.device)].float().cpu().numpy()
        return {agent: self._observation(vectors[n], mask[n]) for n, agent in enumerate(spec.agents) if agent in agents}

    def _observation(self, vector: NDArray[np.float32], mask: NDArray[np.float32]) -> Any:
        return {"observations": vector, "action_mask": mask} if self._with_mask else vector


def _observation_space(spec: TeamSpec, with_mask: bool) -> spaces.Space[Any]:
    size = sum(math.prod(field.shape) * field.depth for field in spec.observation.values())
    vector = spaces.Box(-UNBOUNDED_CLIP, UNBOUNDED_CLIP, (size,), np.float32)
    if not with_mask:
        return vector
    return spaces.Dict({"observations": vector, "action_mask": spaces.Box(0.0, 1.0, (sum(spec.branches),), np.float32)})


def scaled_vector(observation: dict[str, Tensor], spec: TeamSpec) -> Tensor:
    """All fields one after another, scaled: `[E, N, *shape]` each to `[E, N, D]` float32."""
    E, N = next(iter(observation.values())).shape[:2]
    return torch.cat([_scaled(observation[name], field).reshape(E, N, -1) for name, field in spec.observation.items()], dim=-1)


def _scaled(values: Tensor, field: Field) -> Tensor:
    """About [0, 1] where the field has bounds; a category as one-hot in a last dimension, all 0 for "none" (-1)."""
    if field.scale == "category":
        return (values[..., None] == torch.arange(field.depth, device=values.device)).to(torch.float32)
    return field.scaled(values)


def register() -> None:
    """Makes `edgeflock/<problem>` known to RLlib for every problem, and `edgeflock/pettingzoo`.

    The `env_config` of `config.environment` holds `scenario`: the name of a preset (`"two-step"`; for `pettingzoo` the
    module, `"mpe2.simple_spread_v3"`) or a whole scenario as a dict; optionally `overrides`: fields of the preset to replace;
    and `observation`, see `TeamMultiAgentEnv`.
    """
    for problem in (*PROBLEMS, PETTINGZOO):
        register_env(f"edgeflock/{problem}", lambda env_config, problem=problem: make_env(problem, env_config))


def make_env(problem: str, env_config: dict[str, Any]) -> TeamMultiAgentEnv:
    """The environment that an `env_config` describes.

    Raises:
        InputError: The config has an unknown or missing key, or describes no scenario of the problem.
    """
    config = dict(env_config)
    scenario = _scenario(problem, config.pop("scenario", None), config.pop("overrides", {}))
    observation = config.pop("observation", "flat")
    if config:
        raise InputError(f"env_config: unknown key {min(config)!r}, expected one of observation, overrides, scenario")
    return TeamMultiAgentEnv(make_simulator(scenario), observation)


def _scenario(problem: str, wanted: Any, overrides: dict[str, Any]) -> Scenario:
    if isinstance(wanted, dict):
        scenario = scenario_from_dict({"problem": problem, **wanted, **overrides})
    elif isinstance(wanted, str):
        prefix = PETTINGZOO_PREFIX if problem == PETTINGZOO else f"{problem}/"
        scenario = make_scenario(prefix + wanted.removeprefix(prefix), overrides)
    else:
        raise InputError(f"env_config scenario = {wanted!r}: expected the name of a preset or a scenario as a dict")
    if scenario.problem != problem:
        raise InputError(f"env_config scenario: it is of the problem {scenario.problem!r}, expected {problem!r}")
    return scenario
