"""Intervals and paired differences for figures of episodes, by the percentile bootstrap.

The data of one policy is `values [R, E]`: R independent training runs, each played on the same E episodes. The simulators
give every policy the same episodes, so two policies are compared episode by episode. Runs and episodes are both samples of
something larger, so both are resampled: a resample draws R runs and, once for all of them, E episodes. Drawing the episodes
anew in every run would count one hard episode as R independent ones and make the intervals too narrow.

With a single run only the episodes are resampled: the interval then holds for that trained network, not for another
training seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Statistic = Literal["mean", "iqm"]

EPISODES, RUNS, OTHER_RUNS = range(3)  # independent streams of resamples
TRIM = 0.25  # share cut from each side by the interquartile mean
CHUNK_ELEMENTS = 1_000_000  # floats held at a time while resamples are evaluated


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: `resamples` draws from the stream of `seed`, the middle `confidence` of them."""

    confidence: float = 0.95
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.confidence < 1.0 or self.resamples < 1:
            raise ValueError(f"expected 0 < confidence < 1 and resamples >= 1, got {self}")


DEFAULT = Resampling()


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence bounds.

    Attributes:
        estimate: NaN where no episode defines the figure.
        low, high: Bounds; NaN where there is a single value, which says nothing about its spread.
        episodes: Number of episodes behind it.
    """

    estimate: float
    low: float
    high: float
    episodes: int

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the bounds; False where there are none."""
        return self.low > value or self.high < value


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of what is left when a quarter (rounded down) of the values is cut at each end, as rliable does."""
    ordered = np.sort(values, axis=None)
    cut = int(TRIM * ordered.size)
    return float(ordered[cut : ordered.size - cut].mean())


def bootstrap_interval(values: np.ndarray, statistic: Statistic = "mean", how: Resampling = DEFAULT) -> Interval:
    """Percentile bootstrap interval of the mean or the interquartile mean.

    Args:
        values: `[E]`, or `[R, E]` for several runs on the same episodes. Episodes that are NaN in any run (a ratio whose
            denominator never occurred) are left out.
    """
    table = _defined(_as_runs(values))
    if table.size == 0:
        return _undefined()
    estimate = table.mean() if statistic == "mean" else interquartile_mean(table)
    runs, episodes = _counts(how, RUNS, table.shape[0]), _counts(how, EPISODES, table.shape[1])
    if statistic == "mean":
        samples = _evaluate(how, table.size, lambda rows: _means(table, runs[rows], episodes[rows]))
    else:
        samples = _evaluate(how, table.size, lambda rows: _interquartile_means(table, runs[rows], episodes[rows]))
    return _interval(float(estimate), samples, table.size, table.shape[1], how)


def paired_difference(first: np.ndarray, second: np.ndarray, how: Resampling = DEFAULT) -> Interval:
    """Interval of `mean(first) - mean(second)`, paired by episode.

    Args:
        first, second: `[E]` or `[R, E]` and `[R', E]`, column e being the same episode in both.
    """
    first, second = _defined_in_both(first, second)
    if first.size == 0:
        return _undefined()
    runs, other_runs = _counts(how, RUNS, first.shape[0]), _counts(how, OTHER_RUNS, second.shape[0])
    episodes = _counts(how, EPISODES, first.shape[1])
    samples = _evaluate(
        how,
        max(first.size, second.size),
        lambda rows: _means(first, runs[rows], episodes[rows]) - _means(second, other_runs[rows], episodes[rows]),
    )
    return _interval(float(first.mean() - second.mean()), samples, max(first.size, second.size), first.shape[1], how)


def probability_of_improvement(first: np.ndarray, second: np.ndarray, how: Resampling = DEFAULT) -> Interval:
    """Interval of P(first > second) on the same episode, a tie counting one half, over all pairs of runs.

    Args:
        first, second: As in `paired_difference`.
    """
    first, second = _defined_in_both(first, second)
    if first.size == 0:
        return _undefined()
    wins = 0.5 + 0.5 * np.sign(first[:, None] - second[None])  # [R, R', E]
    runs, other_runs = _counts(how, RUNS, first.shape[0]), _counts(how, OTHER_RUNS, second.shape[0])
    episodes = _counts(how, EPISODES, first.shape[1])

    def shares(rows: slice) -> np.ndarray:
        per_other = np.tensordot(runs[rows].astype(float), wins, 1)  # [B, R', E]
        return np.einsum("bje,bj,be->b", per_other, other_runs[rows], episodes[rows]) / wins.size

    return _interval(float(wins.mean()), _evaluate(how, wins.size, shares), wins.size, first.shape[1], how)


def band_over_runs(
    values: np.ndarray, statistic: Statistic = "mean", how: Resampling = DEFAULT
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, low and high, `[P]` each, over the runs at every point of a curve.

    Args:
        values: `[R, P]`, NaN where a run has no value. Points with fewer than two runs have NaN bounds.
    """
    intervals = [bootstrap_interval(column[~np.isnan(column)][:, None], statistic, how) for column in values.T]
    centre, low, high = (np.array([getattr(i, part) for i in intervals]) for part in ("estimate", "low", "high"))
    return centre, low, high


