"""Whole episodes played by asking, and the same ones played by the policy itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.registry import make_simulator, scenario_from_dict
from envs.team import StepResult, TeamSpec, episode_seeds
from trainers.bundle import load_bundle
from trainers.learned_policy import load_policy

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def body_of(result: StepResult, spec: TeamSpec, row: int | None) -> dict[str, Any]:
    """A request about one row, or in plural form about all."""
    plural, chosen = ("s", slice(None)) if row is None else ("", row)
    masks, first = {}, 0
    for head in spec.heads:
        mask = result.action_mask[chosen][..., first : first + head.count, : head.choices]
        masks[head.name] = (mask if head.count > 1 else mask[..., 0, :]).tolist()
        first += head.count
    observation = {name: value[chosen].tolist() for name, value in result.observation.items()}
    return {f"observation{plural}": observation, f"action_mask{plural}": masks}


def numbers_of(choices: dict[str, Any], spec: TeamSpec) -> list[list[int]]:
    """An answer's `choices` to `[N, H]`."""
    heads = [(head.name, head.count) for head in spec.heads]
    return [
        [number for name, count in heads for number in (of[name] if count > 1 else [of[name]])]
        for of in (choices[agent] for agent in spec.agents)
    ]


def played(bundle: Path, episodes: int) -> list[tuple[StepResult, Tensor]]:
    """What the policy itself sees and does in each step, all episodes at once, as the evaluator plays them."""
    policy, manifest = load_policy(bundle), load_bundle(bundle)[1]
    simulator = make_simulator(scenario_from_dict(manifest["scenario"]), episodes)
    result, memory, steps = simulator.reset(episode_seeds(5, 0, episodes)), policy.initial_state(episodes), []
    while not bool(result.finished.all()):
        with torch.no_grad():
            actions, memory = policy.act(result.observation, memory, result.action_mask)
        steps.append((result, actions))
        result = simulator.step(actions)
    simulator.close()
    return steps
