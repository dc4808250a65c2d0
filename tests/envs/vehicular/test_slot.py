"""One slot's physics: worked by hand, and what must hold for any decision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.vehicular.scenario import VehicularScenario
from envs.vehicular.slot import Decision, Network, Requests, SlotModel, total

# Two edges, two services: edge 0 is the expert for service 0, edge 1 for service 1. Two vehicles' gains make an SNR of 3.
SCENARIO = VehicularScenario(num_edges=2, num_vehicles=4, service_probabilities=(0.5, 0.5), edge_radio_w=5.0)
CLOUD, VEHICLE, NOBODY = 2, 3, 4


def requests(own, service, gain=6e-13, cycles=10e9):
    count = len(own)
    return Requests(
        own=torch.tensor([own]),
        service=torch.tensor([service]),
        size_bits=torch.full((1, count), 8e6),  # 1 MB, and an answer of 4e6 bits
        cycles=torch.full((1, count), cycles),
        demand_level=torch.full((1, count), 0.1),
        gain=torch.full((1, count), gain),
        held_capability=torch.full((1, count), 0.6),
        displaced_capability=torch.zeros(1, count),
    )


def decision(route, compute=(0.5, 0.5), power=(1.0, 0.2), fetch_from=(2, 2)):
    return Decision(
        route=torch.tensor([route]),
        compute_level=torch.tensor([compute]),
        power_level=torch.tensor([power]),
        fetch_from=torch.tensor([fetch_from]),
    )


def network(radio_requests, other_tasks=(0, 0, 0), link_factor=(1.0, 1.0, 1.0)):
    return Network(
        radio_requests=torch.tensor([radio_requests]),
        other_tasks=torch.tensor([other_tasks]),
        capability=torch.full((1, 3, 2), 0.6),
        link_factor=torch.tensor([link_factor]),
    )


def test_own_edge_cloud_vehicle_and_macro_cell():
    asked = requests(own=[0, 1, 0, 2], service=[0, 0, 1, 1])
    chosen = decision(route=[0, CLOUD, VEHICLE, CLOUD])
    outcome = SlotModel(SCENARIO).evaluate(asked, chosen, network([1, 1]))
    # Each radio has one user: 50 MHz up and down. Up: SNR 3, 100 Mbit/s, 0.08 s.
    # 0, own edge: down at 5 W, SNR 15, 200 Mbit/s, 0.02 s; 10 Gcycles at 50 GHz 0.2 s.
    # 1, cloud: down at 1 W, 100 Mbit/s, 0.04 s; 12 Mbit on 1 Gbit/s 0.012 s; 0.05 s of round trip;
    #    two tasks on 400 GHz, 0.05 s.
    # 2, vehicle: 10 Gcycles at 5 GHz, 2 s.
    # 3, macro cell: 0.4 s up and 0.2 s down at 20 Mbit/s, 0.05 s of round trip, 0.05 s.
    assert outcome.latency_s[0].tolist() == pytest.approx([0.3, 0.232, 2.0, 0.7], rel=1e-5)
    # 0: 1 W * 0.08 s + 5 W * 0.02 s + 10 Gcycles * 1.5 nJ * 0.5
    # 1: 0.08 + 1 W * 0.04 s + 15 J + 20 W * 0.012 s
    # 2: 7.5 W / 5 GHz * 10 Gcycles
    # 3: 1 W * 0.4 s + 20 W * 0.2 s + 15 J
    assert outcome.energy_j[0].tolist() == pytest.approx([7.68, 15.36, 15.0, 19.4], rel=1e-5)
    # 160 Mbit of patch at 200 Mbit/s and 5 W
    assert outcome.patch_energy_j[0].tolist() == pytest.approx([4.0, 0.0, 0.0, 0.0], rel=1e-5)
    assert outcome.patched[0].tolist() == [True, False, False, False]
    assert outcome.gain[0].tolist() == pytest.approx([0.6, 0.0, 0.0, 0.0])
    # q = 1 - exp(-2.5) = 0.917915; 0.85 q - 0.4 * 0.3 - 0.02 * 7.68 = 0.506628; sigmoid((0.506628 - 0.6) / 0.1)
    assert outcome.score[0, 0].item() == pytest.approx(0.28218, abs=1e-4)
    assert outcome.tasks[0].tolist() == [1, 0, 2]


def test_reward_of_the_slot_above():
    asked = requests(own=[0, 1, 0, 2], service=[0, 0, 1, 1])
    chosen = decision(route=[0, CLOUD, VEHICLE, CLOUD])
    outcome = SlotModel(SCENARIO).evaluate(asked, chosen, network([1, 1]))
    reward = total(outcome, chosen, SCENARIO).reward(SCENARIO, torch.tensor([4]), 0.0)
    # Energy with the patch: 7.68 + 15.36 + 15 + 19.4 + 4 = 61.44 J, one patch, 1 s of excess, 0.6 of gain, four requests:
    # cost (61.44 / 10 + 1 / 1) / 4 = 1.786
    score = outcome.score.sum().item() / 4
    assert reward.item() == pytest.approx(score - 0.1 * 1.786 + 1.0 * 0.6 / 4 - 0.5 * 1.0 / 4, rel=1e-5)


def test_a_peer_expert_shares_the_fiber_with_its_patch_and_a_fetch():
    asked = requests(own=[0], service=[1])
    outcome = SlotModel(SCENARIO).evaluate(asked, decision(route=[1], fetch_from=(2, 0)), network([1, 0]))
    # Three transfers on the 10 Gbit/s between 0 and 1: the task, its patch, and edge 1's fetch. 12 Mbit * 3 / 10 Gbit/s
    assert outcome.latency_s.item() == pytest.approx(0.3 + 0.0036, rel=1e-5)
    assert outcome.energy_j.item() == pytest.approx(7.68 + 20 * 0.0012, rel=1e-5)
    assert outcome.patch_energy_j.item() == pytest.approx(4.0 + 20 * 0.016, rel=1e-5)
    assert outcome.fetch_energy_j[0].tolist() == pytest.approx([0.0, 20 * 0.016], rel=1e-5)


def test_degraded_wires_are_slower():
    asked = requests(own=[0], service=[1])
    outcome = SlotModel(SCENARIO).evaluate(asked, decision(route=[1]), network([1, 0], link_factor=(0.5, 0.5, 1.0)))
    # Two transfers on a quarter of 10 Gbit/s: 12 Mbit * 2 / 2.5 Gbit/s
    assert outcome.latency_s.item() == pytest.approx(0.3 + 0.0096, rel=1e-5)


def test_a_patch_that_does_not_fit_into_the_slot_is_sent_in_vain():
    slow = SCENARIO.model_copy(update={"patch_mb": 2_000.0})  # 16 Gbit at 200 Mbit/s are 80 s
    outcome = SlotModel(slow).evaluate(requests(own=[0], service=[0]), decision(route=[0]), network([1, 0]))
    assert outcome.patch_sent.item()
    assert not outcome.patched.item()
    assert outcome.gain.item() == 0.0
    assert outcome.patch_energy_j.item() == pytest.approx(5.0 * 60.0)


def test_edges_without_the_patch_give_none():
    outcome = SlotModel(SCENARIO).evaluate(requests(own=[0], service=[1]), decision(route=[0]), network([1, 0]))
    assert not outcome.patch_sent.item()
    assert outcome.patch_energy_j.item() == 0.0


def test_the_sum_of_rates_stays_below_the_limit():
    # Two users on 25 MHz each, SNR 2^30 - 1 (over 25 MHz up; down the same power over 50 MHz): 30 bit/s/Hz would be 1500 Mbit/s
    gain = (2.0**30 - 1) * 4e-21 * 25e6
    outcome = SlotModel(SCENARIO).evaluate(requests([0, 0], [0, 0], gain, 0.0), decision(route=[1, 1]), network([2, 0]))
    # Uplink limited to 500 Mbit/s each: 0.016 s. Downlink: SNR 2.5 * 2^30, same limit.
    fiber = 12e6 * 2 / 10e9
    assert outcome.latency_s[0].tolist() == pytest.approx([0.016 + 0.008 + fiber] * 2, rel=1e-3)


@st.composite
def slots(draw):
    count = draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(3, (1, count), generator=generator)
    route = torch.randint(5, (1, count), generator=generator)
    route = torch.where((own == CLOUD) & (route < CLOUD), CLOUD, route)  # the macro cell reaches the cloud only
    asked = Requests(
        own=own,
        service=torch.randint(2, (1, count), generator=generator),
        size_bits=8e6 * torch.rand(1, count, generator=generator),
        cycles=1e10 * torch.rand(1, count, generator=generator),
        demand_level=0.3 * torch.rand(1, count, generator=generator),
        gain=(10 ** (-16 + 8 * torch.rand(1, count, generator=generator))) * (own != CLOUD),
        held_capability=torch.rand(1, count, generator=generator),
        displaced_capability=torch.rand(1, count, generator=generator),
    )
    levels = torch.tensor(SCENARIO.compute_levels)
    chosen = Decision(
        route=route,
        compute_level=levels[torch.randint(5, (1, 2), generator=generator)],
        power_level=levels[torch.randint(5, (1, 2), generator=generator)],
        fetch_from=torch.tensor([[draw(st.sampled_from([1, 2])), draw(st.sampled_from([0, 2]))]]),
    )
    on_radio = (own < CLOUD) & (route <= CLOUD)
    sharers = [int((on_radio & (own == m)).sum()) for m in range(2)]
    return asked, chosen, network(sharers)


@given(slots())
@settings(max_examples=60, deadline=None)
def test_nothing_is_negative_and_nobody_costs_nothing(slot):
    outcome = SlotModel(SCENARIO).evaluate(*slot)
    for value in (
        outcome.latency_s,
        outcome.energy_j,
        outcome.patch_energy_j,
        outcome.score,
        outcome.qos,
        outcome.fetch_energy_j,
    ):
        assert bool(torch.isfinite(value).all())
        assert bool((value >= 0).all())
    nobody = slot[1].route == NOBODY
    for value in (outcome.latency_s, outcome.energy_j, outcome.patch_energy_j, outcome.score, outcome.gain):
        assert bool((value[nobody] == 0).all())
    assert bool((outcome.latency_s <= SCENARIO.slot_s).all())


@given(slots())
@settings(max_examples=60, deadline=None)
def test_bandwidth_and_rates_are_conserved(slot):
    asked, chosen, found = slot
    on_radio = (asked.own < CLOUD) & (chosen.route <= CLOUD)
    uplink, downlink, power = SlotModel(SCENARIO)._rates(asked, on_radio, chosen.power_level, found.radio_requests)
    for edge in range(2):
        mine = on_radio & (asked.own == edge)
        assert uplink[mine].double().sum() <= SCENARIO.radio_cap_bps * (1 + 1e-5)
        assert downlink[mine].double().sum() <= SCENARIO.radio_cap_bps * (1 + 1e-5)
        expected = SCENARIO.edge_radio_w * chosen.power_level[0, edge].item() if mine.any() else 0.0
        assert power[mine].sum().item() == pytest.approx(expected, rel=1e-5)


@given(slots())
@settings(max_examples=60, deadline=None)
def test_a_processor_is_shared_out_completely(slot):
    _, chosen, _ = slot
    model = SlotModel(SCENARIO)
    tasks = torch.stack([(chosen.route == node).sum(1) for node in range(5)], 1)
    second, _ = model._per_cycle(tasks, chosen.compute_level)
    hertz = [*(SCENARIO.edge_hz * chosen.compute_level[0]).tolist(), SCENARIO.cloud_hz]
    for node in range(3):
        used = sum(1.0 / second[0, node].item() for route in chosen.route[0].tolist() if route == node)
        assert used == pytest.approx(hertz[node] if tasks[0, node] else 0.0, rel=1e-5)


@given(slots())
@settings(max_examples=40, deadline=None)
def test_totals_are_the_sums_over_requests(slot):
    outcome = SlotModel(SCENARIO).evaluate(*slot)
    sums = total(outcome, slot[1], SCENARIO)
    tolerance = {"rel": 1e-4, "abs": 1e-4}
    assert sums.score.item() == pytest.approx(math.fsum(outcome.score[0].tolist()), **tolerance)
    joules = [*outcome.energy_j[0].tolist(), *outcome.patch_energy_j[0].tolist(), *outcome.fetch_energy_j[0].tolist()]
    assert sums.energy_j.item() == pytest.approx(math.fsum(joules), **tolerance)
    fetches = sum(source < CLOUD for source in slot[1].fetch_from[0].tolist())
    assert sums.patches.item() == outcome.patch_sent.sum().item() + fetches
    late = [max(0.0, latency - 1.0) for latency in outcome.latency_s[0].tolist()]
    assert sums.excess_s.item() == pytest.approx(math.fsum(late), **tolerance)
