"""The dag simulator as a whole."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.contract import check_simulator
from envs.dag.instance import objective, run_schedule, task_cost_usd, task_latency_s, upward_ranks
from envs.dag.templates import TEMPLATES
from envs.team import episode_seeds
from tests.envs.dag.play import brute_force_mask, hand_scenario, play, seeded_actions, simulator

RANDOM = {"num_tasks": 4, "random_graphs": {"nodes": 7, "pool": 5}}
LOADS = st.fixed_dictionaries(
    {
        "num_tasks": st.integers(1, 12),
        "graphs": st.lists(st.sampled_from(sorted(TEMPLATES)), min_size=1, max_size=5),
        "failure_probability": st.sampled_from([0.0, 0.3]),
        "mask_invalid": st.booleans(),
        "edge_modalities": st.sampled_from(
            [[["text"], ["image"], ["audio"]], [["text", "image"], ["image", "audio"], ["image", "multimodal"]]]
        ),
        "cloud_round_trip_s": st.sampled_from([0.0, 0.1, 0.4]),
    }
)


def total(results, name):
    """`[E]`: a metric's sum over an episode."""
    return sum(result.metrics[name].double() for result in results[1:])


def order_of(schedule):
    return [(i, j, int(schedule.location[i, j])) for i, j in schedule.order]


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("t5", {}),
        ("paper", {"failure_probability": 0.2}),
        ("paper-masked", {"failure_probability": 0.5}),
        ("t20", {"edge_modalities": [["text", "image"], ["image"], ["audio", "multimodal"]]}),
        ("t5", RANDOM),
    ],
)
def test_it_keeps_the_contract(preset, overrides):
    check_simulator(lambda num_envs: simulator(num_envs, preset, **overrides), steps=42 if preset == "paper" else 10)


def test_two_tasks_of_two_subtasks_worked_out_by_hand(tmp_path):
    """
    On the edge, task 0: 1 Mbit / 4 Mbit/s + 1 Gcycle / 2 GHz = 0.25 + 0.5 = 0.75 s, 0.5 $; task 1, twice that: 1.5 s, 1 $.
    On the cloud, task 0: 1 Mbit / 2 Mbit/s + 0.25 s + 1 Gcycle / 8 GHz = 0.75 + 0.125 = 0.875 s, 2 $.
    An output takes 0.5 / 2 = 0.25 s between edge and cloud, and 0.125 s (edge) or 0.0625 s (cloud) back to the device.

    Step 1, both `a` on the edge: both data ready at 0, so task 0 comes first.
        task 0: ST = 0,    EN = 0.75   reward 2 - 0                       - 0.5 * 0.75 - 0.5 * 0.5 = 1.375
        task 1: ST = 0.75, EN = 2.25   reward 2 - 1 * (2.25 - 2) = 1.75   - 0.5 * 1.5  - 0.5 * 1   = 0.5
    Step 2, `b`: task 0 on the cloud, task 1 on the edge.
        task 0: ST = 0.75 + 0.25 = 1,       EN = 1.875   reward 2 - 0                     - 0.5 * 0.875 - 0.5 * 2 = 0.5625
        task 1: ST = max(2.25, 2.25),       EN = 3.75    reward 2 - 1 * (3.75 - 2) = 0.25 - 0.5 * 1.5   - 0.5 * 1 = -1
    T_0 = 1.875 - 0 + 0.0625 = 1.9375, T_1 = 3.75 - 0.75 + 0.125 = 3.125 (late); costs 0.5 + 2 and 1 + 1.
    """
    sim = simulator(3, **hand_scenario(tmp_path))
    sim.reset(torch.tensor([1, 2, 3]))
    edge, cloud = 0, 1
    first = sim.step(torch.tensor([[[0 * 2 + edge], [0 * 2 + edge]]]).expand(3, -1, -1))
    assert first.agent_reward.tolist() == [[1.375, 0.5]] * 3
    assert first.reward.tolist() == [1.875] * 3
    assert first.metrics["wait_s"].tolist() == [0.75] * 3
    assert first.alive.all()
    assert not first.terminated.any()
    np.testing.assert_array_equal(first.observation["server_free_s"][0], [[2.25, 0.0]] * 2)
    np.testing.assert_array_equal(first.observation["subtask_data_ready_s"][0, :, 1], [[0.75, 1.0], [2.25, 2.5]])

    second = sim.step(torch.tensor([[[1 * 2 + cloud], [1 * 2 + edge]]]).expand(3, -1, -1))
    assert second.agent_reward.tolist() == [[0.5625, -1.0]] * 3
    assert second.terminated.all()
    assert not second.alive.any()
    schedule = sim.schedule(1)
    np.testing.assert_array_equal(schedule.start_s, [[0, 1], [0.75, 2.25]])
    np.testing.assert_array_equal(schedule.end_s, [[0.75, 1.875], [2.25, 3.75]])
    np.testing.assert_array_equal(schedule.location, [[edge, cloud], [edge, edge]])
    assert schedule.order == [(0, 0), (1, 0), (0, 1), (1, 1)]
    expected = {"completed": 2, "violations": 1, "latency_s": 1.9375 + 3.125, "cost_usd": 4.5, "illegal": 0, "choices": 2}
    expected |= {"objective": 0.5 * (1.9375 + 3.125) + 0.5 * 4.5, "accepted": 2, "on_cloud": 1, "wait_s": 0, "reward": -0.4375}
    assert {name: value[0].item() for name, value in second.metrics.items()} == expected


