"""What an episode draws before anyone decides."""

import pytest
import torch

from envs.errors import InputError
from envs.team import episode_seeds
from envs.vehicular.episode import EpisodeSource
from envs.vehicular.scenario import VehicularScenario
from envs.vehicular.traces import Trace

EDGES = torch.tensor([[0.0, 0.0], [1_000.0, 0.0]])


def still_trace(points, slots, present=None):
    """Vehicles that stand still."""
    positions = torch.tensor(points).expand(slots, -1, -1).clone()
    present = torch.ones(slots, len(points), dtype=torch.bool) if present is None else torch.tensor(present)
    return Trace(positions, present, 60.0, "test")


def draw(scenario, trace, episodes=64):
    return EpisodeSource(scenario, trace, EDGES).draw(episode_seeds(0, 0, episodes))


@pytest.fixture(scope="module")
def crowd():
    scenario = VehicularScenario(num_edges=2, num_vehicles=40, horizon_slots=49)
    return scenario, draw(scenario, still_trace([[100.0, 0.0]] * 40, 49))  # 128,000 requests, 100 m from edge 0


def test_distributions_have_the_moments_of_the_scenario(crowd):
    scenario, episode = crowd
    shares = torch.bincount(episode.service.flatten(), minlength=6) / episode.service.numel()
    assert shares.tolist() == pytest.approx(list(scenario.service_probabilities), abs=5e-3)
    logarithm = episode.size_mb.log()
    assert logarithm.mean().item() == pytest.approx(torch.tensor(0.1).log().item(), abs=0.02)
    assert logarithm.std().item() == pytest.approx(1.0, abs=0.02)
    # Beta(1/2, 2): mean 0.2, variance 1 / (6.25 * 3.5); P(X < 1/4) = (3 y - y^3) / 2 with y = 1/2
    assert episode.importance.mean().item() == pytest.approx(0.2, abs=4e-3)
    assert episode.importance.var().item() == pytest.approx(1 / (6.25 * 3.5), abs=2e-3)
    assert (episode.importance < 0.25).float().mean().item() == pytest.approx(0.6875, abs=5e-3)
    assert episode.demand_level.mean().item() == pytest.approx(0.15, abs=2e-3)
    # the mean of four fades: mean 1, variance 1/4; 1.6e-5 * 100^-3 without them
    fading = episode.gain / 1.6e-11
    assert fading.mean().item() == pytest.approx(1.0, abs=0.01)
    assert fading.var().item() == pytest.approx(0.25, abs=0.01)


def test_one_fade_is_exponential():
    scenario = VehicularScenario(num_edges=2, num_vehicles=40, horizon_slots=49, fading_blocks=1)
    fading = draw(scenario, still_trace([[100.0, 0.0]] * 40, 49)).gain / 1.6e-11
    for x in (0.01, 0.5, 1.0, 3.0):
        assert (fading < x).float().mean().item() == pytest.approx(1 - 2.718281828**-x, abs=6e-3)


def test_vehicles_belong_to_the_nearest_edge_in_reach():
    # 500 m is the middle (nearest of equals is the first), 1,801 m is out of edge 1's 800 m
    points = [[0.0, 0.0], [700.0, 0.0], [1_800.0, 0.0], [1_801.0, 0.0]]
    scenario = VehicularScenario(num_edges=2, num_vehicles=4, horizon_slots=5)
    episode = draw(scenario, still_trace(points, 5), 1)
    assert sorted(episode.own[0, 0].tolist()) == [0, 1, 1, 2]
    assert bool((episode.gain[episode.own == 2] == 0).all())
    closest = (1.6e-5 * 10.0**-3) * 40.0  # no link is shorter than 10 m
    assert episode.gain.max() <= closest


def test_order_groups_vehicles_by_edge_and_sorts_them_by_size_times_importance(crowd):
    _, episode = crowd
    for slot in range(3):
        for row in range(3):
            own, order = episode.own[slot, row], episode.order[slot, row].tolist()
            weight = (episode.size_mb * episode.importance)[slot, row]
            keys = [(own[n].item(), -weight[n].item()) for n in order]
            assert keys == sorted(keys)
            assert episode.first[slot, row].tolist() == [sum(o < m for o in own.tolist()) for m in range(3)]


def test_absent_vehicles_fill_the_columns_that_nobody_needs():
    present = [[False, True, False, False]] * 6
    scenario = VehicularScenario(num_edges=2, num_vehicles=2, horizon_slots=6)
    episode = draw(scenario, still_trace([[0.0, 0.0]] * 4, 6, present))
    assert bool((episode.present.sum(2) == 1).all())  # the one that is there is always among the two


def test_windows_without_vehicles_are_not_drawn():
    present = [[False]] * 10 + [[True]] * 2
    scenario = VehicularScenario(num_edges=2, num_vehicles=1, horizon_slots=3)
    episode = draw(scenario, still_trace([[0.0, 0.0]], 12, present))
    assert bool(episode.present[:3].any(0).all())


@pytest.mark.parametrize(
    ("slots", "vehicles", "present", "complaint"),
    [
        (59, 50, None, "test: 59 slots of 50 vehicles, but the scenario needs at least 60 slots"),
        (60, 49, None, r"60 slots of 49 vehicles.* and 50 vehicles \(num_vehicles\)"),
        (60, 50, [[False] * 50] * 60, "test: no vehicle is present in any window of 60 slots"),
    ],
)
def test_traces_that_are_too_small_are_refused(slots, vehicles, present, complaint):
    with pytest.raises(InputError, match=complaint):
        EpisodeSource(VehicularScenario(num_edges=2), still_trace([[0.0, 0.0]] * vehicles, slots, present), EDGES)


def test_an_outage_lasts_as_long_as_it_should_and_moves_vehicles_to_the_macro_cell():
    scenario = VehicularScenario(num_edges=2, num_vehicles=3, horizon_slots=400, edge_down_probability=0.01, edge_down_slots=5)
    episode = draw(scenario, still_trace([[0.0, 0.0]] * 3, 400), 8)
    # P(up) = P(no start in the last five slots) = 0.99^5
    assert episode.up[5:].float().mean().item() == pytest.approx(0.99**5, abs=0.02)
    assert bool(((episode.own == 2) == ~episode.up[..., :1]).all())
    down = ~episode.up[:, 0, 0]
    lengths = torch.diff(torch.nonzero(torch.diff(torch.nn.functional.pad(down.int(), (1, 1)))).flatten())[::2]
    ended_inside = lengths[:-1]  # the last may be cut off by the episode's end
    assert len(ended_inside) > 0
    assert bool((ended_inside >= 5).all())


def test_degraded_links():
    scenario = VehicularScenario(
        num_edges=2, num_vehicles=3, horizon_slots=100, link_loss_probability=1.0, link_loss_fraction=0.3
    )
    factor = draw(scenario, still_trace([[0.0, 0.0]] * 3, 100), 2).link_factor
    assert factor[0, 0].tolist() == pytest.approx([0.7, 0.7, 1.0])  # wires to the cloud degrade at the edge's end
