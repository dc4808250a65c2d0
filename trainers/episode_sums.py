"""From the per-step sums of a simulator to one figure per episode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.team import Metric, StepResult, TeamSpec

RETURN = Metric("reward", None, better="higher", description="sum of the team reward over the episode")
UNITS = {"_bytes": "B", "_s": "s"}  # of a policy's own figures, by the end of their name


class EpisodeSums:
    """Adds up, for each of E parallel episodes, what every step reports; in float64, so that batching leaves no trace."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, step: StepResult, running: Tensor, figures: dict[str, Any]) -> None:
        """One step.

        Args:
            running: `[E]` bool, the rows that had not finished before it.
            figures: Further figures of the step, from the policy: `[E]` tensors, or numbers that hold for all rows.
        """
        reported = {**step.metrics, **figures, "reward": step.reward, "steps": torch.ones_like(step.reward)}
        for name, figure in reported.items():
            value = torch.where(running, torch.as_tensor(figure, device=running.device).to(torch.float64), 0.0)
            self._totals[name] = self._totals[name] + value if name in self._totals else value

    def totals(self) -> dict[str, np.ndarray]:
        """Name to `[E]` float64; `reward` and `steps` are always there."""
        return {name: total.cpu().numpy() for name, total in self._totals.items()}


def metrics_of(spec: TeamSpec, figures: Iterable[str]) -> dict[str, Metric]:
    """The return first, the problem's metrics, and the plain sum of each further figure that the policy reports."""
    metrics = {"return": spec.metrics.get("return", RETURN), **spec.metrics}
    used = {metric.numerator for metric in metrics.values()}
    return metrics | {name: Metric(name, unit=_unit(name)) for name in figures if name not in used}


def ratio(sums: dict[str, np.ndarray], metric: Metric) -> np.ndarray:
    """The metric of each episode, `[E]`; NaN where its denominator is 0."""
    numerator = sums[metric.numerator]
    if metric.denominator is None:
        return numerator
    denominator = sums[metric.denominator]
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0)


def _unit(name: str) -> str:
    return next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "1")
