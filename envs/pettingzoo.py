"""Both ways between PettingZoo and the contract.

Any team simulator is a `ParallelEnv`, and any parallel environment with discrete actions is a team simulator.
"""

from __future__ import annotations

import math
import os
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv
from pydantic import Field as Description
from torch import Tensor

from envs.contract import field_bounds
from envs.errors import InputError
from envs.pettingzoo_copies import Board, Layout, LocalCopies, Recipe, measure
from envs.pettingzoo_workers import WorkerCopies
from envs.registry import Scenario
from envs.registry import make_scenario as _make_scenario
from envs.registry import make_simulator as _make_any_simulator
from envs.team import ActionHead, Field, Metric, StepResult, TeamSimulator, TeamSpec, episode_seeds

# ---------------------------------------------------------------------------------------------- a simulator as a ParallelEnv


class TeamParallelEnv(ParallelEnv):
    """One episode at a time of any team simulator, as a PettingZoo parallel environment.

    Every agent sees `{"observation": [D] float32, "action_mask": ...}`: all fields of the problem, flattened and one after
    another (`layout` says where), in physical units; and the mask in the form that `action_space(agent).sample` takes: `[C]`
    int8 for a single branch, a tuple with one such array for each branch else. Every agent gets the team's reward. The infos
    hold the problem's metrics of the step. The seed given to `reset` is the episode seed; episodes that follow without a
    seed are numbers 1, 2, ... of the list that belongs to the last seed given, or to a random one if none ever was.

    Attributes:
        result: What the simulator showed last (E = 1).
        layout: Field name to its place in the flat observation.
    """

    def __init__(self, simulator: TeamSimulator) -> None:
        if simulator.num_envs != 1:
            raise ValueError(f"a parallel environment is one episode: the simulator has {simulator.num_envs}, expected 1")
        self.simulator = simulator
        spec = simulator.spec
        self.metadata = {"name": f"edgeflock/{spec.scenario}", "render_modes": [], "is_parallelizable": True}
        self.render_mode = None
        self.possible_agents = list(spec.agents)
        self.agents: list[str] = []
        self.layout = flat_layout(spec)
        observation_space = _observation_space(spec)
        self.observation_spaces = dict.fromkeys(spec.agents, observation_space)
        # one object for each agent: spaces carry their own random generator
        self.action_spaces = {agent: action_space(spec) for agent in spec.agents}
        self.state_space = spaces.Box(-np.inf, np.inf, (spec.state_size,), np.float32)
        self.result: StepResult | None = None
        self._list_seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._episode = 0

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """The same for all agents."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """Discrete for a single branch, else MultiDiscrete."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; returns the agents' observations and infos. There are no options.

        Raises:
            InputError: The seed is not in [0, 2^63).
        """
        result = self.simulator.reset(self._next_seed(seed).to(self.simulator.device))
        self.result = result
        self.agents = [agent for agent, alive in zip(self.possible_agents, result.alive[0].tolist(), strict=True) if alive]
        return self._observations(self.agents), self._infos(self.agents)

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """One step of all agents; observations, rewards, terminations, truncations and infos of those who took part.

        Raises:
            InputError: An agent's action is missing or not in its action space.
        """
        result = self.simulator.step(self._joint_action(actions))
        self.result = result
        took_part = self.agents
        terminated, truncated = bool(result.terminated[0]), bool(result.truncated[0])
        alive = dict(zip(self.possible_agents, result.alive[0].tolist(), strict=True))
        self.agents = [agent for agent in took_part if alive[agent] and not (terminated or truncated)]
        reward = float(result.reward[0])
        return (
            self._observations(took_part),
            dict.fromkeys(took_part, reward),
            {agent: terminated or not alive[agent] for agent in took_part},
            {agent: truncated and alive[agent] for agent in took_part},
            self._infos(took_part),
        )

    def state(self) -> NDArray[np.float32]:
        """`[S]`, the global state."""
        return self._shown().state[0].cpu().numpy()

    def render(self) -> None:
        """There is nothing to see."""

    def close(self) -> None:
        """Closes the simulator."""
        self.simulator.close()

    def _next_seed(self, seed: int | None) -> Tensor:
        """`[1]`. Not simply the last seed plus one: vector environments are given successive seeds, and would overlap."""
        if seed is None:
            self._episode += 1
            return episode_seeds(self._list_seed, self._episode, 1)
        if not 0 <= seed < 2**63:
            raise InputError(f"seed = {seed}: expected an integer in [0, 2^63)")
        self._list_seed, self._episode = int(seed), 0
        return torch.tensor([self._list_seed])

    def _shown(self) -> StepResult:
        if self.result is None:
            raise RuntimeError("call reset() first")
        return self.result

    def _joint_action(self, actions: dict[str, Any]) -> Tensor:
        """`[1, N, H]`; agents that have left choose 0."""
        self._shown()
        joint = torch.zeros(1, len(self.possible_agents), self.simulator.spec.num_branches, dtype=torch.int64)
        for index, agent in enumerate(self.possible_agents):
            if agent in self.agents:
                joint[0, index] = self._choices(agent, actions)
        return joint.to(self.simulator.device)

    def _choices(self, agent: str, actions: dict[str, Any]) -> Tensor:
        if agent not in actions:
            raise InputError(f"no action for agent {agent!r}: expected one for each of {', '.join(self.agents)}")
        choices = np.asarray(actions[agent]).reshape(-1)
        branches = np.array(self.simulator.spec.branches)
        if (
            choices.shape != branches.shape
            or choices.dtype.kind not in "iu"
            or (choices < 0).any()
            or (choices >= branches).any()
        ):
            raise InputError(
                f"action of agent {agent!r} is {actions[agent]}: expected an element of {self.action_spaces[agent]}"
            )
        return torch.from_numpy(choices.astype(np.int64))

    def _observations(self, agents: list[str]) -> dict[str, dict[str, Any]]:
        result, spec = self._shown(), self.simulator.spec
        flat = flatten(result.observation, spec)[0].cpu().numpy()
        legal = result.action_mask[0].cpu().numpy().astype(np.int8)
        shown = {}
        for agent in agents:
            index = self.possible_agents.index(agent)
            parts = tuple(legal[index, branch, :choices] for branch, choices in enumerate(spec.branches))
            shown[agent] = {"observation": flat[index], "action_mask": parts if len(parts) > 1 else parts[0]}
        return shown

    def _infos(self, agents: list[str]) -> dict[str, dict[str, float]]:
        metrics = {name: float(value[0]) for name, value in self._shown().metrics.items()}
        return {agent: dict(metrics) for agent in agents}


def parallel_env(scenario: str = "games/two-step", **overrides: Any) -> TeamParallelEnv:
    """A scenario by name as a PettingZoo environment, made as PettingZoo's own modules make theirs.

    Raises:
        InputError: The name is unknown, or an override does not fit.
    """
    return TeamParallelEnv(_make_any_simulator(_make_scenario(scenario, overrides)))


def flat_layout(spec: TeamSpec) -> dict[str, slice]:
    """Where each field lies in the flat observation."""
    layout, start = {}, 0
    for name, field in spec.observation.items():
        layout[name] = slice(start, start + math.prod(field.shape))
        start = layout[name].stop
    return layout


def flatten(observation: dict[str, Tensor], spec: TeamSpec) -> Tensor:
    """All fields one after another: `[E, N, *shape]` each to `[E, N, D]` float32."""
    return torch.cat(
        [observation[name].reshape(*observation[name].shape[:2], -1).to(torch.float32) for name in spec.observation], dim=-1
    )


def action_space(spec: TeamSpec) -> spaces.Discrete | spaces.MultiDiscrete:
    """An agent's action space."""
    return spaces.Discrete(spec.branches[0]) if spec.num_branches == 1 else spaces.MultiDiscrete(list(spec.branches))


