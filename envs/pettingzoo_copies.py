"""Copies of one PettingZoo parallel environment that are told and show everything through arrays.

Numpy only: this runs in worker processes too (`envs.pettingzoo_workers`), which need no torch.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.errors import InputError

DEFAULT_MAX_STEPS = 500
_UNBOUNDED = 1e30  # bounds beyond this are an environment's way of saying "none"


@dataclass(frozen=True)
class Recipe:
    """How a copy of the environment is made, in this process or another."""

    module: str
    kwargs: dict[str, Any]

    def make(self) -> Any:
        """A new environment.

        Raises:
            InputError: There is no such module, it makes no parallel environment, or it rejects the arguments.
        """
        # pygame greets on standard output, where programs that read ours do not expect it
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            package = self.module.partition(".")[0]
            message = _one_line(error)
            raise InputError(f"module {self.module!r}: {message} (is it installed? try: pip install {package})") from None
        make = getattr(module, "parallel_env", None)
        if not callable(make):
            raise InputError(f"module {self.module!r}: it has no function parallel_env, as PettingZoo's parallel API has")
        try:
            return make(**self.kwargs)
        except Exception as error:
            raise InputError(
                f"module {self.module!r}: parallel_env rejects kwargs {self.kwargs}: {_one_line(error)}"
            ) from error


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__


class _Agent:
    """Translates one agent's observations, masks and choices; the same for all copies."""

    def __init__(self, name: Any, observation_space: Any, action_space: Any) -> None:
        """Reads the agent's spaces.

        Raises:
            InputError: One of the spaces cannot be used.
        """
        self.name = name
        self.branches = _branches(name, action_space)
        self._action_space = action_space
        self._masked = isinstance(observation_space, spaces.Dict) and "action_mask" in observation_space.spaces
        self._inner = isinstance(observation_space, spaces.Dict) and "observation" in observation_space.spaces
        self._space = observation_space["observation"] if self._inner else _without_mask(observation_space)
        if not self._space.is_np_flattenable:
            raise InputError(f"agent {name!r}: observation space {observation_space} cannot be flattened to a vector")
        self.bounds: spaces.Box = spaces.flatten_space(self._space)
        self.size = self.bounds.shape[0]

    def observation(self, shown: Any) -> NDArray[np.float32]:
        """What the environment shows, as a vector of `size` numbers (categories one-hot)."""
        if self._inner:
            shown = shown["observation"]
        elif self._masked:
            shown = {key: value for key, value in shown.items() if key != "action_mask"}
        if isinstance(self._space, spaces.Box):
            return np.asarray(shown, dtype=np.float32).reshape(-1)
        return np.asarray(spaces.flatten(self._space, shown), dtype=np.float32)

    def mask(self, shown: Any, info: dict[str, Any]) -> list[NDArray[np.bool_]] | None:
        """Which choices of each branch the environment allows, or None where it does not say."""
        mask = shown["action_mask"] if self._masked else info.get("action_mask")
        if mask is None:
            return None
        flat = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, tuple) else np.ravel(mask)
        if flat.size != sum(self.branches):
            raise ValueError(f"agent {self.name!r}: action_mask has {flat.size} entries, expected {sum(self.branches)}")
        return np.split(flat.astype(np.bool_), np.cumsum(self.branches)[:-1])

    def action(self, choices: NDArray[np.int64]) -> Any:
        """`[H]` choices, counted from 0 and of which the agent has perhaps fewer, to the environment's action."""
        space = self._action_space
        if isinstance(space, spaces.Discrete):
            return int(space.start) + int(choices[0])
        return (choices[: len(self.branches)].reshape(space.nvec.shape) + space.start).astype(space.dtype)


def _branches(name: Any, space: Any) -> tuple[int, ...]:
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.reshape(-1))
    raise InputError(f"agent {name!r}: action space {space} cannot be used, expected Discrete or MultiDiscrete")


def _without_mask(space: Any) -> Any:
    if not isinstance(space, spaces.Dict):
        return space
    return spaces.Dict({key: part for key, part in space.spaces.items() if key != "action_mask"})


def _agents(env: Any) -> list[_Agent]:
    names = list(getattr(env, "possible_agents", ()))
    if not names:
        raise InputError(f"environment {env}: it has no possible_agents, as PettingZoo's parallel API has")
    return [_Agent(name, env.observation_space(name), env.action_space(name)) for name in names]


