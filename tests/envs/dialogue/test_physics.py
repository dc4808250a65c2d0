"""Coverage, quality, association, history, reward and the provider, by hand and by property."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.dialogue import physics
from envs.dialogue.queueing import admit
from envs.exact import on_grid


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_nine_choices():
    sends = physics.views_of_choices()
    assert sends.shape == (9, 3)
    assert sends[0].tolist() == sends[1].tolist() == [0, 0, 0]  # local, and the cloud without views
    assert sends[4].tolist() == [1, 1, 0]
    assert sends[8].tolist() == [1, 1, 1]
    assert len({tuple(row) for row in sends[1:].tolist()}) == 8


def test_each_further_view_adds_less():
    """0.6 of the scene with one view, 0.6 + 0.4 * 0.6 = 0.84 with two, 0.936 with three."""
    sent = f64([0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1])
    assert physics.coverage(f64(1, 1, 1), sent, 0.6).tolist() == pytest.approx([0.0, 0.6, 0.84, 0.936])


def test_quality_and_association_by_hand():
    """1 + 0.5 * 0.6 - 0.2 * (2 * 0.75 - 1) + 0.05 = 1.25; |1 - 0.5| + |0 - 0.25| + 0 = 0.75, a third of it from 1 is 0.75."""
    assert physics.quality(f64(1.0), f64(0.5), f64(0.6), 0.2, f64(0.75), f64(0.05)).item() == pytest.approx(1.25)
    assert physics.association(f64(0.5, 0.25, 0.0), f64(1, 0, 0)).item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("same", "run", "tokens"),
    [(False, 0, 0), (True, 3, 0), (False, 1, 40), (False, 2, 70), (False, 3, 70)],  # turns of 10, 20, 30, 40 tokens; window 2
)
def test_history_is_what_the_endpoint_has_missed(same, run, tokens):
    told = f64([0, 10, 30, 60, 100])
    assert physics.untold_tokens(told, 4, torch.tensor([same]), torch.tensor([run]), window=2).item() == tokens


def test_reward_is_cut_to_its_scales():
    """0.8 / 1.6 - 6 / 20 / 3 - 0.007 / 0.014 / 3 + 0.9 / 3; then everything beyond its scale: 1 - 1/3 - 1/3 + 1/3."""
    scales, weights = (1.6, 20.0, 0.014), (1 / 3, 1 / 3, 1 / 3)
    value = physics.reward(f64(0.8, 9.0), f64(6.0, 99.0), f64(0.007, 1.0), f64(0.9, 1.0), scales, weights)
    assert value.tolist() == pytest.approx([0.5 - 0.1 - 1 / 6 + 0.3, 2 / 3])


def test_two_requests_at_the_provider_by_hand():
    """
    A bucket of 100 tokens drains at 100 tokens/s; two slots.
    Device 0 asks at 0 s with 150 tokens: 50 of them have to drain first, released at 0.5 s, served at once. It holds a slot
    for 4 s, which is 2 s of both. The bucket would be empty at 1.5 s.
    Device 2 asks at 1 s with 100 tokens: empty at 2.5 s, released at 1.5 s, served at 2.5 s, for 2 / 2 s.
    Device 1 does not ask.
    """
    asks = torch.tensor([[True, False, True]])
    found = admit(
        asks, f64([0, 0.25, 1]), f64([150, 999, 100]), f64([4, 99, 2]), f64(0), f64(0), rate=100.0, burst=100.0, slots=2
    )
    assert found.released_s[asks].tolist() == [0.5, 1.5]
    assert found.started_s[asks].tolist() == [0.5, 2.5]
    assert (found.drained_s.item(), found.free_s.item()) == (2.5, 3.5)


REQUESTS = st.lists(st.tuples(st.booleans(), st.floats(0, 20), st.integers(1, 900), st.floats(0, 3)), min_size=1, max_size=8)


@given(REQUESTS, st.floats(0, 30), st.floats(0, 30), st.integers(1, 4))
def test_the_rate_limit_and_the_slots_are_never_exceeded(requests, drained_s, free_s, slots):
    """Between any two releases pass at most the bucket and what drains meanwhile; the slots work off all that they accept."""
    rate, burst = 64.0, 1_024.0
    columns = [torch.tensor([column]) for column in zip(*requests, strict=True)]
    asks, arrival_s, tokens, hold_s = columns[0], *(on_grid(column.double()) for column in columns[1:])
    drained, free = (on_grid(f64(value)) for value in (drained_s, free_s))
    found = admit(asks, arrival_s, tokens, hold_s, drained, free, rate, burst, slots)
    order = arrival_s[asks].argsort(stable=True)
    arrived, released, started, asked = (x[asks][order] for x in (arrival_s, found.released_s, found.started_s, tokens))
    assert (released >= arrived).all()
    assert (started >= released).all()
    assert (released.diff() >= 0).all()
    assert (started.diff() >= 0).all()
    for first in range(len(asked)):
        passed = asked[first:].cumsum(0)
        assert (passed <= burst + rate * (released[first:] - released[first]) + 1e-6).all()
    work_s = (hold_s[asks] / slots).sum()
    assert found.free_s.item() >= (free + work_s).item() - 1e-9 if asks.any() else found.free_s.item() == free.item()
    # nothing of what is asked for is lost: the bucket has drained it all in the end
    assert found.drained_s.item() >= drained.item() + (asked.sum() / rate).item() - 1e-9


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0, 1))
def test_more_views_never_show_less(relevance, information):
    covered = physics.coverage(f64(*relevance), physics.views_of_choices()[1:], information)
    assert ((covered >= 0) & (covered <= 1)).all()
    sets = range(8)
    assert all(covered[a] <= covered[a | b] + 1e-12 for a in sets for b in sets)
