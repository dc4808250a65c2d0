"""Least-recently-used stores against lists in plain Python."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.vehicular import stores

VERSIONS = 4


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 4), st.integers(0, VERSIONS - 1), st.booleans()), max_size=25))
@settings(deadline=None)
def test_vehicle_store_is_an_lru_list(places, events):
    store = torch.full((places, 1, 1), stores.EMPTY)
    expected: list[tuple[int, int]] = []
    for service, version, given_patch in events:
        at, held = stores.find(store, torch.tensor([[service]]), VERSIONS)
        known = [patch for patch in expected if patch[0] == service]
        assert held.item() == (known[0][0] * VERSIONS + known[0][1] if known else stores.EMPTY)
        if known:  # it is used at the version it has
            code, used = held, torch.tensor([[True]])
            expected = known + [patch for patch in expected if patch[0] != service]
        else:
            code, used = torch.tensor([[service * VERSIONS + version]]), torch.tensor([[given_patch]])
            expected = ([(service, version), *expected] if given_patch else expected)[:places]
        store = stores.touch(store, at, code, used)
        codes = [k * VERSIONS + v for k, v in expected]
        assert store.flatten().tolist() == codes + [stores.EMPTY] * (places - len(codes))


@given(st.integers(1, 3), st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.integers(0, 4)), max_size=25))
@settings(deadline=None)
def test_edge_store_is_an_lru_set_beside_the_primary(capacity, events):
    services = 5
    primary = torch.arange(services) == 0
    version = torch.where(primary, 0, stores.EMPTY)[None, None]
    last_used = torch.zeros_like(version)
    expected: dict[int, int] = {}  # fetched service to the slot of its last use
    for now, (service, fetches, used) in enumerate(events):
        if used in expected:
            expected[used] = now
            last_used = last_used.index_fill(2, torch.tensor([used]), now)
        fetched = (torch.arange(services) == service)[None, None] & fetches
        version, last_used = stores.install_on_edge(
            version, last_used, primary[None], fetched, torch.full_like(version, now), now, capacity
        )
        if fetches:
            if service not in expected and len(expected) >= capacity:
                oldest = min(sorted(expected), key=expected.__getitem__)
                del expected[oldest]
            expected[service] = now
        held = {k for k in range(1, services) if version[0, 0, k] != stores.EMPTY}
        assert held == set(expected)
        assert len(held) <= capacity
        assert version[0, 0, 0] == 0