def test_illegal_choices_worked_out_by_hand(tmp_path):
    """The penalty is 1 for each unscheduled predecessor and 1 where the location cannot take the subtask."""
    hand = {**hand_scenario(tmp_path), "edge_hz": [2e9, 2e9], "edge_modalities": [["text"], ["image"]]}
    sim = simulator(1, "paper", **hand)
    text_edge, image_edge, cloud = range(3)
    a, b = 0, 3
    sim.reset(torch.tensor([1]))

    def rewards(task_0, task_1):
        result = sim.step(torch.tensor([[[task_0], [task_1]]]))
        return result.agent_reward[0].tolist(), result.metrics["illegal"].item()

    assert rewards(b + text_edge, b + image_edge) == ([-1.0, -2.0], 2)
    assert rewards(a + image_edge, a + text_edge) == ([-1.0, 2 - 0.5 * 1.5 - 0.5 * 1.0], 1)
    assert rewards(a + cloud, a + text_edge) == ([2 - 0.5 * 0.875 - 0.5 * 2.0, -1.0], 1)  # scheduled already: counts 1
    assert rewards(a + image_edge, b + cloud)[0][0] == -2.0
    assert (sim.schedule(0).location == [[cloud, -1], [text_edge, cloud]]).all()
    assert rewards(b + cloud, a + image_edge)[0][1] == 0.0  # task 1 has left


def test_a_down_edge_takes_nothing_and_costs_a_penalty(tmp_path):
    sim = simulator(1, "paper", **hand_scenario(tmp_path), failure_probability=1.0)
    shown = sim.reset(torch.tensor([1]))
    assert shown.observation["server_up"][0].tolist() == [[0.0, 1.0]] * 2
    result = sim.step(torch.tensor([[[0], [1]]]))
    assert result.agent_reward[0].tolist() == [-1.0, 2 - 0.5 * (1.25 + 0.25) - 0.5 * 4.0]
    assert (sim.schedule(0).location == [[-1, -1], [1, -1]]).all()


