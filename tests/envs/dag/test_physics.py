"""Radio and server queues against hand numbers and plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.dag.radio import path_gain, shannon_bps
from envs.dag.timing import serve
from envs.exact import on_grid
from envs.team import episode_seeds
from tests.envs.dag.play import simulator


def test_the_channel_spans_the_rates_that_it_was_made_for():
    """60 and 20 Mbit/s at 20 and 100 m with 6 MHz, 0.3 W and -43 dBm of noise, as the paper's numbers are."""
    s = simulator().scenario
    gain = path_gain(torch.tensor([20.0, 100.0], dtype=torch.float64), s.reference_gain, s.path_loss_exponent)
    rates = shannon_bps(s.bandwidth_hz, s.device_w, gain, s.noise_w)
    assert rates.tolist() == pytest.approx([60e6, 20e6], rel=1e-3)
    assert 10 * math.log10(s.noise_w * 1e3) == pytest.approx(-43.0)


def test_shannon_by_hand():
    assert shannon_bps(2e6, 3.0, torch.tensor([1.0, 5.0]), 1.0).tolist() == [4e6, 8e6]


def test_every_device_has_one_rate_to_all_edges_within_the_range():
    seen = simulator(256).reset(episode_seeds(0, 0, 256)).observation
    up, down = seen["uplink_bps"], seen["downlink_bps"]
    assert torch.equal(up[..., 0], up[..., 2])
    assert up[..., 0].min() >= 20e6 * 0.999
    assert up[..., 0].max() <= 60e6 * 1.001
    assert up[..., 0].std() > 5e6
    assert (down[..., :-1] > up[..., :-1]).all()  # 0.8 W against 0.3 W
    assert (up[..., -1] == 3e6).all()
    assert (down[..., -1] == 12e6).all()


def test_subtasks_for_one_edge_are_served_by_when_their_data_is_ready():
    """
    Edge 0, free at 1: task 3 (ready 0, takes 2) from 1 to 3, task 0 (ready 2, takes 1) from 3 to 4, task 4 likewise to 5.
    Edge 1, free at 0: task 1 (ready 5, takes 1) from 5 to 6.  Cloud: task 2 (ready 2, takes 4) from 2 to 6.
    """
    location = torch.tensor([[0, 1, 2, 0, 0, 3]])
    ready_s = torch.tensor([[2.0, 5.0, 2.0, 0.0, 2.0, 0.0]], dtype=torch.float64)
    takes_s = torch.tensor([[1.0, 1.0, 4.0, 2.0, 1.0, 9.0]], dtype=torch.float64)
    start_s, end_s, free_s, place = serve(location, ready_s, takes_s, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert start_s[0, :5].tolist() == [3, 5, 2, 1, 4]
    assert end_s[0, :5].tolist() == [4, 6, 6, 3, 5]
    assert free_s.tolist() == [[5, 6]]
    assert place.tolist() == [[1, 4, 2, 0, 3, 5]]


TIMES = st.floats(0, 50).map(lambda x: float(on_grid(torch.tensor(x, dtype=torch.float64))))
SHORT_TIMES = st.one_of(TIMES, st.integers(0, 3).map(float))  # integers make ties


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), SHORT_TIMES, SHORT_TIMES), min_size=1, max_size=12), st.tuples(*[SHORT_TIMES] * 3))
def test_serving_equals_a_loop(subtasks, free):
    """Exactly: the times lie on a grid on which sums are exact."""
    location, *times_s = zip(*subtasks, strict=True)
    ready_s, takes_s = (torch.tensor([column], dtype=torch.float64) for column in times_s)
    location = torch.tensor([location])
    start_s, end_s, free_s, place = serve(location, ready_s, takes_s, torch.tensor([free], dtype=torch.float64))
    left = list(free)
    running = [k for k in range(len(subtasks)) if subtasks[k][0] <= 3]
    order = sorted(running, key=lambda k: (subtasks[k][1], k))
    for k in order:
        at, ready, takes = subtasks[k]
        start = max(ready, left[at]) if at < 3 else ready
        assert (start_s[0, k].item(), end_s[0, k].item()) == (start, start + takes)
        if at < 3:
            left[at] = start + takes
    assert free_s[0].tolist() == left
    assert [place[0, k].item() for k in order] == list(range(len(order)))
