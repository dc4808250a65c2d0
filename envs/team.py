"""The contract that every problem fulfils: one simulator of many parallel team episodes.

Dimensions used in every shape of this project:

    E  parallel episodes          N  agents of the team
    H  action heads of an agent   C  choices of the widest head
    S  size of the global state   T  steps of an episode
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

UNBOUNDED_CLIP = 1e4
"""Largest magnitude that a network sees of a field without bounds: what networks survive and float16 holds."""


@dataclass(frozen=True)
class Field:
    """One named part of an agent's observation, in physical units.

    Networks do the scaling (`scaled`), by `scale`, `low` and `high`, so that a policy behind a URL is fed with the quantities
    that an engineer measures.

    Attributes:
        shape: Shape for one agent: the field's tensor is `[E, N, *shape]`, float32 (int64 where categorical).
        low, high: Bounds. For a category, `low` is -1 where "none" can occur, else 0, and `high` the largest index. A field
            with an infinite bound counts as unbounded: networks see it as it is, only clipped to +-`UNBOUNDED_CLIP`.
        unit: SI unit, `"1"` where there is none.
        scale: How a network should see it: `linear` in [low, high], `log` for quantities that span decades (log1p in units of
            `low`, which must then be the smallest value that matters, above 0; the values may be 0), `category` as one-hot,
            `adjacency` as the edges between the members of its entity (`[members, members]`, 1 where the column's member
            depends on the row's).
        entity: Name of the set whose members the first dimension of `shape` counts (`"request"`), or `None`.
            Fields of one entity are encoded together, member by member. Where there are fewer members than places, the empty
            places come with category -1 (`low=-1`) and 0 in the other fields.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    unit: str = "1"
    scale: Literal["linear", "log", "category", "adjacency"] = "linear"
    entity: str | None = None
    description: str = ""

    @property
    def depth(self) -> int:
        """Numbers that a network reads for one number of the field: the one-hot's length for a category, else 1."""
        return int(self.high) + 1 if self.scale == "category" else 1

    def scaled(self, values: Tensor) -> Tensor:
        """Values of any shape, float32, in about [0, 1]; categories stay indices, unbounded fields are clipped only."""
        if self.scale == "category":
            return values
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return values.clamp(-UNBOUNDED_CLIP, UNBOUNDED_CLIP)
        if self.scale == "log":
            return torch.log1p(values / self.low) / math.log1p(self.high / self.low)
        return (values - self.low) / ((self.high - self.low) or 1.0)


@dataclass(frozen=True)
class ActionHead:
    """`count` equal branches of an agent's action, each with `choices` values.

    Attributes:
        entity: Where the branches belong one by one to the members of an entity (see `Field.entity`), its name.
        labels: A name for each choice (for people and for HTTP clients); empty means the numbers themselves.
        members: Where a choice is a (member, option) pair of an entity, its name; the pairs are listed member by member.
    """

    name: str
    choices: int
    count: int = 1
    entity: str | None = None
    labels: tuple[str, ...] = ()
    members: str | None = None


@dataclass(frozen=True)
class Metric:
    """A figure of an episode, made from the per-step sums that `StepResult.metrics` holds.

    The value is `sum over steps of numerator / sum over steps of denominator`. `denominator=None` is the plain sum over the
    episode, `denominator="steps"` the mean over its steps.
    """

    numerator: str
    denominator: str | None = None
    unit: str = "1"
    better: Literal["higher", "lower", "neither"] = "neither"
    description: str = ""


@dataclass(frozen=True)
class TeamSpec:
    """What a policy, a learner or a server has to know of a problem before the first step.

    Attributes:
        max_steps: Longest possible episode.
        positions: Where the agents stand, in metres (one pair each), for problems that have a map; else empty.
    """

    problem: str
    scenario: str
    agents: tuple[str, ...]
    observation: dict[str, Field]
    heads: tuple[ActionHead, ...]
    state_size: int
    max_steps: int
    metrics: dict[str, Metric] = field(default_factory=dict)
    positions: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for name, described in self.observation.items():
            if described.scale == "log" and described.low <= 0:
                raise ValueError(
                    f"observation field {name!r} is logarithmic with low = {described.low:g}: expected more than 0, "
                    f"the smallest value that matters"
                )
        entities = {f.entity: f.shape[0] for f in self.observation.values() if f.entity}
        for head in self.heads:
            if head.entity is not None and entities.get(head.entity) != head.count:
                raise ValueError(
                    f"action head {head.name!r} has {head.count} branches for the entity {head.entity!r}, "
                    f"whose observation has {entities.get(head.entity)} members"
                )
            if head.members is not None and (head.count != 1 or head.choices % entities.get(head.members, head.choices + 1)):
                raise ValueError(
                    f"action head {head.name!r} has {head.count} branches of {head.choices} choices: expected one branch whose "
                    f"choices are the same number for each of the {entities.get(head.members)} members of {head.members!r}"
                )

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self.agents)

    @property
    def branches(self) -> tuple[int, ...]:
        """Number of choices of each of the H branches, in the order of the action vector."""
        return tuple(h.choices for h in self.heads for _ in range(h.count))

    @property
    def num_branches(self) -> int:
        """H."""
        return sum(h.count for h in self.heads)

    @property
    def max_choices(self) -> int:
        """C."""
        return max(h.choices for h in self.heads)

    def choice_exists(self, device: torch.device | str = "cpu") -> Tensor:
        """`[H, C]` bool: False where a branch has fewer than C choices. The loosest possible action mask."""
        sizes = torch.tensor(self.branches, device=device)
        return torch.arange(self.max_choices, device=device) < sizes[:, None]


