"""Points with their uncertainty, for charts of one metric against another."""

from __future__ import annotations

import numpy as np

from trainers.evaluate import EpisodeResults
from trainers.statistics import Interval, bootstrap_interval


def interval(runs: list[EpisodeResults], metric: str) -> Interval:
    """95 % over runs and episodes."""
    return bootstrap_interval(np.stack([run.values[metric] for run in runs]))


def error_bars(of: Interval) -> list[list[float]] | None:
    """As matplotlib takes them; None where there is no interval."""
    if np.isnan(of.low):
        return None
    return [[of.estimate - of.low], [of.high - of.estimate]]