@dataclass(frozen=True)
class Layout:
    """Sizes that all copies share.

    Attributes:
        agents: Names, in the order of the arrays.
        branches: For each agent the choices of each of its branches; agents may differ.
        observation_size: D, of the agent that sees most.
        low, high: Bounds of all agents' observations together, with the 0 that pads them; infinite where there are none.
        state_size: S.
        own_state: Whether the environment has a global state of its own; else it is all agents' observations.
        max_steps: Steps after which an episode is truncated.
        team_reward: How the agents' rewards become the team's: their sum, or the sum divided by N (also when some have left).
    """

    agents: tuple[str, ...]
    branches: tuple[tuple[int, ...], ...]
    observation_size: int
    low: float
    high: float
    state_size: int
    own_state: bool
    max_steps: int
    team_reward: Literal["mean", "sum"]

    @property
    def num_branches(self) -> int:
        """H."""
        return max(len(branches) for branches in self.branches)

    @property
    def max_choices(self) -> int:
        """C."""
        return max(max(branches) for branches in self.branches)

    def choices(self) -> NDArray[np.bool_]:
        """`[N, H, C]`: True where the agent has the choice; in branches that it lacks, choice 0."""
        exists = np.zeros((len(self.agents), self.num_branches, self.max_choices), dtype=np.bool_)
        exists[:, :, 0] = True
        for agent, branches in enumerate(self.branches):
            for branch, count in enumerate(branches):
                exists[agent, branch, :count] = True
        return exists


def measure(env: Any, max_steps: int | None, team_reward: Literal["mean", "sum"]) -> Layout:
    """The layout of an environment, which is reset on the way.

    Raises:
        InputError: The environment has a space that cannot be used.
    """
    agents = _agents(env)
    size = max(agent.size for agent in agents)
    env.reset(seed=0)
    own_state = _state_size(env)
    return Layout(
        agents=tuple(str(agent.name) for agent in agents),
        branches=tuple(agent.branches for agent in agents),
        observation_size=size,
        low=_finite_or_infinite(min(0.0, *(float(agent.bounds.low.min(initial=0.0)) for agent in agents))),
        high=_finite_or_infinite(max(0.0, *(float(agent.bounds.high.max(initial=0.0)) for agent in agents))),
        state_size=own_state or size * len(agents),
        own_state=own_state is not None,
        max_steps=max_steps or getattr(env.unwrapped, "max_cycles", None) or DEFAULT_MAX_STEPS,
        team_reward=team_reward,
    )


def _state_size(env: Any) -> int | None:
    """Size of `env.state()`, None where there is none: many environments leave it out, each in its own way."""
    try:
        return int(np.asarray(env.state(), dtype=np.float32).size) or None
    except Exception:
        return None


def _finite_or_infinite(bound: float) -> float:
    return bound if abs(bound) < _UNBOUNDED else math.copysign(math.inf, bound)


@dataclass(frozen=True)
class Board:
    """The arrays through which copies are told and show everything; E rows, or a worker's share of them.

    Attributes:
        seeds: `[E]` int64, read by a reset.
        actions: `[E, N, H]` int64, read by a step.
        observation, state, mask, reward, terminated, truncated, alive: As in `envs.team.StepResult`, with one observation
            field `[E, N, D]`.
    """

    seeds: NDArray[np.int64]
    actions: NDArray[np.int64]
    observation: NDArray[np.float32]
    state: NDArray[np.float32]
    mask: NDArray[np.bool_]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    alive: NDArray[np.bool_]

    @staticmethod
    def over(layout: Layout, rows: int, memory: Any) -> Board:
        """The board of `rows` copies laid over a buffer of at least `Board.size(layout, rows)` bytes."""
        arrays, start = {}, 0
        for name, (shape, dtype) in _board_arrays(layout, rows).items():
            arrays[name] = np.frombuffer(memory, dtype, math.prod(shape), start).reshape(shape)
            start += _aligned(arrays[name].nbytes)
        return Board(**arrays)

    @staticmethod
    def size(layout: Layout, rows: int) -> int:
        """Bytes."""
        arrays = _board_arrays(layout, rows).values()
        return sum(_aligned(math.prod(shape) * np.dtype(dtype).itemsize) for shape, dtype in arrays)

    def part(self, first: int, end: int) -> Board:
        """The rows `first` to `end - 1`, as views."""
        return Board(**{name: array[first:end] for name, array in vars(self).items()})


