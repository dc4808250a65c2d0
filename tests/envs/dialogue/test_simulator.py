"""The dialogue simulator as a whole."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.contract import check_simulator
from envs.registry import make_scenario, make_simulator
from envs.team import episode_seeds, random_actions

ONE_KIND = {
    "categories": {
        "look": {
            **{"share": 1.0, "local_quality": 0.5, "cloud_quality": 1.0, "visual_gain": 0.5},
            **{"views": {"first-person": 1.0, "overhead": 0.5}, "prompt_tokens": [20, 20], "answer_tokens": [30, 30]},
        }
    }
}
PRICES = {
    "local": {"latency_s": 1.0, "history_s_per_token": 0.01},
    "cloud": {
        **{"usd": [0.001, 0.002, 0.003, 0.004], "latency_s": {"lan": [2, 3, 4, 5]}, "hold_s": [0, 0, 0, 0]},
        **{"history_s_per_token": 0.02, "history_usd_per_token": 1e-5, "view_tokens": 100},
    },
}
CERTAIN = {
    **{"tasks": ONE_KIND, "endpoints": PRICES, "network": "lan", "min_turns": 6, "max_turns": 6, "history_turns": 2},
    **{"relevance_spread": 0, "view_information": 0.5, "quality_noise": 0, "hint_noise": 0, "latency_jitter": 0},
    **{"local_difficulty": 0, "cloud_difficulty": 0, "rate_limit_tokens_per_s": 1e5, "latency_budget_s": 15, "usd_budget": 1},
    **{"quality_scale": 2, "latency_scale_s": 10, "usd_scale": 0.01, "weight_latency": 0.25, "weight_usd": 0.5},
    "weight_association": 0.25,
}


def simulator(num_envs=1, preset="d1", **overrides):
    return make_simulator(make_scenario(f"dialogue/{preset}", overrides), num_envs)


def play(sim, seeds, choose=random_actions):
    """All results of an episode and the actions between them."""
    results, actions = [sim.reset(seeds)], []
    while not results[-1].finished.all():
        actions.append(choose(results[-1].action_mask))
        results.append(sim.step(actions[-1]))
    return results, actions


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("d1", {}),
        ("d8", {"random_budgets": True, "outage_probability": 0.3}),
        ("d8", {"hard_budget": True, "observe_budget": False}),
        ("d64", {"max_turns": 8}),
        ("paper", {"outage_probability": 0.2, "history_turns": 0}),
    ],
)
def test_it_keeps_the_contract(preset, overrides):
    check_simulator(lambda num_envs: simulator(num_envs, preset, **overrides), steps=16)


def test_a_conversation_worked_out_by_hand():
    """
    Reward = quality / 2 - 0.25 latency / 10 - 0.5 dollars / 0.01 + 0.25 association; every turn has 20 + 30 tokens.
    Both views cover 1 - (1 - 0.5 * 1) (1 - 0.5 * 0.5) = 0.625 of the scene; the third view is irrelevant.

    1  cloud, first-person and overhead: quality 1 + 0.5 * 0.625 = 1.3125, 4 s, 0.003 $, association 1 - 0.5 / 3 = 5 / 6:
       0.65625 - 0.1 - 0.15 + 0.208333 = 0.614583
    2  local, which has missed 50 tokens: quality 0.5, 1 + 50 * 0.01 = 1.5 s, association 1 - 1.5 / 3 = 0.5:
       0.25 - 0.0375 + 0.125 = 0.3375
    3  local, which has missed nothing: 1 s: 0.25 - 0.025 + 0.125 = 0.35
    4  cloud without views, has missed 2 turns: quality 1, 2 + 100 * 0.02 = 4 s, 0.001 + 100 * 0.00001 = 0.002 $:
       0.5 - 0.1 - 0.1 + 0.125 = 0.425
    5  cloud, all views: quality 1.3125, 5 s, 0.004 $. 4 + 1.5 + 1 + 4 + 5 = 15.5 s exceed the budget of 15 s: reward 0.
    6  local, has missed 2 turns: 1 + 1 = 2 s; reward 0.
    """
    sim = simulator(2, **CERTAIN)
    sim.reset(torch.tensor([1, 2]))
    choices = [4, 0, 0, 1, 8, 0]
    expected = {
        "reward": [0.65625 - 0.1 - 0.15 + 0.25 * 5 / 6, 0.3375, 0.35, 0.425, 0, 0],
        "quality": [1.3125, 0.5, 0.5, 1.0, 1.3125, 0.5],
        "latency_s": [4, 1.5, 1, 4, 5, 2],
        "usd": [0.003, 0, 0, 0.002, 0.004, 0],
        "association": [5 / 6, 0.5, 0.5, 0.5, 0.5, 0.5],
        "history": [0, 50, 0, 100, 0, 100],
        "views": [2, 0, 0, 0, 3, 0],
        "cloud": [1, 0, 0, 1, 1, 0],
        "exceeded": [0, 0, 0, 0, 1, 0],
        "usd_exceeded": [0] * 6,
        "lost": [0, 0, 0, 0, 1, 1],
        "conversations": [0, 0, 0, 0, 0, 1],
    }
    left_s, left_usd = [11, 9.5, 8.5, 4.5, 0, 0], [0.997, 0.997, 0.997, 0.995, 0.991, 0.991]
    for turn, choice in enumerate(choices):
        result = sim.step(torch.full((2, 1, 1), choice))
        for name, values in expected.items():
            assert result.metrics[name].tolist() == pytest.approx([values[turn]] * 2), f"{name} of turn {turn + 1}"
        assert result.reward.tolist() == pytest.approx([expected["reward"][turn]] * 2)
        assert result.agent_reward.flatten().tolist() == pytest.approx([expected["reward"][turn]] * 2)
        assert result.observation["latency_left_s"].flatten().tolist() == pytest.approx([left_s[turn]] * 2)
        assert result.observation["usd_left"].flatten().tolist() == pytest.approx([left_usd[turn]] * 2)
        assert result.terminated.tolist() == [turn == 5] * 2


def test_a_refused_request_is_answered_by_the_device_after_a_timeout():
    """2 s until it gives up and 1 s for the answer: 0.25 - 0.25 * 0.3 + 0.125."""
    sim = simulator(1, **CERTAIN, outage_probability=1.0, mask_invalid=False, timeout_s=2.0)
    assert sim.reset(torch.tensor([3])).action_mask.all()
    result = sim.step(torch.full((1, 1, 1), 8))
    sums = {name: value.item() for name, value in result.metrics.items()}
    assert (sums["refused"], sums["cloud"], sums["usd"], sums["latency_s"]) == (1, 0, 0, 3)
    assert result.reward.item() == pytest.approx(0.3)


def test_devices_wait_for_each_other():
    """The same devices with a tenth of the rate wait longer, and nobody waits who asks nothing."""
    waits = []
    for rate in (500.0, 50.0):
        sim = simulator(4, "d8", rate_limit_tokens_per_s=rate)
        results, _ = play(sim, episode_seeds(0, 0, 4), lambda mask: torch.where(mask.any(-1), 8, 0) * mask[..., 8])
        waits.append(sum(result.metrics["wait_s"] for result in results))
    assert (waits[1] > waits[0]).all()
    results, _ = play(
        simulator(4, "d8"), episode_seeds(0, 0, 4), lambda mask: torch.zeros_like(mask[..., 0], dtype=torch.int64)
    )
    assert not any(result.metrics["wait_s"].any() for result in results)


def test_masks_are_exact():
    """With masks the cloud is open to exactly those whose requests it would not refuse."""
    seeds, options = episode_seeds(4, 0, 16), {"outage_probability": 0.4}
    masked, free = (simulator(16, "d8", mask_invalid=on, **options) for on in (True, False))
    now, then = masked.reset(seeds), free.reset(seeds)
    while not now.finished.all():
        closed = now.alive & ~now.action_mask[:, :, 0, 1:].any(2)
        assert torch.equal(now.action_mask[:, :, 0, 1:].all(2), now.action_mask[:, :, 0, 1:].any(2))
        now, then = masked.step(torch.zeros(16, 8, 1).long()), free.step(torch.full((16, 8, 1), 3))
        assert torch.equal(then.metrics["refused"], closed.sum(1).float())


def test_an_exceeded_budget_closes_the_cloud_where_the_provider_enforces_it():
    sim = simulator(8, "d1", hard_budget=True, latency_budget_s=1.0)
    results, _ = play(sim, episode_seeds(5, 0, 8))
    for result in results:
        over = result.observation["exceeded"][..., 0] > 0
        assert not result.action_mask[:, :, 0, 1:][over].any()
    assert any((result.observation["exceeded"] > 0).any() for result in results)


LOADS = st.fixed_dictionaries(
    {
        "num_devices": st.integers(1, 5),
        "history_turns": st.integers(0, 6),
        "random_budgets": st.booleans(),
        "hard_budget": st.booleans(),
        "mask_invalid": st.booleans(),
        "outage_probability": st.sampled_from([0.0, 0.3]),
        "network": st.sampled_from(["walk", "wired", "4g"]),
        "latency_budget_s": st.sampled_from([5.0, 30.0]),
        "rate_limit_tokens_per_s": st.sampled_from([20.0, 500.0]),
    }
)


@settings(max_examples=15, deadline=None)
@given(LOADS, st.integers(0, 2**40))
def test_budgets_and_rewards_of_any_episode(overrides, first):
    """What is left of a budget falls from its start to 0 and never below; once one is exceeded there is no reward."""
    sim = simulator(6, "d8", **overrides)
    results, _ = play(sim, torch.arange(first, first + 6))
    turns = sim.episode.turns
    assert torch.equal(sum(r.metrics["turns"] for r in results), turns.sum(1).float())
    assert torch.equal(sum(r.metrics["conversations"] for r in results), torch.full((6,), float(overrides["num_devices"])))
    for step, (before, after) in enumerate(pairwise(results)):
        assert torch.equal(before.alive, turns > step)
        for name in ("latency_left_s", "usd_left"):
            assert (after.observation[name] >= 0).all()
            assert (after.observation[name] <= before.observation[name]).all()
        over = after.observation["exceeded"][..., 0] > 0
        assert not after.agent_reward[over | ~before.alive].any()
        assert not (before.observation["exceeded"] > after.observation["exceeded"]).any()
        torch.testing.assert_close(after.agent_reward.sum(1), after.reward)


def test_budgets_are_drawn_in_training_only():
    fixed, drawn = (simulator(64, "d1", random_budgets=on) for on in (False, True))
    seconds = [sim.reset(episode_seeds(0, 0, 64)).observation["latency_left_s"] for sim in (fixed, drawn)]
    assert (seconds[0] == 30).all()
    assert 10 <= seconds[1].min() < 15 < 45 < seconds[1].max() <= 50


def test_without_budgets_in_sight_everything_else_stays():
    seen, blind = (simulator(4, "d8", observe_budget=on) for on in (True, False))
    gone = {"latency_left_s", "usd_left", "exceeded"}
    assert set(seen.spec.observation) - set(blind.spec.observation) == gone
    one, other = (sim.reset(episode_seeds(0, 0, 4)) for sim in (seen, blind))
    assert all(torch.equal(value, one.observation[name]) for name, value in other.observation.items())
