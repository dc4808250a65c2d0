"""The velo simulator as a whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.contract import check_simulator
from envs.registry import make_scenario, make_simulator
from envs.team import episode_seeds, random_actions
from envs.velo.simulator import CLOUD
from tests.envs.velo.reference import A, B, C, Reference, first_answer

SMALL = {"corpus": {"questions": 150, "new_groups": 20, "width": 48, "topics": 6, "zipf": 1.2}, "build_requests": 14}
TESTED = {**SMALL, "test": "both", "test_requests": 5, "build_requests": 9}


def simulator(num_envs=1, preset="n3", **overrides):
    return make_simulator(make_scenario(f"velo/{preset}", {**SMALL, **overrides}), num_envs)


def play(sim, seeds, choose=random_actions):
    """All results of an episode."""
    results = [sim.reset(seeds)]
    while not results[-1].finished.all():
        results.append(sim.step(choose(results[-1].action_mask)))
    return results


def always(choice):
    return lambda mask: torch.full_like(mask[..., 0], choice, dtype=torch.int64)


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("n3", {"eviction_period": 5, "initial_exchanges": 8}),
        ("n5", {"initial_exchanges": 0, "server_outage_probability": 0.3, "link_degradation_probability": 0.3}),
        ("n3-test", {**TESTED, "mask_invalid": False}),
        ("n3-all", {**TESTED, "server_outage_probability": 0.3}),
        ("ternary-test", {**TESTED, "initial_exchanges": 3}),
        ("paper", {"server_outage_probability": 0.5}),
    ],
)
def test_it_keeps_the_contract(preset, overrides):
    check_simulator(lambda num_envs: simulator(num_envs, preset, **overrides), steps=22)


def test_it_keeps_the_contract_where_distances_do_not_fit_at_once(monkeypatch):
    monkeypatch.setattr("envs.velo.simulator.AHEAD", 7 * 3 * 100 * 4)
    check_simulator(lambda num_envs: simulator(num_envs, initial_exchanges=36), steps=16)


WORLDS = st.fixed_dictionaries(
    {
        "num_servers": st.integers(1, 4),
        "action_space": st.sampled_from(["binary", "ternary"]),
        "test": st.sampled_from(["none", "similar", "both"]),
        "offloading": st.sampled_from(["nearest", "all"]),
        "test_requests": st.just(4),
        "build_requests": st.integers(5, 12),
        "initial_exchanges": st.sampled_from([0, 1, 12]),
        "query_results": st.sampled_from([1, 4, 10]),
        "reuse_distance": st.sampled_from([0.3, 0.7]),
        "phi_uses": st.sampled_from([0.0, 0.5]),
        "eviction_period": st.sampled_from([3, 300]),
        "interval_s": st.sampled_from([2.0, 10.0]),
        "server_outage_probability": st.sampled_from([0.0, 0.3]),
        "link_degradation_probability": st.sampled_from([0.0, 0.3]),
        "mask_invalid": st.booleans(),
    }
)


@settings(max_examples=25, deadline=None)
@given(WORLDS, st.integers(0, 2**40))
def test_it_is_the_slow_reference(overrides, seed):
    """Rewards and metrics of random episodes, against loops over servers that have one `ExactStore` each."""
    sim = simulator(2, **overrides)
    s = sim.scenario
    result = sim.reset(torch.tensor([seed, seed + 1]))
    reference = Reference(sim, 1)
    for step in range(s.steps):
        seen = [reference.query(n) for n in range(s.num_servers)]
        for n, found in enumerate(seen):
            assert result.observation["kind"][1, n].tolist()[: len(found)] == [entry["kind"] for entry in found]
            assert result.observation["uses"][1, n].tolist()[: len(found)] == [entry["uses"] for entry in found]
            ages = [s.initial_exchanges + step - entry["exchange"] for entry in found]
            assert result.observation["age"][1, n].tolist()[: len(found)] == ages
            if s.action_space == "binary" and s.mask_invalid:
                assert result.action_mask[1, n, 0].tolist() == [bool(found), True]
        assert result.observation["queue_backlog_s"][1].flatten().tolist() == pytest.approx([reference.free] * s.num_servers)
        actions = random_actions(result.action_mask, torch.Generator().manual_seed(seed % 1000 + step))
        result = sim.step(actions)
        rows = reference.step(actions[1, :, 0].tolist())
        together = s.offloading == "all" and step >= s.build_requests
        expected = first_answer(rows, s) if together else sum(row[0] for row in rows) / s.num_servers
        assert result.reward[1].item() == pytest.approx(expected, abs=1e-4)
        torch.testing.assert_close(result.agent_reward.sum(1), result.reward)
        measured = s.test == "none" or step >= s.build_requests
        if not together:
            figures = {
                **{"return": expected, "satisfaction": sum(row[1] for row in rows), "delay_s": sum(row[2] for row in rows)},
                **{"hits": sum(row[3] == A for row in rows), "direct": sum(row[3] == B for row in rows)},
                **{"augmented": sum(row[3] == C for row in rows), "wrong_hits": sum(row[4] for row in rows)},
                **{"requests": s.num_servers, "slots": 1},
            }
            for name, value in figures.items():
                assert result.metrics[name][1].item() == pytest.approx(value * measured, abs=1e-4), name
        stored = [len(store) for store in reference.stores]
        assert sim.pool.present[s.num_servers :].sum((1, 2)).tolist() == stored


def test_a_direct_request_worked_out_by_hand():
    """
    One server, one request: the plain answer lies at 0.7, prompt and answer have 40 and 100 tokens, and nothing waits.
    0.05 + 0.0005 * 40 + 0.025 * 100 = 2.57 s; 10 * (-0.7 - 0.1 * 2.57 - 0.6) = -15.57. The exchange is stored at -3.27.
    """
    sim = simulator(1, num_servers=1, initial_exchanges=5)
    result = sim.reset(torch.tensor([7]))
    asked = 5
    sim.episode.distance[0, 0, asked], sim.episode.answer_tokens[0, 0, asked] = 0.7, 100.0
    sim._prompt[sim.episode.question[0, 0, asked]] = 40.0
    result = sim.step(torch.tensor([[[CLOUD]]]))
    assert result.reward.item() == pytest.approx(-15.57)
    assert result.metrics["delay_s"].item() == pytest.approx(2.57)
    assert sim.pool.present[0, :, 5].all()
    assert sim.pool.value[0, :, 5].tolist() == pytest.approx([-3.27, -3.27])
    assert result.observation["direct_satisfaction"].item() == pytest.approx(-0.7)


def test_a_question_asked_again_is_answered_from_the_store():
    """The same question as an exchange's lies at distance 0 from it: its answer returns after 0.03 s, and is used once."""
    sim = simulator(1, num_servers=1, initial_exchanges=5)
    sim.reset(torch.tensor([7]))
    sim.episode.question[0, 0, 6] = sim.episode.question[0, 0, 2]
    sim._ahead = (0, 0)  # the distances of the changed request are not known yet
    result = sim.step(torch.tensor([[[CLOUD]]]))
    assert (result.observation["distance"][0, 0, 0], result.observation["kind"][0, 0, 0]) == (0, 0)
    value, distance = sim.pool.value[0, 0, 2].item(), sim.episode.distance[0, 0, 2].item()
    result = sim.step(torch.tensor([[[0]]]))
    assert result.metrics["hits"].item() == 1
    assert result.metrics["wrong_hits"].item() == 0
    assert result.metrics["satisfaction"].item() == pytest.approx(-distance, abs=0.01)
    assert result.metrics["delay_s"].item() == pytest.approx(0.03)
    assert sim.pool.uses[0, 0, 2].item() == 1
    assert sim.pool.value[0, 0, 2].item() == pytest.approx((value - distance - 0.03) / 2, abs=0.01)