def _board_arrays(layout: Layout, rows: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    N, H, C = len(layout.agents), layout.num_branches, layout.max_choices
    return {
        "seeds": ((rows,), np.int64),
        "actions": ((rows, N, H), np.int64),
        "observation": ((rows, N, layout.observation_size), np.float32),
        "state": ((rows, layout.state_size), np.float32),
        "mask": ((rows, N, H, C), np.bool_),
        "reward": ((rows,), np.float32),
        "terminated": ((rows,), np.bool_),
        "truncated": ((rows,), np.bool_),
        "alive": ((rows, N), np.bool_),
    }


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


class LocalCopies:
    """Copies of the environment in this process, one for each row of the board."""

    def __init__(self, recipe: Recipe, layout: Layout, board: Board) -> None:
        self.board, self._layout = board, layout
        self._envs = [recipe.make() for _ in board.seeds]
        self._agents = _agents(self._envs[0])
        self._choices = layout.choices()
        self._steps = np.zeros(len(self._envs), dtype=np.int64)
        self._weight = 1.0 / len(self._agents) if layout.team_reward == "mean" else 1.0

    def reset(self) -> None:
        """Starts an episode in every row from `board.seeds`."""
        self._steps[:] = 0
        board = self.board
        for array in (board.observation, board.reward, board.terminated, board.truncated):
            array[:] = 0
        for row, env in enumerate(self._envs):
            observations, infos = env.reset(seed=int(board.seeds[row]) & 0x7FFF_FFFF)  # numpy's old generator takes no more
            board.alive[row] = [agent.name in env.agents for agent in self._agents]
            self._show(row, observations, infos)

    def step(self) -> None:
        """Advances every unfinished row by `board.actions`; an illegal choice becomes the first legal one."""
        board = self.board
        choices = board.actions.clip(0, board.mask.shape[-1] - 1)
        legal = np.take_along_axis(board.mask, choices[..., None], -1)[..., 0]
        choices = np.where(legal, choices, board.mask.argmax(-1))
        board.reward[:] = 0
        for row in np.flatnonzero(~(board.terminated | board.truncated)):
            self._step_row(int(row), choices[row])

    def close(self) -> None:
        """Closes every environment."""
        while self._envs:
            self._envs.pop().close()

    def _step_row(self, row: int, choices: NDArray[np.int64]) -> None:
        env, alive = self._envs[row], self.board.alive[row]
        actions = {agent.name: agent.action(choices[n]) for n, agent in enumerate(self._agents) if alive[n]}
        observations, rewards, terminated, truncated, infos = env.step(actions)
        self._steps[row] += 1
        self.board.reward[row] = self._weight * sum(float(reward) for reward in rewards.values())
        self._settle(row, env, terminated, truncated)
        self._show(row, observations, infos)

    def _settle(self, row: int, env: Any, terminated: dict[Any, bool], truncated: dict[Any, bool]) -> None:
        """Who is left, and whether the episode is over."""
        board = self.board
        ended = np.array([bool(terminated.get(agent.name, False)) for agent in self._agents])
        cut = np.array([bool(truncated.get(agent.name, False)) for agent in self._agents]) & ~ended
        present = np.array([agent.name in env.agents for agent in self._agents]) & ~ended & ~cut
        if present.any():
            board.truncated[row] = self._steps[row] >= self._layout.max_steps
            board.alive[row] = present
            return
        board.truncated[row] = cut.any()
        board.terminated[row] = not cut.any()
        if cut.any():  # those who were cut off would have gone on: a learner bootstraps from what they see now
            board.alive[row] &= cut

    def _show(self, row: int, observations: dict[Any, Any], infos: dict[Any, dict[str, Any]]) -> None:
        """Writes what the agents see and may do. An agent of which the environment shows nothing keeps its last view."""
        board = self.board
        board.mask[row] = self._choices
        for n, agent in enumerate(self._agents):
            if not board.alive[row, n]:
                board.observation[row, n] = 0
                board.mask[row, n, :, 1:] = False
            elif agent.name in observations:
                shown = observations[agent.name]
                board.observation[row, n, : agent.size] = agent.observation(shown)
                self._write_mask(row, n, agent.mask(shown, infos.get(agent.name, {})))
        self._write_state(row)

    def _write_mask(self, row: int, n: int, mask: list[NDArray[np.bool_]] | None) -> None:
        for branch, legal in enumerate(mask or ()):
            self.board.mask[row, n, branch, : legal.size] = legal
            if not legal.any():  # environments say so of agents whose turn it is not: any choice will do
                self.board.mask[row, n, branch, 0] = True

    def _write_state(self, row: int) -> None:
        board, env = self.board, self._envs[row]
        if not self._layout.own_state:
            board.state[row] = board.observation[row].reshape(-1)
            return
        try:
            board.state[row] = np.asarray(env.state(), dtype=np.float32).reshape(-1)
        except Exception:  # some environments have no state left when all agents are gone: the last one stays
            if not (board.terminated[row] or board.truncated[row]):
                raise