@dataclass
class StepResult:
    """What the simulator shows after a reset or a step. The tensors belong to the caller.

    Attributes:
        observation: Field name to `[E, N, *shape]`.
        state: `[E, S]` float32, the global state for centralised training.
        action_mask: `[E, N, H, C]` bool, True where legal. Every branch has at least one legal choice.
        reward: `[E]` float32, the team's reward for the step (0 after a reset).
        terminated, truncated: `[E]` bool. Once either is True the row is finished: it idles, with reward 0, until reset.
        alive: `[E, N]` bool, False for agents that left the episode early; they have one legal choice (0) in each branch.
        metrics: Name to `[E]` float32, sums over this step (see `Metric`).
        agent_reward: `[E, N]` float32, the parts of `reward` that belong to single agents, where a problem knows them.
    """

    observation: dict[str, Tensor]
    state: Tensor
    action_mask: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    alive: Tensor
    metrics: dict[str, Tensor]
    agent_reward: Tensor | None = None

    @property
    def finished(self) -> Tensor:
        """`[E]` bool."""
        return self.terminated | self.truncated


class TeamSimulator(ABC):
    """Many copies of one scheduling problem, advanced together as tensors.

    An episode is a function of (scenario, episode seed, actions) alone: the same seed gives the same episode, bit for bit on
    one device, whatever `num_envs` is and whichever row it runs in (`envs.random` is how). Nothing in `step` loops in
    Python over episodes, agents or requests.
    """

    spec: TeamSpec
    num_envs: int
    device: torch.device

    @abstractmethod
    def reset(self, seeds: Tensor) -> StepResult:
        """Starts a new episode in every row.

        Args:
            seeds: `[E]` int64, the episode seed of each row.
        """

    @abstractmethod
    def step(self, actions: Tensor) -> StepResult:
        """Advances every unfinished row by one step.

        Args:
            actions: `[E, N, H]` int64, within each branch's choices. What an illegal choice (mask False) does is the
                problem's to say; it never corrupts the episode.
        """

    def expert_actions(self) -> Tensor:
        """What an expert who knows the simulator's inside would do now in every row, `[E, N, H]` int64, legal.

        A problem with an expert overrides it; demonstrations are made of its episodes.
        """
        raise NotImplementedError(f"{self.spec.scenario} has no expert")

    @classmethod
    def has_expert(cls) -> bool:
        """Whether the problem has one."""
        return cls.expert_actions is not TeamSimulator.expert_actions

    def close(self) -> None:  # noqa: B027 - most simulators hold nothing that needs closing
        """Frees what the simulator holds outside torch."""


def random_actions(action_mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A uniformly random legal choice in every branch: `[..., H, C]` bool to `[..., H]` int64."""
    scores = torch.rand(action_mask.shape, generator=generator, device=action_mask.device)
    return scores.masked_fill(~action_mask, -1.0).argmax(-1)


def episode_seeds(run_seed: int, first: int, count: int) -> Tensor:
    """`[count]` int64 distinct episode seeds: numbers `first …` of the endless list that belongs to `run_seed`.

    Lists of different run seeds do not overlap in practice (hashed from 63 bits).
    """
    base = np.random.SeedSequence(run_seed).generate_state(1, np.uint64)[0] >> np.uint64(2)
    return (torch.arange(first, first + count, dtype=torch.int64) + int(base)) & 0x7FFF_FFFF_FFFF_FFFF