def _observation_space(spec: TeamSpec) -> spaces.Dict:
    bounds = np.concatenate([np.tile(field_bounds(field), (math.prod(field.shape), 1)) for field in spec.observation.values()])
    low, high = bounds.astype(np.float32).T
    masks = tuple(spaces.MultiBinary(choices) for choices in spec.branches)
    mask: spaces.Space[Any] = masks[0] if len(masks) == 1 else spaces.Tuple(masks)
    return spaces.Dict({"observation": spaces.Box(low, high, dtype=np.float32), "action_mask": mask})


# ---------------------------------------------------------------------------------------------- a ParallelEnv as a simulator


class PettingZooScenario(Scenario):
    """Any PettingZoo parallel environment with discrete actions, its agents taken as one team."""

    problem: Literal["pettingzoo"] = "pettingzoo"
    module: str = Description(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$",
        description="Import path of a module with a function parallel_env, for example mpe2.simple_spread_v3",
    )
    kwargs: dict[str, Any] = Description(default={}, description="Arguments of parallel_env")
    max_steps: int | None = Description(
        default=None,
        ge=1,
        description="Steps after which an episode is truncated; null: the environment's max_cycles, else 500",
    )
    team_reward: Literal["mean", "sum"] = Description(
        default="mean", description="How the agents' rewards become the team's; the mean is over all agents, present or not"
    )
    workers: int = Description(
        default=1,
        ge=0,
        le=1024,
        description="Processes that share the copies; 1: the process itself; 0: one for each processor",
    )
    timeout_s: float = Description(default=120.0, gt=0, description="Longest wait for a worker process (s)")


