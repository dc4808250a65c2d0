"""Heuristics of the dag problem, what they reconstruct from observations, and the figures that comparisons add."""

import math

import numpy as np
import pytest
import torch

from envs.dag.instance import objective, run_schedule
from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from envs.team import TeamSpec, episode_seeds
from trainers.baselines import dag_comparison
from trainers.baselines.dag import HEURISTICS, EdgePolicy, HeftPolicy, end_s, legal_pairs
from trainers.baselines.dag_comparison import instances, normalised, optimality_gaps
from trainers.baselines.dag_headroom import best_return, main, schedule_return
from trainers.evaluate import evaluate


@pytest.fixture(autouse=True)
def _one_thread():
    """The tensors are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


VARIED = [
    {},
    {"failure_probability": 0.4},
    {"mask_invalid": False, "failure_probability": 0.3},
    {"num_tasks": 7, "edge_hz": (2e9, 2.5e9), "edge_modalities": (("text", "image"), ("image", "audio"))},
    {"num_tasks": 3, "random_graphs": {"nodes": 6}},
]


def scenario(**overrides):
    return make_scenario("dag/t5", overrides)


def play(policy, sim, seeds):
    """Every step's (observation, mask, actions), and the last result."""
    result, state = sim.reset(seeds), policy.initial_state(len(seeds))
    steps = []
    while not bool(result.finished.all()):
        actions, state = policy.act(result.observation, state, result.action_mask)
        steps.append((result, actions))
        result = sim.step(actions)
    return steps, result


@pytest.mark.parametrize("name", sorted(HEURISTICS.keys() - {"random"}))  # which takes the mask as it is
@pytest.mark.parametrize("overrides", VARIED)
def test_heuristics_choose_what_is_legal(name, overrides):
    sim = make_simulator(scenario(**overrides), 4)
    steps, result = play(HEURISTICS[name](sim.spec, seed=1), sim, episode_seeds(0, 0, 4))
    for seen, actions in steps:
        assert bool(seen.action_mask.gather(-1, actions[..., None]).all())
    assert len(steps) <= sim.pool.places, "a legal choice in every step ends the episode after J steps"
    assert not bool(result.alive.any())


@pytest.mark.parametrize("overrides", [v for v in VARIED if v.get("mask_invalid", True)])
def test_legal_pairs_are_those_of_the_mask(overrides):
    sim = make_simulator(scenario(**overrides), 4)
    steps, _ = play(HEURISTICS["random"](sim.spec, seed=3), sim, episode_seeds(0, 0, 4))
    for seen, _ in steps:
        legal = legal_pairs(seen.observation).flatten(2)
        alive = seen.alive & ~seen.finished[:, None]
        assert torch.equal(legal[alive], seen.action_mask[:, :, 0][alive])


def test_ends_are_those_of_the_simulator_where_nobody_else_chooses():
    sim = make_simulator(scenario(num_tasks=1), 3)
    result = sim.reset(episode_seeds(0, 0, 3))
    policy = HEURISTICS["random"](sim.spec, seed=0)
    while not bool(result.finished.all()):
        actions, _ = policy.act(result.observation, {}, result.action_mask)
        subtask = actions[:, 0, 0] // sim.scenario.num_locations
        expected = end_s(result.observation)[:, 0].flatten(1).gather(1, actions[:, 0])
        result = sim.step(actions)
        actual = result.observation["subtask_end_s"][:, 0].gather(1, subtask[:, None])
        torch.testing.assert_close(actual, expected)


def test_cloud_and_edge_go_where_they_say():
    seeds = episode_seeds(0, 0, 3)
    for name, expected in (("cloud", {3}), ("edge", {0, 1, 2, 3})):
        sim = make_simulator(scenario(), 3)
        play(HEURISTICS[name](sim.spec), sim, seeds)
        problem, schedule = sim.instance(0), sim.schedule(0)
        used = schedule.location[problem.exists]
        assert set(used.tolist()) == expected
        if name == "edge":  # the cloud only where no edge hosts the subtask
            assert np.array_equal(used == 3, ~problem.allowed[problem.exists][:, :3].any(1))


def test_edge_falls_back_to_the_cloud_when_its_server_is_down():
    sim = make_simulator(scenario(failure_probability=1.0), 2)
    policy = EdgePolicy(sim.spec)
    play(policy, sim, episode_seeds(0, 0, 2))
    problem = sim.instance(0)
    assert (sim.schedule(0).location[problem.exists] == problem.cloud).all()


def test_heft_serves_tasks_by_rank_and_counts_what_it_has_placed():
    # Five equal text tasks: the edge is quicker until its queue is longer than the cloud's round trip.
    sim = make_simulator(
        scenario(
            graphs=("text-analysis",),
            input_bits=((1e5, 1e5), (1e5, 1e5), (2e5, 2e5), (3e5, 3e5)),
            num_tasks=5,
            cloud_round_trip_s=0.1,
        ),
        1,
    )
    result = sim.reset(episode_seeds(0, 0, 1))
    actions, _ = HeftPolicy(sim.spec).act(result.observation, {}, result.action_mask)
    places = (actions[0, :, 0] % sim.scenario.num_locations).tolist()
    service_s = result.observation["subtask_service_s"][0, :, 0]
    by_rank = result.observation["subtask_rank_s"][0, :, 0].argsort(descending=True, stable=True).tolist()
    free_s = 0.0
    for task in by_rank:
        on_edge, on_cloud = free_s + float(service_s[task, 0]), float(service_s[task, 3])
        assert places[task] == (0 if on_edge <= on_cloud else 3)
        free_s = on_edge if places[task] == 0 else free_s
    assert 0 < places.count(0) < 5


