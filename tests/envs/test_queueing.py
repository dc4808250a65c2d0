"""One server, first come, first served."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.exact import on_grid
from envs.queueing import serve


def f64(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_three_pieces_of_work_by_hand():
    """
    The server is free at 1 s. Place 2 asks first, at 0.5 s, and waits until 1 s; its work is done at 3 s. Place 0 asks at 2 s
    and is begun at 3 s, done at 4 s. Place 3 asks at 6 s and does not wait. Place 1 does not ask.
    """
    asks = torch.tensor([[True, False, True, True]])
    begun, free = serve(asks, f64(2.0, 0.0, 0.5, 6.0), f64(1.0, 99.0, 2.0, 0.5), f64(1.0)[0])
    assert begun[asks].tolist() == [3.0, 1.0, 6.0]
    assert free.tolist() == [6.5]


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 10), st.floats(0, 5)), min_size=1, max_size=7), st.floats(0, 10))
def test_it_is_the_recursion(work, free_s):
    asks = torch.tensor([[piece[0] for piece in work]])
    arrival, needs = (on_grid(f64(*(piece[i] for piece in work))) for i in (1, 2))
    now = on_grid(torch.tensor([free_s], dtype=torch.float64))
    begun, free = serve(asks, arrival, needs, now)
    at = now.item()
    for place in sorted(range(len(work)), key=lambda place: arrival[0, place].item()):
        if work[place][0]:
            at = max(at, arrival[0, place].item())
            assert begun[0, place].item() == at
            at += needs[0, place].item()
    assert free.item() == at
