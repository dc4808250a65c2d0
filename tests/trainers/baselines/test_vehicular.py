"""Heuristics of the vehicular problem, and what they reconstruct from observations."""

import pytest
import torch

from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from envs.team import TeamSpec, episode_seeds, random_actions
from trainers.baselines.headroom import main, upper_bound
from trainers.baselines.vehicular import HEURISTICS, GeneticPolicy, GreedyPolicy, NearestExpertPolicy, legalise
from trainers.evaluate import evaluate


@pytest.fixture(autouse=True)
def _one_thread():
    """The tensors are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SMALL = {"num_vehicles": 24, "horizon_slots": 8, "trace_slots": 20, "request_slots": 6}


def scenario(**overrides):
    return make_scenario("vehicular/v50-e6", {**SMALL, **overrides})


def simulator(num_envs, **overrides):
    return make_simulator(scenario(**overrides), num_envs)


@pytest.mark.parametrize("name", sorted(HEURISTICS))
@pytest.mark.parametrize("overrides", [{}, {"edge_down_probability": 0.2, "num_edges": 8}])
def test_heuristics_choose_what_is_legal(name, overrides):
    sim = simulator(3, **overrides)
    effort = {"population": 6, "generations": 3} if name == "genetic" else {}
    policy = HEURISTICS[name](sim.spec, seed=1, **effort)
    result, state = sim.reset(episode_seeds(0, 0, 3)), policy.initial_state(3)
    for _ in range(sim.spec.max_steps):
        actions, state = policy.act(result.observation, state, result.action_mask)
        assert bool(result.action_mask.gather(-1, actions[..., None]).all())
        result = sim.step(actions)
    assert bool(torch.isfinite(result.state).all())


ALL_SEEN = {"request_slots": 24, "coverage_radius_m": 9_000.0, "link_loss_probability": 0.2}


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        (ALL_SEEN, 1e-4),
        ({**ALL_SEEN, "edge_down_probability": 0.1}, 5e-3),  # requests of the macro cell wait for the cloud too
        ({}, 5e-2),  # of requests beyond the request slots only the number is seen
    ],
)
def test_differences_of_rewards_are_those_of_the_simulator(overrides, tolerance):
    # What vehicles serve themselves is the same whatever the edges do, so it cancels in a difference.
    seeds, generator = episode_seeds(4, 0, 16), torch.Generator().manual_seed(0)
    left, right = simulator(16, **overrides), simulator(16, **overrides)
    seen = left.reset(seeds)
    right.reset(seeds)
    policy = GreedyPolicy(left.spec)
    for _ in range(3):
        scene = policy.scene(seen.observation)
        one, other = (random_actions(seen.action_mask, generator) for _ in range(2))
        predicted = scene.reward(one) - scene.reward(other)
        actual = left.step(one).reward - right.step(other).reward
        assert predicted.tolist() == pytest.approx(actual.tolist(), abs=tolerance)
        assert actual.abs().max() > 1e-2
        left.reset(seeds)
        right.reset(seeds)
        warm = random_actions(seen.action_mask, generator)  # the same first step, then compare again
        seen = left.step(warm)
        right.step(warm)


def test_greedy_takes_the_best_levels():
    sim = simulator(4)
    seen = sim.reset(episode_seeds(0, 0, 4))
    policy = GreedyPolicy(sim.spec)
    chosen, _ = policy.act(seen.observation, {}, seen.action_mask)
    scene, slots = policy.scene(seen.observation), sim.scenario.request_slots
    best = scene.reward(chosen)
    for edge in range(6):
        for level in range(5):
            worse = chosen.clone()
            worse[:, edge, slots] = level
            assert bool((scene.reward(worse) <= best + 1e-5).all())


def test_genetic_is_at_least_as_good_as_greedy_in_the_slot():
    # Heavy tasks, so that edges which each take what was free in the last slot (all of it) get into each other's way.
    sim = simulator(4, num_vehicles=60, request_slots=12, cycles_per_mb_importance=200e9)
    seen = sim.reset(episode_seeds(0, 0, 4))
    greedy, genetic = GreedyPolicy(sim.spec), GeneticPolicy(sim.spec, population=16, generations=10)
    scene = greedy.scene(seen.observation)
    first, _ = greedy.act(seen.observation, {}, seen.action_mask)
    second, _ = genetic.act(seen.observation, {}, seen.action_mask)
    assert bool((scene.reward(second) >= scene.reward(first)).all())
    assert bool((scene.reward(second) > scene.reward(first)).any())


def test_nearest_expert_sends_requests_to_the_expert():
    sim = simulator(2)
    seen = sim.reset(episode_seeds(0, 0, 2))
    actions, _ = NearestExpertPolicy(sim.spec).act(seen.observation, {}, seen.action_mask)
    service = seen.observation["service"]
    asked = service >= 0
    assert torch.equal(actions[..., :6][asked], service[asked])  # edge k is the only expert for service k


def test_greedy_earns_more_than_random():
    seeds, played = episode_seeds(0, 0, 24), scenario()
    spec = simulator(1).spec
    returns = {name: evaluate(HEURISTICS[name](spec), played, seeds).values["return"].mean() for name in ("random", "greedy")}
    assert returns["greedy"] > returns["random"]
    assert upper_bound(played, seeds).mean() > returns["greedy"]


def test_the_bound_is_above_every_episode_of_every_heuristic():
    seeds, played = episode_seeds(0, 100, 12), scenario()
    spec, bound = simulator(1).spec, upper_bound(played, seeds).numpy()
    for name in ("random", "nearest-expert", "least-loaded", "greedy"):
        assert (evaluate(HEURISTICS[name](spec), played, seeds).values["return"] < bound).all()


def test_legalise():
    mask = torch.tensor([[True, False, True], [False, True, True]])
    assert legalise(torch.tensor([2, 0]), mask).tolist() == [2, 1]


def test_other_problems_are_refused():
    spec = TeamSpec("games", "games/two-step", ("a",), {}, (), 1, 1)
    with pytest.raises(InputError, match=r"policy 'greedy' is for the vehicular problem"):
        GreedyPolicy(spec)


def test_headroom_refuses_what_it_does_not_know(capsys):
    assert main(["vehicular/v51-e6"]) == 2
    assert "unknown scenario 'vehicular/v51-e6'" in capsys.readouterr().err