def test_better_informed_heuristics_are_better():
    chosen, seeds = scenario(), episode_seeds(0, 0, 16)
    spec = make_simulator(chosen, 1).spec
    found = {name: evaluate(policy(spec), chosen, seeds).pooled("objective") for name, policy in HEURISTICS.items()}
    assert max(found["heft"], found["greedy"]) < min(found["random"], found["cloud"], found["edge"])


def test_heuristics_refuse_other_problems():
    spec = TeamSpec("games", "g", ("a",), {}, (), 1, 1)
    with pytest.raises(InputError, match="is for the dag problem"):
        HeftPolicy(spec)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0], [0.1, 0.55, 1.0]),
        ([3.0, math.nan, 1.0], [1.0, math.nan, 0.1]),
        ([2.0, 2.0], [0.1, 0.1]),
        ([-5.0], [0.1]),
        ([math.nan], [math.nan]),
        ([], []),
    ],
)
def test_normalised(values, expected):
    np.testing.assert_allclose(normalised(values), expected)


SMALL = {"num_tasks": 2, "graphs": ("image-analysis", "audio-analysis")}


def test_no_policy_is_below_the_optimum_and_gaps_say_by_how_much():
    chosen, seeds = scenario(**SMALL), episode_seeds(0, 0, 2)
    optima = optimality_gaps(chosen, seeds, time_limit_s=30.0)
    assert optima.stepwise
    assert optima.proved.all()
    spec = make_simulator(chosen, 1).spec
    for policy in HEURISTICS.values():
        results = evaluate(policy(spec), chosen, seeds)
        gaps = optima.gaps(results.values["objective"], results.values["completed_tasks"], chosen.num_tasks)
        assert (gaps > -1e-5).all()
        np.testing.assert_allclose(results.values["objective"], (1 + gaps) * optima.objective)
    assert np.isnan(optima.gaps([1.0, 2.0], [2.0, 1.0], 2)).tolist() == [False, True]


def test_optimum_by_steps_can_be_played_in_the_simulator():
    chosen, seeds = scenario(num_tasks=4), episode_seeds(4, 0, 1)
    found = optimality_gaps(chosen, seeds, time_limit_s=60.0).episodes[0]
    sim = make_simulator(chosen, 1)
    result = sim.reset(seeds)
    orders = [[j for i, j in found.schedule.order if i == task] for task in range(chosen.num_tasks)]
    total = 0.0
    for step in range(sim.spec.max_steps):
        actions = torch.zeros(1, chosen.num_tasks, 1, dtype=torch.int64)
        for task, order in enumerate(orders):
            if step < len(order):
                actions[0, task, 0] = order[step] * chosen.num_locations + found.schedule.location[task, order[step]]
        assert bool(result.action_mask.gather(-1, actions[..., None]).all())
        result = sim.step(actions)
        total += float(result.metrics["objective"])
    assert total == pytest.approx(found.objective, abs=1e-5)
    assert sim.schedule(0).order == found.schedule.order


def test_episodes_are_solved_once(monkeypatch):
    chosen, seeds = scenario(**SMALL), episode_seeds(9, 0, 2)
    first = optimality_gaps(chosen, seeds, time_limit_s=30.0)
    monkeypatch.setattr(dag_comparison, "optimum", lambda *_, **__: pytest.fail("solved again"))
    again = optimality_gaps(chosen, seeds.flip(0), time_limit_s=30.0)
    assert again.episodes == first.episodes[::-1]


def test_gaps_are_for_the_dag_problem_only():
    with pytest.raises(InputError, match="dag problem only"):
        optimality_gaps(make_scenario("games/two-step"), episode_seeds(0, 0, 1))


def test_returns_of_schedules_are_the_simulators():
    chosen, seeds = scenario(deadline_s=0.6), episode_seeds(0, 0, 2)
    sim = make_simulator(chosen, 2)
    results = evaluate(EdgePolicy(sim.spec), chosen, seeds)
    play(EdgePolicy(sim.spec), sim, seeds)
    for row, problem in enumerate(instances(chosen, seeds)):
        schedule = sim.schedule(row)
        assert schedule_return(chosen, problem, schedule) == pytest.approx(results.values["return"][row], abs=1e-4)
        assert best_return(chosen, problem) >= results.values["return"][row] - 1e-4
        decided = [(i, j, int(schedule.location[i, j])) for i, j in schedule.order]
        assert objective(problem, run_schedule(problem, decided)) == pytest.approx(results.values["objective"][row], abs=1e-5)


def test_headroom_prints_a_table(capsys):
    assert main(["dag/t5", "--episodes", "1", "--time-limit", "20"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| optimum") == 2
    assert all(f"| {name} |" in printed for name in HEURISTICS)
    assert main(["games/two-step"]) == 2
    assert "dag problem only" in capsys.readouterr().err
