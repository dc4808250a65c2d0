"""Intervals have the right centre, the right width, and cover as often as they say."""

import numpy as np
import pytest
from scipy import stats

from trainers import statistics
from trainers.statistics import (
    Resampling,
    band_over_runs,
    bootstrap_interval,
    interquartile_mean,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    stratified_improvement,
    stratified_interval,
)

QUICK = Resampling(resamples=500)


def test_interquartile_mean_by_hand():
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, 3.0, -50.0, 4.0, 5.0, 6.0])) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean(np.array([1.0, 2.0, 9.0])) == pytest.approx(4.0)  # a quarter of three rounds down to none


@pytest.mark.parametrize("shape", [(7,), (40,), (3, 11)])
def test_interquartile_mean_is_that_of_rliable(shape):
    values = np.random.default_rng(0).normal(size=shape)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=None))


@pytest.mark.parametrize("shape", [(1, 13), (4, 10), (3, 1)])
def test_resampled_statistics_equal_those_of_samples_written_out(shape):
    values = np.random.default_rng(1).normal(size=shape)
    how = Resampling(resamples=40)
    runs, episodes = statistics._counts(how, statistics.RUNS, shape[0]), statistics._counts(how, statistics.EPISODES, shape[1])
    assert (runs.sum(1) == shape[0]).all()
    assert (episodes.sum(1) == shape[1]).all()
    samples = [values.repeat(r, axis=0).repeat(e, axis=1) for r, e in zip(runs, episodes, strict=True)]
    np.testing.assert_allclose(statistics._means(values, runs, episodes), [s.mean() for s in samples])
    np.testing.assert_allclose(
        statistics._interquartile_means(values, runs, episodes), [interquartile_mean(s) for s in samples], atol=1e-12
    )


def test_interval_of_two_values_by_hand():
    """Resamples of (0, 1) have mean 0, 1/2 and 1 with probability 1/4, 1/2, 1/4."""
    interval = bootstrap_interval(np.array([0.0, 1.0]))
    assert (interval.estimate, interval.low, interval.high, interval.episodes) == (0.5, 0.0, 1.0, 2)
    middle = bootstrap_interval(np.array([0.0, 1.0]), how=Resampling(confidence=0.4))
    assert (middle.low, middle.high) == (0.5, 0.5)


def test_interval_agrees_with_the_normal_approximation():
    values = np.random.default_rng(2).normal(5.0, 2.0, size=400)
    interval = bootstrap_interval(values)
    error = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - error, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.02)


def test_intervals_are_repeatable_and_follow_the_seed():
    values = np.random.default_rng(3).normal(size=30)
    assert bootstrap_interval(values, "iqm") == bootstrap_interval(values, "iqm")
    assert bootstrap_interval(values).low != bootstrap_interval(values, how=Resampling(seed=1)).low


def test_chunks_change_nothing(monkeypatch):
    first, second = np.random.default_rng(4).normal(size=(2, 3, 20))
    everything = [
        bootstrap_interval(first, "iqm", QUICK),
        paired_difference(first, second, QUICK),
        probability_of_improvement(first, second, QUICK),
    ]
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", 700)
    assert everything == [
        bootstrap_interval(first, "iqm", QUICK),
        paired_difference(first, second, QUICK),
        probability_of_improvement(first, second, QUICK),
    ]


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_coverage_over_episodes(statistic):
    rng = np.random.default_rng(5)
    hits = [not bootstrap_interval(rng.normal(size=40), statistic, QUICK).excludes(0.0) for _ in range(300)]
    assert 0.89 <= np.mean(hits) <= 0.985


def test_coverage_over_runs_and_shared_episodes():
    """Runs differ by luck of training, episodes by difficulty: both must be in the interval."""
    rng = np.random.default_rng(6)
    hits, hits_pooled = [], []
    for _ in range(300):
        values = rng.normal(0, 1, (12, 1)) + rng.normal(0, 1, (1, 30)) + rng.normal(0, 0.5, (12, 30))
        hits.append(not bootstrap_interval(values, how=QUICK).excludes(0.0))
        hits_pooled.append(not bootstrap_interval(values.ravel(), how=QUICK).excludes(0.0))
    assert 0.87 <= np.mean(hits) <= 0.985
    assert np.mean(hits_pooled) < 0.6  # what comes of taking all values for independent


def test_pairing_removes_the_difficulty_of_episodes():
    rng = np.random.default_rng(7)
    difficulty = rng.normal(0, 10, 50)
    first, second = difficulty + rng.normal(0.5, 0.3, 50), difficulty + rng.normal(0, 0.3, 50)
    paired = paired_difference(first, second)
    assert paired.estimate == pytest.approx(first.mean() - second.mean())
    assert paired.low > 0.3
    assert paired.high < 0.7
    unpaired = bootstrap_interval(first)
    assert unpaired.high - unpaired.low > 4


def test_paired_difference_of_single_runs_is_the_interval_of_the_differences():
    first, second = np.random.default_rng(8).normal(size=(2, 25))
    paired, plain = paired_difference(first, second), bootstrap_interval(first - second)
    assert paired.low == pytest.approx(plain.low)
    assert paired.high == pytest.approx(plain.high)


def test_coverage_of_the_paired_difference_of_several_runs():
    rng = np.random.default_rng(9)
    hits = []
    for _ in range(300):
        difficulty = rng.normal(0, 5, 20)
        first = difficulty + rng.normal(1, 1, (10, 1)) + rng.normal(0, 0.5, (10, 20))
        second = difficulty + rng.normal(0, 1, (8, 1)) + rng.normal(0, 0.5, (8, 20))
        hits.append(not paired_difference(first, second, QUICK).excludes(1.0))
    assert 0.87 <= np.mean(hits) <= 0.985