def _as_runs(values: np.ndarray) -> np.ndarray:
    """`[R, E]` float64 from `[E]` or `[R, E]`."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2:
        raise ValueError(f"expected values of shape [episodes] or [runs, episodes], got {table.shape}")
    return table


def _defined(table: np.ndarray) -> np.ndarray:
    return table[:, ~np.isnan(table).any(axis=0)]


def _defined_in_both(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = _as_runs(first), _as_runs(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"expected the same episodes in both, got {first.shape[1]} and {second.shape[1]}")
    keep = ~(np.isnan(first).any(axis=0) | np.isnan(second).any(axis=0))
    return first[:, keep], second[:, keep]


@lru_cache(maxsize=8)
def _counts(how: Resampling, stream: int, size: int) -> np.ndarray:
    """`[resamples, size]` uint8: how often each resample drew each of `size` members.

    Cached because all metrics and policies of a comparison share one shape; uint8 because a count over 255 cannot happen
    in practice (below 256 members it cannot happen at all).
    """
    rng = np.random.default_rng([how.seed, stream])
    counts = np.empty((how.resamples, size), dtype=np.uint8)
    for rows in _chunks(how.resamples, size):
        drawn = rng.integers(size, size=(rows.stop - rows.start, size))
        drawn += np.arange(len(drawn))[:, None] * size
        counts[rows] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return counts


def _chunks(resamples: int, elements: int) -> list[slice]:
    """Slices of the resamples such that `elements` floats for each stay within the memory limit."""
    length = max(1, CHUNK_ELEMENTS // max(1, elements))
    return [slice(start, min(start + length, resamples)) for start in range(0, resamples, length)]


def _evaluate(how: Resampling, elements: int, statistic: Callable[[slice], np.ndarray]) -> np.ndarray:
    return np.concatenate([statistic(rows) for rows in _chunks(how.resamples, elements)])


def _means(table: np.ndarray, runs: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """`[B]` means of the resamples that drew run r `runs[b, r]` times and episode e `episodes[b, e]` times."""
    # einsum and not @: the products are small, and BLAS threads wait for each other on a busy machine
    return np.einsum("be,be->b", np.einsum("br,re->be", runs, table), episodes) / table.size


def _interquartile_means(table: np.ndarray, runs: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """`[B]` interquartile means of the same resamples.

    The values are sorted once. In a resample, a value that is drawn c times fills c consecutive ranks, and counts with the
    part of them that lies between the two cuts: `sum_i (end_i - end_{i-1}) value_i` with the ends of the ranks clipped there,
    here summed by parts.
    """
    order = np.argsort(table, axis=None)
    ordered = table.ravel()[order]
    drawn = (runs[:, :, None].astype(np.uint16) * episodes[:, None, :]).reshape(len(runs), -1)
    first, last = int(TRIM * table.size), table.size - int(TRIM * table.size)
    ends = np.cumsum(np.take(drawn, order, axis=1), axis=1, dtype=np.float64)
    np.clip(ends, first, last, out=ends)
    return (last * ordered[-1] - first * ordered[0] - np.einsum("bi,i->b", ends[:, :-1], np.diff(ordered))) / (last - first)


def _interval(estimate: float, samples: np.ndarray, values: int, episodes: int, how: Resampling) -> Interval:
    if values < 2:
        return Interval(estimate, np.nan, np.nan, episodes)
    tail = (1.0 - how.confidence) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return Interval(estimate, float(low), float(high), episodes)


def _undefined() -> Interval:
    return Interval(np.nan, np.nan, np.nan, 0)


# -- over several scenarios ----------------------------------------------------------------------------------------------
#
# One score per training run, `[R]` for each scenario. Runs are resampled within their scenario (Agarwal et al. 2021,
# "Deep reinforcement learning at the edge of the statistical precipice", as the package rliable does).


def stratified_interval(scores: Sequence[np.ndarray], how: Resampling = DEFAULT) -> Interval:
    """Interquartile mean of the runs of all scenarios taken together.

    Args:
        scores: `[R]` for each scenario; the numbers of runs may differ.
    """
    estimate = interquartile_mean(np.concatenate(scores))
    samples = np.sort(np.concatenate(_resampled(scores, how, RUNS), axis=1), axis=1)
    cut = int(TRIM * samples.shape[1])
    return _interval(estimate, samples[:, cut : samples.shape[1] - cut].mean(1), samples.shape[1], samples.shape[1], how)


def performance_profile(
    scores: Sequence[np.ndarray], thresholds: np.ndarray, how: Resampling = DEFAULT
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of runs above each threshold, mean of the scenarios, with low and high: `[P]` each.

    Args:
        scores: `[R]` for each scenario.
        thresholds: `[P]`.
    """
    shares = np.mean([(values > thresholds[:, None]).mean(1) for values in scores], axis=0)
    resampled = _resampled(scores, how, RUNS)
    samples = [np.mean([(values > threshold).mean(1) for values in resampled], axis=0) for threshold in thresholds]
    bounds = [_interval(0.0, sample, 2, 2, how) for sample in samples]
    return shares, np.array([bound.low for bound in bounds]), np.array([bound.high for bound in bounds])