@settings(max_examples=40, deadline=None)
@given(load=LOADS, seed=st.integers(0, 2**40))
def test_the_tensors_equal_the_rules_one_by_one(load, seed):
    """Bit for bit, for whatever has been scheduled: times, order, and the figures of tasks that have left."""
    sim = simulator(3, **load)
    results, _ = play(sim, episode_seeds(seed, 0, 3))
    for row in range(3):
        instance, schedule = sim.instance(row), sim.schedule(row)
        expected = run_schedule(instance, order_of(schedule))
        np.testing.assert_array_equal(schedule.start_s, expected.start_s)
        np.testing.assert_array_equal(schedule.end_s, expected.end_s)
        latency_s, cost_usd = task_latency_s(instance, schedule), task_cost_usd(instance, schedule)
        assert total(results, "completed")[row] == np.isfinite(latency_s).sum()
        assert total(results, "violations")[row] == (latency_s > sim.scenario.deadline_s).sum()
        assert total(results, "latency_s")[row].item() == pytest.approx(np.nansum(latency_s), abs=1e-4)
        assert total(results, "cost_usd")[row].item() == pytest.approx(np.nansum(cost_usd), abs=1e-4)
        assert total(results, "objective")[row].item() == pytest.approx(objective(instance, schedule), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(load=LOADS, seed=st.integers(0, 2**40))
def test_every_finished_schedule_keeps_the_constraints(load, seed):
    """C4 and C5 of the paper: modality, precedence with transfers, one subtask at a time on an edge; and no work is lost."""
    sim = simulator(2, **{**load, "mask_invalid": True})
    play(sim, episode_seeds(seed, 0, 2))
    for row in range(2):
        instance, schedule = sim.instance(row), sim.schedule(row)
        at, start_s, end_s = schedule.location, schedule.start_s, schedule.end_s
        assert ((at >= 0) == instance.exists).all()
        tasks, subtasks = np.nonzero(instance.exists)
        assert instance.allowed[tasks, subtasks, at[tasks, subtasks]].all()
        for i, j, k in zip(*np.nonzero(instance.successors), strict=True):
            assert start_s[i, k] >= end_s[i, j] + instance.transfer_s[i, j, at[i, j], at[i, k]]
        for edge in range(instance.cloud):
            busy = sorted((start_s[i, j], end_s[i, j]) for i, j in zip(*np.nonzero(at == edge), strict=True))
            assert all(end <= start for (_, end), (start, _) in pairwise(busy))
        work_s = instance.service_s[tasks, subtasks, at[tasks, subtasks]]
        np.testing.assert_array_equal((end_s - start_s)[tasks, subtasks], work_s)


@settings(max_examples=30, deadline=None)
@given(load=LOADS, seed=st.integers(0, 2**40))
def test_masked_episodes_never_pay_a_penalty(load, seed):
    """All that the reward holds is theta, lateness, time and cost of the subtasks that were scheduled."""
    sim = simulator(2, **{**load, "mask_invalid": True})
    results, _ = play(sim, episode_seeds(seed, 0, 2))
    assert not total(results, "illegal").any()
    paid = sum(result.agent_reward.double() for result in results[1:])
    for row in range(2):
        instance, schedule = sim.instance(row), sim.schedule(row)
        expected = np.zeros(len(instance.exists))
        for i, j in schedule.order:
            at = schedule.location[i, j]
            late_s = max(0.0, schedule.end_s[i, j] - sim.scenario.deadline_s)
            expected[i] += 2.0 - late_s - 0.5 * instance.service_s[i, j, at] - 0.5 * instance.cost_usd[i, j, at]
        np.testing.assert_allclose(paid[row], expected, atol=1e-4)
        assert total(results, "reward")[row].item() == pytest.approx(expected.sum(), abs=1e-3)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"failure_probability": 0.4},
        {"mask_invalid": False, "failure_probability": 0.4, "max_steps": 12},
        {**RANDOM, "edge_modalities": [["text", "image"], [], ["audio", "text", "multimodal"]]},
    ],
)
def test_masks_equal_a_recomputation_in_plain_python(overrides):
    sim, seeds = simulator(2, **overrides), episode_seeds(0, 5, 2)
    result = sim.reset(seeds)
    for step in range(sim.spec.max_steps):
        for row in range(2):
            up = [bool(flag) for flag in result.observation["server_up"][row, 0]]
            shown = [set(choices.nonzero().flatten().tolist()) for choices in result.action_mask[row, :, 0]]
            assert shown == brute_force_mask(sim, row, up), (row, step)
        result = sim.step(seeded_actions(result.action_mask, seeds, step))


def test_failures_only_mask_edges():
    """The episode is the same; where an edge is down its choices are illegal, and nothing else changes."""
    seeds = episode_seeds(0, 0, 64)
    sound, faulty, dead = (simulator(64, failure_probability=p).reset(seeds) for p in (0.0, 0.3, 1.0))
    up = faulty.observation["server_up"][:, :1, None]  # [E, 1, 1, L]
    assert 0.2 < 1.0 - up[..., :-1].mean() < 0.4
    assert up[..., -1].all()
    masks = [result.action_mask.view(64, 5, -1, 4) for result in (sound, faulty, dead)]
    assert torch.equal(masks[1], masks[0] & (up > 0))
    assert not masks[2][..., :-1].any()
    assert torch.equal(masks[2][..., -1], masks[0][..., -1])
    for name in set(sound.observation) - {"server_up"}:
        assert torch.equal(sound.observation[name], faulty.observation[name]), name


