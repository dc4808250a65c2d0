"""Equations with numbers worked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.vehicular import compute, radio, service
from envs.vehicular.sums import count_by, exact_sum, look_up_rows


def test_gain_falls_with_the_cube_of_the_distance():
    # 1e-3 * 100^-3 = 1e-9, halved by the fade
    gain = radio.channel_gain(torch.tensor([100.0]), 0.5, 1e-3, 3.0)
    assert gain.item() == pytest.approx(0.5e-9, rel=1e-5)


def test_signal_to_noise_and_rate():
    # 1 W * 6e-13 / (4e-21 W/Hz * 50 MHz = 2e-13 W) = 3, and log2(1 + 3) = 2 bit/s/Hz
    ratio = radio.snr(1.0, torch.tensor([6e-13]), 50e6, 4e-21)
    assert ratio.item() == pytest.approx(3.0, rel=1e-5)
    assert radio.rate_bps(50e6, ratio).item() == pytest.approx(100e6, rel=1e-5)


def test_rate_of_a_signal_below_the_noise_is_not_zero():
    # log2(1 + x) = x / ln 2 for small x, which 1 + x in float32 would round to 0
    assert radio.rate_bps(1e6, torch.tensor([1e-9])).item() == pytest.approx(1e-3 / math.log(2), rel=1e-4)


def test_rates_are_capped_in_sum():
    assert radio.cap_factor(torch.tensor([4e9, 1e9, 0.0]), 1e9).tolist() == [0.25, 1.0, 1.0]


def test_sending_energy():
    assert radio.sending_energy_j(50.0, 8e6, 100e6) == pytest.approx(4.0)  # 0.08 s at 50 W


def test_processing():
    # 20 Gcycles per MB and importance: 0.5 MB of importance 0.2 are 2 Gcycles
    cycles = compute.request_cycles(torch.tensor(0.5), torch.tensor(0.2), 20e9)
    assert cycles.item() == pytest.approx(2e9)
    # four tasks on 100 GHz get 25 GHz each: 80 ms
    assert (cycles * compute.seconds_per_cycle(torch.tensor(4), 100e9)).item() == pytest.approx(0.08)
    # 150 W / 100 GHz = 1.5 nJ per cycle at level 1, half of it at level 0.5
    assert 2e9 * compute.joules_per_cycle(150.0, 100e9, 0.5) == pytest.approx(1.5)


def test_quality_of_service():
    # 1 - exp(-5 * 0.5) = 0.917915; below the demand level an answer is worth nothing
    quality = service.qos(torch.tensor([0.6, 0.1]), torch.tensor([0.1, 0.3]), 1.0, 5.0)
    assert quality.tolist() == pytest.approx([0.917915, 0.0], abs=1e-6)


def test_task_score():
    # sigmoid((0.7 - 0.6) / 0.1) = sigmoid(1)
    assert service.task_score(torch.tensor(0.7), 0.6, 0.1).item() == pytest.approx(0.731059, abs=1e-5)


def test_tuning():
    # 0.6 + 0.01 * 25 * (1 - 0.6) = 0.7; an abundance of logs stops at the maximum
    tuned = service.tuned_capability(torch.tensor([0.6, 0.6]), torch.tensor([25.0, 1e4]), 0.01, 1.0)
    assert tuned.tolist() == pytest.approx([0.7, 1.0])


@given(st.floats(0, 1), st.floats(0, 0.3), st.floats(0, 0.5))
def test_quality_rises_with_capability_and_stays_in_bounds(capability, demand, more):
    low = service.qos(torch.tensor(capability), torch.tensor(demand), 1.0, 5.0)
    high = service.qos(torch.tensor(capability + more), torch.tensor(demand), 1.0, 5.0)
    assert 0.0 <= low <= high <= 1.0


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), st.randoms())
def test_exact_sum_does_not_depend_on_the_order(values, order):
    shuffled = list(values)
    order.shuffle(shuffled)
    total = exact_sum(torch.tensor(values))
    assert total == exact_sum(torch.tensor(shuffled))
    assert total.item() == pytest.approx(math.fsum(values), rel=1e-6, abs=len(values) * 2.0**-20)


def test_count_by():
    index, weight = torch.tensor([[0, 2, 2], [1, 1, 1]]), torch.tensor([[5, 6, 7], [1, 1, 2]])
    assert count_by(index, 3).tolist() == [[1, 0, 2], [0, 3, 0]]
    assert count_by(index, 3, weight).tolist() == [[5, 0, 13], [0, 4, 0]]


@given(st.integers(1, 20), st.integers(0, 2**32))
def test_rows_looked_up_are_the_rows(width, seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(2, 3, width, generator=generator) < 0.5
    index = torch.randint(3, (2, 5), generator=generator)
    expected = [[table[e, i].tolist() for i in row] for e, row in enumerate(index.tolist())]
    assert look_up_rows(table, index).tolist() == expected