def stratified_improvement(first: Sequence[np.ndarray], second: Sequence[np.ndarray], how: Resampling = DEFAULT) -> Interval:
    """P(a run of the first scores higher than a run of the second), a tie counting one half, mean of the scenarios.

    Args:
        first, second: `[R]` and `[R']` for each scenario, in the same order.
    """

    def wins(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """`[..., R]` and `[..., R']` to `[...]`."""
        return (0.5 + 0.5 * np.sign(one[..., :, None] - other[..., None, :])).mean((-2, -1))

    estimate = np.mean([wins(one, other) for one, other in zip(first, second, strict=True)])
    resampled = zip(_resampled(first, how, RUNS), _resampled(second, how, OTHER_RUNS), strict=True)
    samples = np.mean([wins(one, other) for one, other in resampled], axis=0)
    runs = min(sum(map(len, first)), sum(map(len, second)))
    return _interval(float(estimate), samples, runs, runs, how)


def _resampled(scores: Sequence[np.ndarray], how: Resampling, stream: int) -> list[np.ndarray]:
    """`[resamples, R]` for each scenario: its runs drawn with replacement."""
    rng = np.random.default_rng([how.seed, stream])
    return [values[rng.integers(len(values), size=(how.resamples, len(values)))] for values in map(np.asarray, scores)]
