"""Plays whole episodes with one policy and gathers their figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.errors import InputError
from envs.registry import Scenario, make_simulator
from envs.team import Metric, TeamSimulator, TeamSpec
from trainers.policy import Policy

SimulatorFactory = Callable[[int, torch.device], TeamSimulator]
Progress = Callable[[int, int], None]

RETURN = Metric("reward", None, better="higher", description="sum of the team reward over the episode")
UNITS = {"_bytes": "B", "_s": "s"}  # of a policy's own figures, by the end of their name
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
        return {name: _ratio(self.sums, metric) for name, metric in self.metrics.items()}

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
    parts: list[dict[str, Tensor]] = []
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
    sums = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    return EpisodeResults(
        policy=policy.name,
        scenario=spec.scenario,
        seeds=seeds.cpu().numpy(),
        metrics=_metrics(spec, policy.metrics()),
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
def _play(policy: Policy, simulator: TeamSimulator, seeds: Tensor, report: Callable[[float], None]) -> dict[str, Tensor]:
    """One episode in every row: name to `[E]` float64 sums over the steps in which the row was unfinished, on the CPU."""
    max_steps = simulator.spec.max_steps
    totals: dict[str, Tensor] = {}
    result = simulator.reset(seeds)
    memory = policy.initial_state(simulator.num_envs)
    for step in range(max_steps):
        active = ~result.finished
        actions, memory = policy.act(result.observation, memory, result.action_mask)
        figures = policy.metrics()
        result = simulator.step(actions)
        _add(totals, active, {**result.metrics, **figures, "reward": result.reward, "steps": torch.ones_like(result.reward)})
        report((step + 1) / max_steps)
        if step % CHECK_EVERY == CHECK_EVERY - 1 and bool(result.finished.all()):
            break
    if not bool(result.finished.all()):
        raise RuntimeError(f"{simulator.spec.scenario}: an episode was still running after max_steps = {max_steps} steps")
    report(1.0)
    return {name: total.cpu() for name, total in totals.items()}


def _add(totals: dict[str, Tensor], active: Tensor, figures: dict[str, Any]) -> None:
    """Adds `figures` (`[E]` each) to `totals` where `active`; in float64, so that the order of batches leaves no trace."""
    for name, figure in figures.items():
        value = torch.as_tensor(figure, device=active.device).to(torch.float64)
        value = torch.where(active, value, 0.0)
        totals[name] = totals[name] + value if name in totals else value


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


def _metrics(spec: TeamSpec, figures: Iterable[str]) -> dict[str, Metric]:
    """The return first, the problem's metrics, and the plain sum of each further figure that the policy reports."""
    metrics = {"return": spec.metrics.get("return", RETURN), **spec.metrics}
    used = {metric.numerator for metric in metrics.values()}
    return metrics | {name: Metric(name, unit=_unit(name)) for name in figures if name not in used}


def _unit(name: str) -> str:
    return next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "1")


def _ratio(sums: dict[str, np.ndarray], metric: Metric) -> np.ndarray:
    numerator = sums[metric.numerator]
    if metric.denominator is None:
        return numerator
    denominator = sums[metric.denominator]
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0)