def test_an_edge_fails_as_often_as_said_at_every_step():
    sim, seeds = simulator(256, failure_probability=0.2), episode_seeds(0, 0, 256)
    results, _ = play(sim, seeds)
    down = torch.stack([1.0 - result.observation["server_up"][:, 0, :-1] for result in results])  # [T, E, L-1]
    assert down.mean((1, 2)).sub(0.2).abs().max() < 0.06
    assert 0.2**2 / 2 < (down[1:] * down[:-1]).mean() < 0.2**2 * 2  # steps are independent


@pytest.mark.parametrize("overrides", [{"num_tasks": 12, "failure_probability": 0.2}, RANDOM])
def test_an_episode_is_the_same_in_any_row_of_any_batch(overrides):
    seeds = episode_seeds(3, 0, 64)
    reference, _ = play(simulator(64, **overrides), seeds)
    for rows in ([11], [63, 0], [5, 9, 1, 33, 20, 62, 2]):
        episodes, _ = play(simulator(len(rows), **overrides), seeds[rows])
        for expected, got in zip(reference, episodes, strict=True):
            assert torch.equal(expected.reward[rows], got.reward)
            assert torch.equal(expected.agent_reward[rows], got.agent_reward)
            assert torch.equal(expected.state[rows], got.state)
            assert torch.equal(expected.action_mask[rows], got.action_mask)
            for name, value in expected.observation.items():
                assert torch.equal(value[rows], got.observation[name]), name
            for name, value in expected.metrics.items():
                assert torch.equal(value[rows], got.metrics[name]), name


@settings(max_examples=20, deadline=None)
@given(load=LOADS, seed=st.integers(0, 2**40))
def test_ranks_are_those_of_heft(load, seed):
    sim = simulator(1, **load)
    shown = sim.reset(episode_seeds(seed, 0, 1)).observation["subtask_rank_s"][0]
    np.testing.assert_allclose(shown, upward_ranks(sim.instance(0)), rtol=1e-6)


def test_agents_see_their_own_task():
    sim = simulator(2, num_tasks=7)
    shown = sim.reset(episode_seeds(0, 0, 2)).observation
    for row in range(2):
        instance = sim.instance(row)
        np.testing.assert_array_equal(shown["subtask_modality"][row], instance.modality)
        np.testing.assert_array_equal(shown["subtask_successors"][row], instance.successors)
        np.testing.assert_allclose(shown["subtask_service_s"][row], instance.service_s * instance.allowed, rtol=1e-6)
        np.testing.assert_allclose(shown["subtask_cost"][row], instance.cost_usd * instance.allowed, rtol=1e-6)
        for j in range(instance.shape[1]):
            ready = instance.exists[:, j] & ~instance.successors[:, :, j].any(1)
            np.testing.assert_array_equal(shown["subtask_ready"][row, :, j], ready)
    assert shown["subtask_input_bits"][:, 0, :5].ge(1e3).all()  # a text chain
    assert shown["subtask_input_bits"][:, 0, :5].le(3e3).all()
    assert not shown["subtask_input_bits"][:, 0, 5:].any()


def test_figures_of_a_row_that_is_finished_stay():
    sim, seeds = simulator(4, num_tasks=2, graphs=["text-analysis"], max_steps=9), episode_seeds(0, 0, 4)
    results, _ = play(sim, seeds)
    assert results[5].terminated.all()
    assert not results[5].alive.any()
    assert all(not result.reward.any() for result in results[6:])
    before = sim.schedule(2)
    sim.step(torch.zeros(4, 2, 1, dtype=torch.int64))
    assert before.order == sim.schedule(2).order


def test_an_episode_ends_at_its_last_step_though_tasks_are_left():
    sim = simulator(2, max_steps=2)
    results, _ = play(sim, episode_seeds(0, 0, 2), steps=3)
    assert not results[1].terminated.any()
    assert results[2].terminated.all()
    assert results[2].alive.all()
    assert not results[3].reward.any()


def test_steps_per_episode_by_default():
    assert simulator().spec.max_steps == 8  # of the longest template
    assert simulator(preset="paper").spec.max_steps == 40
    assert simulator(preset="random-t10-n20").spec.max_steps == 20


def test_step_before_reset():
    with pytest.raises(RuntimeError, match="before reset"):
        simulator().step(torch.zeros(1, 5, 1, dtype=torch.int64))
