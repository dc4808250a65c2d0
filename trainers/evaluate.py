"""Plays whole episodes with one policy and gathers their figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.errors import InputError
from envs.registry import Scenario, make_simulator
from envs.team import Metric, TeamSimulator, TeamSpec
from trainers.episode_sums import EpisodeSums, metrics_of, ratio
from trainers.policy import Policy, SimulatorPolicy

SimulatorFactory = Callable[[int, torch.device], TeamSimulator]
Progress = Callable[[int, int], None]

CHECK_EVERY = 8  # steps between two looks at whether all rows are finished: each look waits for the device


@dataclass(frozen=True)
class EpisodeResults:
    """What one policy achieved in a list of episodes.

    Attributes:
        policy: The policy's name.
        scenario: Name of the scenario, `problem/preset`.
        seeds: `[episodes]` int64, the episode seeds.
        metrics: The metrics that the sums below define, in the order of the problem's specification.
        sums: Name to `[episodes]` float64, the per-step sums added up over each episode, `reward` and `steps` among them.
        scenario_fields: The whole scenario as JSON values; empty when the simulators came from a factory.
        env_steps: Environment steps that the policy was trained for, 0 for a heuristic.
        run: Which training run it comes from, for people.
    """

    policy: str
    scenario: str
    seeds: np.ndarray
    metrics: dict[str, Metric]
    sums: dict[str, np.ndarray]
    scenario_fields: dict[str, Any] = field(default_factory=dict)
    env_steps: int = 0
    run: str = ""

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Metric to `[episodes]` float64, in the order of `seeds`; NaN in episodes where the denominator is 0."""
        return {name: ratio(self.sums, metric) for name, metric in self.metrics.items()}

    def pooled(self, name: str) -> float:
        """The metric over all episodes taken together: ratio of the sums, or mean per episode of a plain sum."""
        metric = self.metrics[name]
        if metric.denominator is None:
            return float(self.sums[metric.numerator].mean())
        denominator = float(self.sums[metric.denominator].sum())
        return float(self.sums[metric.numerator].sum()) / denominator if denominator else float("nan")


def evaluate(
    policy: Policy,
    scenario: Scenario | SimulatorFactory,
    seeds: Tensor,
    num_envs: int = 64,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> EpisodeResults:
    """Plays one whole episode for every seed.

    A policy that decides from what it observes gets the same result whatever `num_envs` is. One that draws random numbers
    is repeatable only with the same `num_envs`, because its draws depend on the order of the rows.

    Args:
        policy: Acts on tensors on `device`.
        scenario: What to simulate, or a function from (num_envs, device) to a simulator.
        seeds: `[episodes]` int64, all different.
        num_envs: Episodes that run in parallel; the last batch may be smaller.
        progress: Called with (episodes' worth of steps done, episodes).

    Raises:
        InputError: The seeds or `num_envs` are unusable, or the policy was made for other observations or actions.
        RuntimeError: An episode did not end within the simulator's own `max_steps`.
    """
    _check_request(seeds, num_envs)
    device = torch.device(device)
    batches = seeds.split(num_envs)
    parts: list[dict[str, np.ndarray]] = []
    simulator: TeamSimulator | None = None
    try:
        for index, batch in enumerate(batches):
            if simulator is None or simulator.num_envs != len(batch):
                if simulator is not None:
                    simulator.close()
                simulator = _simulator(scenario, len(batch), device)
                check_fits(policy, simulator.spec)
            report = _batch_progress(progress, index * num_envs, len(batch), len(seeds))
            parts.append(_play(policy, simulator, batch.to(device), report))
        assert simulator is not None  # there is at least one batch
        spec = simulator.spec
    finally:
        if simulator is not None:
            simulator.close()
    sums = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return EpisodeResults(
        policy=policy.name,
        scenario=spec.scenario,
        seeds=seeds.cpu().numpy(),
        metrics=metrics_of(spec, policy.metrics()),
        sums=sums,
        scenario_fields=scenario.model_dump(mode="json") if isinstance(scenario, Scenario) else {},
    )


def check_fits(policy: Policy, spec: TeamSpec) -> None:
    """Raises InputError unless the policy was made for a team with these observations and actions."""

    def interface(of: TeamSpec) -> tuple[Any, ...]:
        shapes = {name: observed.shape for name, observed in of.observation.items()}
        return of.num_agents, of.branches, shapes

    for what, made, needed in zip(
        ("agents", "choices per branch", "observations"), interface(policy.spec), interface(spec), strict=True
    ):
        if made != needed:
            raise InputError(
                f"policy {policy.name!r} was made for {policy.spec.scenario!r} and does not fit {spec.scenario!r}: "
                f"{what} {made}, expected {needed}"
            )


@torch.no_grad()
def _play(policy: Policy, simulator: TeamSimulator, seeds: Tensor, report: Callable[[float], None]) -> dict[str, np.ndarray]:
    """One episode in every row: name to `[E]` float64 sums over the steps in which the row was unfinished."""
    max_steps = simulator.spec.max_steps
    if isinstance(policy, SimulatorPolicy):
        policy.attend(simulator)
    sums = EpisodeSums()
    result = simulator.reset(seeds)
    memory = policy.initial_state(simulator.num_envs)
    for step in range(max_steps):
        active = ~result.finished
        actions, memory = policy.act(result.observation, memory, result.action_mask)
        figures = policy.metrics()
        result = simulator.step(actions)
        sums.add(result, active, figures)
        report((step + 1) / max_steps)
        if step % CHECK_EVERY == CHECK_EVERY - 1 and bool(result.finished.all()):
            break
    if not bool(result.finished.all()):
        raise RuntimeError(f"{simulator.spec.scenario}: an episode was still running after max_steps = {max_steps} steps")
    report(1.0)
    return sums.totals()


def _batch_progress(progress: Progress | None, first: int, rows: int, total: int) -> Callable[[float], None]:
    """A function of the share of a batch that is done, in terms of episodes of the whole evaluation."""

    def report(share: float) -> None:
        if progress is not None:
            progress(first + int(rows * share), total)

    return report


def _simulator(scenario: Scenario | SimulatorFactory, num_envs: int, device: torch.device) -> TeamSimulator:
    return make_simulator(scenario, num_envs, device) if isinstance(scenario, Scenario) else scenario(num_envs, device)


def _check_request(seeds: Tensor, num_envs: int) -> None:
    if seeds.dim() != 1 or seeds.dtype != torch.int64:
        raise InputError(f"episode seeds: expected a [episodes] int64 tensor, got {list(seeds.shape)} {seeds.dtype}")
    if len(seeds) == 0:
        raise InputError("episodes = 0: expected at least one episode to evaluate")
    if len(seeds.unique()) != len(seeds):
        raise InputError("episode seeds: expected all different, got repeated ones")
    if num_envs < 1:
        raise InputError(f"num_envs = {num_envs}: expected at least 1")