def test_servers_wait_for_each_other():
    """Half the slots make waits longer, and what comes from the store waits for nobody."""
    waits = []
    for slots in (2, 1):
        results = play(simulator(8, "n3", llm={"slots": slots}), episode_seeds(0, 0, 8), always(CLOUD))
        waits.append(sum(result.metrics["wait_s"] for result in results))
    assert (waits[1] > waits[0]).all()
    sim = simulator(8, "ternary", initial_exchanges=20)
    assert not any(result.metrics["wait_s"].any() for result in play(sim, episode_seeds(0, 0, 8), always(0)))


def test_the_test_is_frozen_and_alone_measured():
    sim = simulator(4, "n3-test", **TESTED, eviction_period=2)
    results = play(sim, episode_seeds(0, 0, 4))
    stored = [result.observation["entries"] for result in results]
    assert [bool(result.observation["frozen"].all()) for result in results] == [False] * 9 + [True] * 11
    assert all(torch.equal(entries, stored[9]) for entries in stored[9:])
    assert not any(result.metrics["slots"].any() for result in results[:10])
    sums = {name: sum(result.metrics[name] for result in results) for name in results[0].metrics}
    for name in ("return", "slots", "requests", "hits"):
        torch.testing.assert_close(sums[f"similar_{name}"] + sums[f"new_{name}"], sums[name])
    assert (sums["slots"] == 10).all()
    assert (results[9].observation["queue_backlog_s"] == 0).all()
    assert (results[14].observation["queue_backlog_s"] == 0).all()