SCENARIO = PettingZooScenario
PRESETS: dict[str, dict[str, Any]] = {}


class PettingZooSimulator(TeamSimulator):
    """Copies of a PettingZoo environment behind the contract, on the CPU and one by one: as fast as the environment is.

    Observations are one field: each agent's, flattened (categories one-hot) and padded with zeros to the largest. Agents with
    fewer choices or branches than others are padded through the mask, and an illegal choice becomes the first legal one. The
    global state is the environment's own or else all observations together. An agent that leaves early is no longer `alive`;
    when all have left, the row is truncated if the environment said so of any of the last ones, else terminated. The
    environment is seeded with the low 31 bits of the episode seed.
    """

    def __init__(self, scenario: PettingZooScenario, num_envs: int, device: torch.device) -> None:
        """Makes the copies.

        Raises:
            InputError: There is no such environment, it rejects its arguments, or it has spaces that cannot be used.
            RuntimeError: A worker process could not start.
        """
        self.num_envs, self.device = num_envs, device
        recipe = Recipe(scenario.module, scenario.kwargs)
        env = recipe.make()
        try:
            layout = measure(env, scenario.max_steps, scenario.team_reward)
        finally:
            env.close()
        self.spec = _spec(scenario, layout)
        self._copies: LocalCopies | WorkerCopies
        workers = min(scenario.workers or _processors(), num_envs)
        if workers > 1:
            self._copies = WorkerCopies(recipe, layout, num_envs, workers, scenario.timeout_s)
        else:
            memory = bytearray(Board.size(layout, num_envs))
            self._copies = LocalCopies(recipe, layout, Board.over(layout, num_envs, memory))

    def reset(self, seeds: Tensor) -> StepResult:
        """Starts an episode in every copy, see `TeamSimulator.reset`."""
        self._copies.board.seeds[:] = seeds.cpu().numpy()
        self._copies.reset()
        return self._show()

    def step(self, actions: Tensor) -> StepResult:
        """Steps every unfinished copy, see `TeamSimulator.step`.

        Raises:
            RuntimeError: A worker process failed, died or did not answer in time.
        """
        self._copies.board.actions[:] = actions.cpu().numpy()
        self._copies.step()
        return self._show()

    def close(self) -> None:
        """Closes the environments and ends the workers."""
        self._copies.close()

    def _show(self) -> StepResult:
        board = self._copies.board

        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(self.device, copy=True)

        return StepResult(
            observation={"observation": tensor(board.observation)},
            state=tensor(board.state),
            action_mask=tensor(board.mask),
            reward=tensor(board.reward),
            terminated=tensor(board.terminated),
            truncated=tensor(board.truncated),
            alive=tensor(board.alive),
            metrics={"reward": tensor(board.reward)},
        )


def _spec(scenario: PettingZooScenario, layout: Layout) -> TeamSpec:
    widest = layout.choices().sum(-1).max(0).tolist()  # [H], over agents
    if len(set(widest)) == 1:
        heads: tuple[ActionHead, ...] = (ActionHead("action", widest[0], count=len(widest)),)
    else:
        heads = tuple(ActionHead(f"action_{branch}", choices) for branch, choices in enumerate(widest))
    return TeamSpec(
        problem=scenario.problem,
        scenario=scenario.name,
        agents=layout.agents,
        observation={"observation": Field((layout.observation_size,), layout.low, layout.high)},
        heads=heads,
        state_size=layout.state_size,
        max_steps=layout.max_steps,
        metrics={"return": Metric("reward", None, better="higher", description="team reward of the episode")},
    )


def _processors() -> int:
    """Those that this process may use: fewer than the machine has inside a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_simulator(scenario: PettingZooScenario, num_envs: int, device: torch.device) -> PettingZooSimulator:
    """A simulator of `num_envs` copies of the environment."""
    return PettingZooSimulator(scenario, num_envs, device)
