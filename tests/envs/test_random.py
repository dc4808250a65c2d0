"""The counter-based random numbers are the published ones, depend on nothing but their counters, and have the right moments."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import random

MASK = (1 << 64) - 1
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
COUNTER = st.integers(0, (1 << 40))
DRAWS = 100_000


def splitmix64_output(state: int) -> int:
    """The output function of SplitMix64 in plain unsigned integers."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference_bits(seed: int, *counters: int) -> int:
    golden = 0x9E3779B97F4A7C15
    x = splitmix64_output(seed + golden)
    for counter in counters:
        x = splitmix64_output(x + (counter + 1) * golden)
    return x & (MASK >> 1)


def draws(seed: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(seed), torch.arange(DRAWS)


def test_the_reference_is_splitmix64():
    # first outputs of the generator seeded with 1234567, as published with its reference implementation
    golden = 0x9E3779B97F4A7C15
    outputs = [splitmix64_output(1234567 + (k + 1) * golden) for k in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_hand_checked_value():
    assert random.hash_bits(torch.tensor(1234567)).item() == 6457827717110365317


@given(seed=INT64, counters=st.lists(COUNTER, max_size=3))
def test_bits_equal_unsigned_arithmetic(seed, counters):
    assert random.hash_bits(torch.tensor(seed), *counters).item() == reference_bits(seed, *counters)


@given(seed=INT64, counter=COUNTER)
def test_a_counter_may_be_a_number_or_a_tensor(seed, counter):
    assert random.hash_bits(torch.tensor(seed), counter) == random.hash_bits(torch.tensor(seed), torch.tensor(counter))


@settings(max_examples=50)
@given(seeds=st.lists(INT64, min_size=1, max_size=9), data=st.data())
def test_a_draw_does_not_know_what_is_around_it(seeds, data):
    row = data.draw(st.integers(0, len(seeds) - 1))
    many = torch.tensor(seeds)[:, None, None]
    steps, agents = torch.arange(3)[:, None], torch.arange(4)
    for draw in (random.uniform, random.normal, random.exponential):
        together = draw(many, steps, agents)
        assert together.shape == (len(seeds), 3, 4)
        assert torch.equal(together[row], draw(torch.tensor(seeds[row]), steps, agents))
        assert torch.equal(together[row, 2, 1], draw(torch.tensor(seeds[row]), 2, 1))


@pytest.mark.parametrize("draw", [random.uniform, random.normal, random.exponential])
def test_a_draw_does_not_know_how_its_tensor_lies_in_memory(draw):
    seeds = torch.arange(7 * 33).reshape(7, 33)
    assert torch.equal(draw(seeds.T, 3), draw(seeds, 3).T)
    assert torch.equal(draw(seeds[:, ::3], 3), draw(seeds, 3)[:, ::3])
    assert torch.equal(draw(torch.tensor(5).expand(4, 5), torch.arange(5)), draw(torch.tensor(5), torch.arange(5)).expand(4, 5))


def test_seeds_and_counters_all_make_a_difference():
    base = random.hash_bits(torch.tensor(5), 1, 2).item()
    others = [
        random.hash_bits(torch.tensor(seed), *c).item() for seed, *c in [(6, 1, 2), (5, 2, 2), (5, 1, 3), (5, 2, 1), (5, 1)]
    ]
    assert base not in others
    assert len(set(others)) == len(others)


@given(seed=INT64, counter=COUNTER)
def test_uniform_stays_inside_the_open_interval(seed, counter):
    value = random.uniform(torch.tensor(seed), counter).item()
    assert 0.0 < value < 1.0
    assert math.isfinite(random.exponential(torch.tensor(seed), counter).item())


@pytest.mark.parametrize("bits", [0, (1 << 63) - 1])
def test_uniform_stays_inside_at_the_ends_of_the_bits(bits, monkeypatch):
    monkeypatch.setattr(random, "hash_bits", lambda seed, *counters: torch.full((), bits))
    value = random.uniform(torch.tensor(0))
    assert value.dtype == torch.float32
    assert 0.0 < value.item() < 1.0
    assert random.exponential(torch.tensor(0)).item() > 0.0


@pytest.mark.parametrize("seed", [0, 1, -7, 2**62])
def test_uniform_fills_100_bins_evenly(seed):
    value = random.uniform(*draws(seed))
    counts = torch.bincount((value * 100).long(), minlength=100).double()
    expected = DRAWS / 100
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 99 - 5 * math.sqrt(198) < chi_square < 99 + 5 * math.sqrt(198)  # 99 degrees of freedom
    assert value.mean().item() == pytest.approx(0.5, abs=5 / math.sqrt(12 * DRAWS))
    assert value.var().item() == pytest.approx(1 / 12, rel=0.02)


def test_neighbouring_draws_are_uncorrelated():
    seed, counter = draws()
    by_counter = torch.stack([random.uniform(seed, counter), random.uniform(seed, counter + 1)])
    by_seed = torch.stack([random.uniform(counter, 3), random.uniform(counter + 1, 3)])
    by_second = torch.stack([random.uniform(seed, counter, 0), random.uniform(seed, counter, 1)])
    for pair in (by_counter, by_seed, by_second):
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 5 / math.sqrt(DRAWS)


def test_normal_has_the_moments_of_the_normal_distribution():
    value = random.normal(*draws()).double()
    assert value.mean().item() == pytest.approx(0.0, abs=5 / math.sqrt(DRAWS))
    assert value.var().item() == pytest.approx(1.0, rel=0.03)
    assert (value**3).mean().item() == pytest.approx(0.0, abs=5 * math.sqrt(15 / DRAWS))
    assert (value**4).mean().item() == pytest.approx(3.0, rel=0.05)
    assert (value.abs() < 1.96).double().mean().item() == pytest.approx(0.95, abs=0.005)


def test_exponential_has_the_moments_of_the_exponential_distribution():
    value = random.exponential(*draws()).double()
    assert value.min().item() > 0
    assert value.mean().item() == pytest.approx(1.0, rel=5 / math.sqrt(DRAWS))
    assert value.var().item() == pytest.approx(1.0, rel=0.05)
    assert (value > 1).double().mean().item() == pytest.approx(math.exp(-1), abs=0.008)


@pytest.mark.parametrize("high", [1, 2, 7, 1000])
def test_randint_is_even_below_its_limit(high):
    value = random.randint(high, *draws())
    assert value.dtype == torch.int64
    counts = torch.bincount(value, minlength=high).double()
    assert counts.numel() == high
    expected = DRAWS / high
    assert (counts - expected).abs().max().item() <= 6 * math.sqrt(expected)
