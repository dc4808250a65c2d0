"""The bandit CS-UCB: its counts, means and bounds by hand, and that it keeps to the constraints."""

import math

import pytest
import torch

from envs.registry import make_scenario, make_simulator
from envs.team import ActionHead, Field, TeamSpec
from models.team_module import ACTIONS, AGENT_REWARD, ALIVE, FILLED, REWARD
from models.team_network import NetworkConfig
from trainers.algorithms.cs_ucb import CsUcbConfig, CsUcbSettings
from trainers.learned_policy import build_module
from trainers.rollout import play_episodes

SPEC = TeamSpec(
    problem="test",
    scenario="test/bandit",
    agents=("a", "b"),
    observation={"seen": Field((1,), 0.0, 1.0)},
    heads=(ActionHead("choice", 3), ActionHead("level", 2)),
    state_size=1,
    max_steps=2,
)


def bandit(spec: TeamSpec = SPEC, bonus: float = 1.0):
    return build_module("cs-ucb", spec, NetworkConfig(), CsUcbSettings(bonus=bonus))


def rows(agent_reward: bool = True) -> dict[str, torch.Tensor]:
    """Two episodes of at most two steps; the second agent leaves the first one early, the second ends after one step."""
    columns = {
        ACTIONS: torch.tensor([[[[0, 1], [2, 0]], [[0, 0], [1, 1]]], [[[1, 1], [2, 1]], [[2, 0], [2, 0]]]], dtype=torch.int16),
        ALIVE: torch.tensor([[[True, True], [True, False], [True, False]], [[True, True]] * 3]),
        FILLED: torch.tensor([[True, True], [True, False]]),
        REWARD: torch.tensor([[7.0, 5.0], [4.0, 0.0]]),
        AGENT_REWARD: torch.tensor([[[1.0, 6.0], [5.0, 99.0]], [[2.0, 2.0], [99.0, 99.0]]]),
    }
    return columns if agent_reward else {name: value for name, value in columns.items() if name != AGENT_REWARD}


def test_means_and_counts_by_hand():
    module = bandit()
    module.learn_rows(rows())
    # agent a chose 0 twice (1, then 5) and 1 once (2); agent b chose 2 twice (6, then 2)
    assert module.counts[:, 0].tolist() == [[2, 1, 0], [0, 0, 2]]
    assert module.means[:, 0].tolist() == [[3, 2, 0], [0, 0, 4]]
    assert module.squares[:, 0].tolist() == [[13, 4, 0], [0, 0, 20]]
    assert module.counts[:, 1].tolist() == [[1, 2, 0], [1, 1, 0]]
    assert module.means[:, 1].tolist() == [[5, 1.5, 0], [6, 2, 0]]
    module.learn_rows(rows())
    assert module.counts[:, 0].tolist() == [[4, 2, 0], [0, 0, 4]]
    assert module.means[:, 0].tolist() == [[3, 2, 0], [0, 0, 4]]


def test_the_teams_reward_is_taken_where_single_agents_are_not_known():
    module = bandit()
    module.learn_rows(rows(agent_reward=False))
    assert module.means[:, 0].tolist() == [[6, 4, 0], [0, 0, 5.5]]


def test_bounds_by_hand():
    module = bandit(bonus=2.0)
    module.learn_rows(rows())
    # Of the ten choices of all branches: mean (3*2 + 2 + 4*2 + 5 + 1.5*2 + 6 + 2) / 10 = 3.2, mean square
    # (26 + 4 + 40 + 25 + 5 + 36 + 4) / 10 = 14, so the deviation is sqrt(14 - 3.2^2) = sqrt(3.76).
    deviation, choices = math.sqrt(14 - 3.2**2), math.log(3)  # a has chosen three times
    got = module.scores(explore=True)
    expected = [3 + 2 * deviation * math.sqrt(2 * choices / 2), 2 + 2 * deviation * math.sqrt(2 * choices / 1)]
    assert got[0, 0, :2].tolist() == pytest.approx(expected, rel=1e-5)
    assert got[1, 0, 2].item() == pytest.approx(4 + 2 * deviation * math.sqrt(2 * math.log(2) / 2), rel=1e-5)
    assert (got[0, 0, 2] > got[0, 0, :2]).all()  # never made: first
    assert module.scores(explore=False)[0, 0].tolist() == [3, 2, -1e9]  # and last


def test_it_plays_the_best_mean_and_explores_what_it_does_not_know():
    module = bandit()
    module.learn_rows(rows())
    packed, mask = torch.zeros(50, 2, 1), SPEC.choice_exists().expand(50, 2, 2, 3).clone()
    mask[..., 1, :2] = True
    assert module.act(packed, mask, {}, explore=False)[0][0].tolist() == [[0, 0], [2, 0]]
    tried, _, extras = module.act(packed, mask, {}, explore=True, generator=torch.Generator().manual_seed(0))
    assert extras == {}
    assert (tried[:, 0, 0] == 2).all()  # the only one that a has never made
    assert set(tried[:, 1, 0].tolist()) == {0, 1}  # b has made neither: any of them
    mask[:, 0, 0, 2] = False
    assert (module.act(packed, mask, {}, explore=True)[0][:, 0, 0] != 2).all()


def test_at_the_start_all_legal_choices_are_taken_evenly():
    module, count = bandit(), 6000
    mask = SPEC.choice_exists().expand(count, 2, 2, 3)
    actions, *_ = module.act(torch.zeros(count, 2, 1), mask, {}, explore=True, generator=torch.Generator().manual_seed(1))
    shares = torch.nn.functional.one_hot(actions, 3).float().mean(0)
    # deviations of at most 0.5 / sqrt(6000) = 0.0065
    torch.testing.assert_close(shares, torch.tensor([[[1 / 3] * 3, [0.5, 0.5, 0]]] * 2), atol=0.03, rtol=0)


@pytest.mark.parametrize("failure_probability", [0.0, 0.5])
@pytest.mark.parametrize("explore", [True, False])
def test_with_an_open_mask_its_choices_are_legal_all_the_same(explore, failure_probability):
    overrides = {"mask_invalid": False, "failure_probability": failure_probability}
    simulator = make_simulator(make_scenario("dag/paper", overrides), 8)
    module = bandit(simulator.spec)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        played, figures = play_episodes(simulator, module, torch.arange(8) + 8 * seed, explore, generator=generator)
        assert (figures["illegal_share"] == 0).all()
        assert (figures["completed_tasks"] == simulator.spec.num_agents).all()
        assert (played[AGENT_REWARD][played[ALIVE][:, :-1] & played[FILLED].unsqueeze(-1)] > -1).all()
        module.learn_rows(played)
    alive = played[ALIVE][:, :-1] & played[FILLED].unsqueeze(-1)
    assert module.counts.sum() == 2 * alive.sum()


def test_several_learners_are_not_needed():
    assert CsUcbConfig().learners(num_learners=3).num_learners == 1
    assert CsUcbConfig().learners(num_learners=0).num_learners == 0