def test_new_requests_belong_to_no_group_of_the_stores():
    sim = simulator(8, "n3-test", **TESTED)
    sim.reset(episode_seeds(0, 0, 8))
    group = sim.corpus.group[sim.episode.question]
    past, new = group[..., : sim.scenario.exchanges], group[..., -5:]
    assert not (past[..., None] == new[..., None, :]).any()
    assert (sim.corpus.split[sim.episode.question[..., :-10]] == 0).all()


def test_offloading_to_all_gives_the_same_request_and_counts_it_once():
    sim = simulator(8, "n3-all", **TESTED)
    results = play(sim, episode_seeds(0, 0, 8), always(CLOUD))
    question = sim.episode.question[..., -10:]
    assert (question == question[:, :1]).all()
    assert (sim.episode.question[..., :-10] != sim.episode.question[:, :1, :-10]).any()
    assert (sum(result.metrics["requests"] for result in results) == 10).all()
    assert (sum(result.metrics["direct"] for result in results) == 10).all()
    assert (results[-1].metrics["delay_s"] > 0).all()


def test_home_topics_are_asked_more():
    """Three times the weight for a third of the topics: 3 / 5 of the requests."""
    sim = simulator(64, "n3", corpus={"questions": 600, "topics": 12, "zipf": 0.0, "width": 48}, build_requests=100)
    sim.reset(episode_seeds(0, 0, 64))
    topic = sim.corpus.topic[sim.corpus.group[sim.episode.question[..., 60:]]]
    home = topic % 3 == torch.arange(3)[None, :, None]
    assert home.float().mean().item() == pytest.approx(0.6, abs=0.02)


def test_eviction_happens_once_a_period_at_a_phase_of_each_server():
    sim = simulator(32, eviction_period=14, initial_exchanges=20)
    results = play(sim, episode_seeds(0, 0, 32), always(CLOUD))
    dropped = torch.stack([result.metrics["evicted"] for result in results[1:]])
    assert (dropped > 0).sum(0).float().mean() > 2  # three servers, at different steps
    assert len((dropped > 0).nonzero()[:, 0].unique()) == 14


def test_the_expert_weighs_what_an_answer_brings_later():
    """With foresight it asks the LLM more than without, and earns more."""
    returns, direct = [], []
    for foresight in (True, False):
        sim = simulator(16, corpus={}, build_requests=60, expert_foresight=foresight)
        results = play(sim, episode_seeds(3, 0, 16), lambda mask, sim=sim: sim.expert_actions())
        returns.append(sum(result.reward for result in results).mean())
        direct.append(sum(result.metrics["direct"] for result in results).mean())
    assert returns[0] > returns[1]
    assert direct[0] > direct[1]


def test_the_expert_takes_the_best_of_what_can_be_played():
    """For the last request, alone on its LLM, no choice brings more than the expert's."""
    base = {"num_servers": 1, "build_requests": 1, "initial_exchanges": 30, "action_space": "ternary", "corpus": {}}
    rewards = []
    for choice in range(3):
        sim = simulator(32, **base)
        sim.reset(episode_seeds(4, 0, 32))
        best = sim.expert_actions()
        rewards.append(sim.step(torch.full((32, 1, 1), choice)).reward)
    assert len(best.unique()) > 1
    assert torch.equal(torch.stack(rewards).argmax(0), best.flatten())
