"""Between a problem's spec and what goes over the wire: numbers to checked tensors, actions to names.

B  teams of one request or batch      D  numbers in one team's observation
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.contract import field_bounds
from envs.team import UNBOUNDED_CLIP, ActionHead, TeamSpec

ROUNDING = 1e-6  # share of a bound by which float32 may have rounded a value beyond it
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Part:
    """Where one field lies in a team's row of numbers, and the field's shape with the agents' dimension."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    category: bool


class Codec:
    """Reads observations and masks of the agents in `agents`, and writes their actions.

    One row of D numbers holds everything that a team observes, field after field, so that a whole request is checked by a
    handful of array operations, and requests become a batch by stacking rows.

    Attributes:
        agents: Whom it speaks for: the whole team, or one agent of it.
        size: D.
    """

    def __init__(self, spec: TeamSpec, agents: Sequence[str]) -> None:
        self.spec = spec
        self.agents = tuple(agents)
        self.parts = list(self._parts())
        self.size = self.parts[-1].stop if self.parts else 0
        bounds = [self.bounds(part.name) for part in self.parts]
        lengths = [part.stop - part.start for part in self.parts]
        self._low = np.repeat([low - ROUNDING * abs(low) for low, _ in bounds], lengths)
        self._high = np.repeat([high + ROUNDING * abs(high) for _, high in bounds], lengths)
        self._whole = np.flatnonzero(np.repeat([part.category for part in self.parts], lengths))
        self._exists = spec.choice_exists().numpy()
        ends = list(itertools.accumulate(head.count for head in spec.heads))
        self._branches = [slice(end - head.count, end) for end, head in zip(ends, spec.heads, strict=True)]
        self._labels = [np.array(labels_of(head), dtype=object) for head in spec.heads]

    def _parts(self) -> Any:
        start = 0
        for name, field in self.spec.observation.items():
            shape = (len(self.agents), *field.shape)
            stop = start + math.prod(shape)
            yield Part(name, start, stop, shape, field.scale == "category")
            start = stop

    def bounds(self, name: str) -> tuple[float, float]:
        """Least and largest value of a field, both finite."""
        low, high = field_bounds(self.spec.observation[name])
        return max(low, -LARGEST), min(high, LARGEST)

    def rows(self, observation: Mapping[str, np.ndarray], teams: int) -> np.ndarray:
        """Fields, `[B, N, *shape]` numbers each (or `[N, *shape]` for one team), to rows `[B, D]` float64.

        Raises:
            ValueError: A number is not finite, beyond its bounds, or no category; it says which.
        """
        rows = np.concatenate([observation[part.name].reshape(teams, -1) for part in self.parts], axis=1, dtype=np.float64)
        right = (rows >= self._low) & (rows <= self._high)
        if len(self._whole):
            right[:, self._whole] &= rows[:, self._whole] % 1 == 0
        if not right.all():
            self._complain(rows, *np.argwhere(~right)[0].tolist())
        return rows

    def _complain(self, rows: np.ndarray, team: int, column: int) -> None:
        part = next(part for part in self.parts if part.start <= column < part.stop)
        place = "".join(f"[{i}]" for i in np.unravel_index(column - part.start, part.shape))
        low, high = self.bounds(part.name)
        what = "a whole number" if part.category else "a number"
        unit = self.spec.observation[part.name].unit
        raise ValueError(
            f"observation.{part.name}{place}{f' of team {team}' if len(rows) > 1 else ''} = {rows[team, column]:g}: expected "
            f"{what} in [{low:g}, {high:g}]{'' if unit == '1' else f' {unit}'}"
        )

    def masks(self, given: Mapping[str, np.ndarray], teams: int) -> np.ndarray:
        """Legal choices by head, `[B, N, (count,) choices]` bool each, to `[B, N, H, C]`; heads that are not given may all.

        Raises:
            ValueError: A branch has no legal choice.
        """
        shape = (teams, len(self.agents), *self._exists.shape)
        if not given:
            return np.broadcast_to(self._exists, shape)
        mask = np.tile(self._exists, (teams, len(self.agents), 1, 1))
        for head, branches in zip(self.spec.heads, self._branches, strict=True):
            if head.name in given:
                legal = given[head.name].reshape(teams, len(self.agents), head.count, head.choices)
                mask[:, :, branches, : head.choices] = legal
                if not legal.any(-1).all():
                    team, agent, branch = np.argwhere(~legal.any(-1))[0].tolist()
                    raise ValueError(
                        f"action_mask.{head.name}: branch {branch} of {self.agents[agent]} in team {team} has no legal choice"
                    )
        return mask

    def observation(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows `[B, D]` float64 to fields `[B, N, *shape]`, float32 or int64, as a policy reads them."""
        numbers = rows.to(torch.float32)
        return {
            part.name: (
                rows[:, part.start : part.stop].long() if part.category else numbers[:, part.start : part.stop]
            ).reshape(-1, *part.shape)
            for part in self.parts
        }

    def named(self, actions: np.ndarray) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Actions `[B, N, H]` to (labels, numbers) of each team: agent to head to a choice, or to a list of `count`."""
        numbers, labels = [], []
        for head, branches, names in zip(self.spec.heads, self._branches, self._labels, strict=True):
            chosen = actions[:, :, branches] if head.count > 1 else actions[:, :, branches.start]
            numbers.append(chosen.tolist())
            labels.append(names[chosen].tolist())
        heads = [head.name for head in self.spec.heads]
        return [(self._by_agent(heads, labels, team), self._by_agent(heads, numbers, team)) for team in range(len(actions))]

    def _by_agent(self, heads: list[str], values: list[Any], team: int) -> dict[str, Any]:
        return {
            agent: {head: value[team][place] for head, value in zip(heads, values, strict=True)}
            for place, agent in enumerate(self.agents)
        }

    def scores(self, scores: np.ndarray) -> list[dict[str, Any]]:
        """Scores `[B, N, H, C]` of each team: agent to head to a list of the choices' scores, or to `count` such lists."""
        values = []
        for head, branches in zip(self.spec.heads, self._branches, strict=True):
            of = scores[:, :, branches, : head.choices]
            values.append((of if head.count > 1 else of[:, :, 0]).tolist())
        heads = [head.name for head in self.spec.heads]
        return [self._by_agent(heads, values, team) for team in range(len(scores))]

    def example(self) -> dict[str, Any]:
        """An observation in the middle of all bounds, `{field: [N, *shape]}`, for bundles that come without a real one."""

        def middle(part: Part) -> float:
            low, high = self.bounds(part.name)
            return max(int(low), 0) if part.category else 0.0 if low <= 0 <= high else (low + high) / 2

        return {part.name: np.full(part.shape, middle(part)).tolist() for part in self.parts}

    def random(self, teams: int, seed: int) -> np.ndarray:
        """Rows `[B, D]` of random numbers within all bounds; half of what may be absent is."""
        rng = np.random.default_rng(seed)

        def numbers(part: Part) -> np.ndarray:
            low, high = self.bounds(part.name)
            size = (teams, part.stop - part.start)
            if not part.category:
                return rng.uniform(max(low, -UNBOUNDED_CLIP), min(high, UNBOUNDED_CLIP), size)
            return np.where(rng.random(size) < 0.5, min(low, 0.0), rng.integers(int(low), int(high) + 1, size))

        return np.concatenate([numbers(part) for part in self.parts], axis=1)


def labels_of(head: ActionHead) -> tuple[str, ...]:
    """Names of a head's choices: its labels, or the numbers."""
    return head.labels or tuple(str(choice) for choice in range(head.choices))


def mask_shape(head: ActionHead) -> tuple[int, ...]:
    """Of one agent's legal choices under a head, as clients send them."""
    return (head.count, head.choices) if head.count > 1 else (head.choices,)