def test_probability_of_improvement_by_hand():
    chance = probability_of_improvement(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 5.0, 1.0]))
    assert chance.estimate == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert 0 <= chance.low < chance.estimate < chance.high <= 1
    runs = probability_of_improvement(np.array([[1.0, 1.0], [3.0, 3.0]]), np.array([[2.0, 0.0]]))
    assert runs.estimate == pytest.approx(3 / 4)
    certain = probability_of_improvement(np.arange(9.0) + 1, np.arange(9.0))
    assert (certain.estimate, certain.low, certain.high) == (1.0, 1.0, 1.0)


def test_undefined_episodes_are_left_out_in_pairs():
    first, second = np.array([1.0, np.nan, 3.0, 8.0]), np.array([0.0, 1.0, np.nan, 5.0])
    assert bootstrap_interval(first).estimate == pytest.approx(4.0)
    assert bootstrap_interval(first).episodes == 3
    assert paired_difference(first, second).estimate == pytest.approx((1 + 3) / 2)
    assert probability_of_improvement(first, second).episodes == 2
    nothing = bootstrap_interval(np.array([np.nan, np.nan]))
    assert np.isnan([nothing.estimate, nothing.low, nothing.high]).all()
    assert nothing.episodes == 0
    assert not nothing.excludes(0.0)
    assert np.isnan(paired_difference(np.array([np.nan, 1.0]), np.array([1.0, np.nan])).estimate)


def test_a_single_value_has_no_bounds():
    interval = bootstrap_interval(np.array([3.0]))
    assert interval.estimate == 3.0
    assert np.isnan([interval.low, interval.high]).all()
    assert not paired_difference(np.array([3.0]), np.array([1.0])).excludes(0.0)


def test_band_over_runs():
    values = np.array([[0.0, 10.0, 1.0], [1.0, 20.0, np.nan]])
    centre, low, high = band_over_runs(values)
    np.testing.assert_allclose(centre, [0.5, 15.0, 1.0])
    np.testing.assert_allclose(low, [0.0, 10.0, np.nan])
    np.testing.assert_allclose(high, [1.0, 20.0, np.nan])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="expected the same episodes in both, got 3 and 4"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match=r"got \(1, 2, 3\)"):
        bootstrap_interval(np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="0 < confidence < 1"):
        Resampling(confidence=95.0)


def test_stratified_interquartile_mean_by_hand():
    # 1 2 3 4 | 10 20 30 40: two values are cut at each end of the eight, whatever their scenario
    interval = stratified_interval([np.array([4.0, 1.0, 2.0, 3.0]), np.array([40.0, 10.0, 20.0, 30.0])], QUICK)
    assert interval.estimate == pytest.approx((3 + 4 + 10 + 20) / 4)


def test_runs_are_resampled_within_their_scenario():
    """Where the runs of a scenario agree there is nothing to resample, however far apart the scenarios are."""
    alike = stratified_interval([np.full(5, 1.0), np.full(5, 9.0)], QUICK)
    assert (alike.low, alike.estimate, alike.high) == (5.0, 5.0, 5.0)
    pooled = bootstrap_interval(np.array([1.0] * 5 + [9.0] * 5)[:, None], "iqm", QUICK)
    assert pooled.high - pooled.low > 4
    # two runs 0 and 1 of one scenario: the mean of a resample is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4
    assert stratified_interval([np.array([0.0, 1.0])]).low == 0.0
    assert stratified_interval([np.array([0.0, 1.0])], Resampling(confidence=0.4)).low == 0.5


def test_performance_profile_by_hand():
    scores = [np.array([0.1, 0.5, 0.9, 0.9]), np.array([0.3, 0.3])]
    profile, low, high = performance_profile(scores, np.array([0.0, 0.2, 0.5, 1.0]), QUICK)
    assert profile.tolist() == [1.0, (0.75 + 1.0) / 2, (0.5 + 0.0) / 2, 0.0]  # above, not at, the threshold
    assert (low <= profile).all()
    assert (high >= profile).all()
    assert (low[0], high[0], high[3]) == (1.0, 1.0, 0.0)


def test_stratified_improvement_by_hand():
    first, second = [np.array([1.0, 3.0]), np.array([5.0])], [np.array([2.0, 3.0]), np.array([4.0, 5.0])]
    # scenario 1: 1 loses twice, 3 beats 2 and ties with 3: 1.5 of 4; scenario 2: beats 4, ties with 5: 1.5 of 2
    assert stratified_improvement(first, second, QUICK).estimate == pytest.approx((1.5 / 4 + 1.5 / 2) / 2)
    other = stratified_improvement(second, first, QUICK)
    assert other.estimate == pytest.approx(1 - (1.5 / 4 + 1.5 / 2) / 2)
    clear = stratified_improvement([np.arange(5.0) + 10], [np.arange(5.0)], QUICK)
    assert (clear.low, clear.estimate, clear.high) == (1.0, 1.0, 1.0)


def test_stratified_intervals_cover():
    rng = np.random.default_rng(11)
    hits = []
    for _ in range(200):
        scores = [rng.normal(size=10) for _ in range(4)]
        hits.append(not stratified_interval(scores, QUICK).excludes(0.0))
    assert 0.87 <= np.mean(hits) <= 0.985
