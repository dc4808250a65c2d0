"""What the stochastic policies of runner and learner agree on, and how rows of several runners become a batch."""

from typing import Any

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from envs.registry import make_scenario, make_simulator
from models.diffusion import DiffusionConfig
from models.distributions import BranchCategorical
from models.request_encoder import RequestEncoderConfig
from models.team_module import ACTION_MASK, ACTIONS, ALIVE, DENOISING, FILLED, LOG_PROB, OBSERVATION, REWARD, STATE
from models.team_network import IntentConfig, NetworkConfig
from trainers.algorithms import find_algorithm
from trainers.algorithms.mappo import MappoSettings
from trainers.algorithms.policy_gradient import join_rows
from trainers.learned_policy import build_module
from trainers.rollout import TeamEnvRunner, play_episodes

NETWORK = NetworkConfig(hidden=16, entity_hidden=8, graph_size=4)
PROBLEMS: dict[str, dict[str, Any]] = {
    "games/two-step": {},
    "dag/paper": {},
    "vehicular/v50-e6": {"num_vehicles": 6, "horizon_slots": 8},
    "pettingzoo:mpe2.simple_spread_v3": {"max_steps": 4},
}


# small parts of LRS and DLRS that any of the algorithms can use
OPTIONS = {
    "request_encoder": RequestEncoderConfig(field=None, patches=2, width=6, heads=3, linear=8, size=4),
    "diffusion": DiffusionConfig(steps=5, hidden=16),
}


def played(problem: str, shared: bool = True, explore: bool = True, algorithm: str = "mappo", **options: Any):
    """A fresh module with standardised inputs, and the rows of three episodes that it played."""
    simulator = make_simulator(make_scenario(problem, PROBLEMS[problem]), 3)
    torch.manual_seed(1)
    network = NETWORK.model_copy(update={"shared": shared, **options})
    settings = find_algorithm(algorithm).config_class().settings_class()
    module = build_module(algorithm, simulator.spec, network, settings)
    seeds = torch.tensor([3, 4, 5])
    rows, _ = play_episodes(simulator, module, seeds, True, generator=torch.Generator().manual_seed(2))
    module.network.fit(rows[OBSERVATION][rows[ALIVE]])
    rows, _ = play_episodes(simulator, module, seeds, explore, generator=torch.Generator().manual_seed(2))
    simulator.close()
    return module, rows


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_learner_computes_the_log_probabilities_that_the_runner_recorded(problem, shared):
    module, rows = played(problem, shared)
    policy, out = module.unroll(rows)
    log_p = policy.of_branches(rows[ACTIONS].long())
    assert rows[LOG_PROB].shape == rows[ACTIONS].shape
    torch.testing.assert_close(log_p, rows[LOG_PROB], atol=2e-5, rtol=1e-4)
    assert (log_p < -0.01).any()
    assert out.scores.shape == policy.log_p.shape
    legal = rows[ACTION_MASK][:, :-1].gather(-1, rows[ACTIONS].long()[..., None])
    assert legal.all()


def test_the_state_after_the_last_action_comes_on_request():
    module, rows = played("dag/paper")
    policy, _ = module.unroll(rows)
    longer, _ = module.unroll(rows, after=True)
    steps = rows[ACTIONS].shape[1]
    assert longer.log_p.shape[1] == steps + 1
    torch.testing.assert_close(longer.log_p[:, :-1], policy.log_p)
    moved = {**rows, ACTIONS: rows[ACTIONS].clone()}
    moved[ACTIONS][:, -1] += 1  # the last action is known to what comes after it, and to nothing before
    again, _ = module.unroll(moved, after=True)
    assert torch.equal(again.log_p[:, :-1], longer.log_p[:, :-1])
    other = {**rows, OBSERVATION: rows[OBSERVATION].clone(), ACTION_MASK: torch.ones_like(rows[ACTION_MASK])}
    other[OBSERVATION][:, -1] += 1
    changed = module.unroll(other, after=True)[0].log_p[:, -1]
    same = module.unroll({**other, OBSERVATION: rows[OBSERVATION]}, after=True)[0].log_p[:, -1]
    assert not torch.allclose(changed, same)


def test_play_takes_the_most_probable_choices():
    module, rows = played("games/two-step", explore=False)
    assert LOG_PROB not in rows
    policy, _ = module.unroll(rows)
    assert torch.equal(policy.mode(), rows[ACTIONS].long())
    assert len(rows[ACTIONS].unique(dim=0)) == 1


def test_exploring_samples_from_the_policy():
    spec = make_simulator(make_scenario("games/agreement")).spec
    torch.manual_seed(1)
    module = build_module("mappo", spec, NETWORK, MappoSettings())
    rows = 20_000
    packed = torch.ones(rows, 2, 1, dtype=torch.float16)
    mask = torch.ones(rows, 2, 1, 3, dtype=torch.bool)
    actions, state, extras = module.act(
        packed, mask, module.initial_state(rows), True, generator=torch.Generator().manual_seed(3)
    )
    out = module.network(packed[:1, None], torch.full((1, 1, 2, 1), -1), module.network.initial_state(1))
    policy = BranchCategorical.of(out.scores[0, 0], mask[0])
    shares = torch.nn.functional.one_hot(actions, 3).float().mean(0)
    torch.testing.assert_close(shares, policy.log_p.exp(), atol=0.02, rtol=0)  # deviations of at most 0.0036
    assert torch.equal(state["previous_actions"], actions)
    torch.testing.assert_close(extras[LOG_PROB], policy.log_p.expand(rows, 2, 1, 3).gather(-1, actions[..., None])[..., 0])


def rows_of(count: int, steps: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        REWARD: torch.rand(count, steps, generator=generator),
        FILLED: torch.ones(count, steps, dtype=torch.bool),
        STATE: torch.rand(count, steps + 1, 2, generator=generator),
        ACTIONS: torch.randint(0, 3, (count, steps, 2, 1), generator=generator).to(torch.int16),
    }


def test_rows_of_several_runners_are_padded_to_the_longest():
    parts = [rows_of(2, 3, 0), rows_of(1, 5, 1), rows_of(2, 1, 2)]
    joined = join_rows(parts)
    assert {name: tuple(value.shape) for name, value in joined.items()} == {
        REWARD: (5, 5),
        FILLED: (5, 5),
        STATE: (5, 6, 2),
        ACTIONS: (5, 5, 2, 1),
    }
    assert joined[FILLED].sum(1).tolist() == [3, 3, 5, 1, 1]
    for name, value in joined.items():
        assert value.dtype == parts[0][name].dtype
        for part, places in zip(parts, (slice(0, 2), slice(2, 3), slice(3, 5)), strict=True):
            steps = part[name].shape[1]
            assert torch.equal(value[places, :steps], part[name])
            assert not value[places, steps:].any()


def test_one_runners_rows_stay_as_they_are():
    rows = rows_of(2, 3, 0)
    assert join_rows([rows]) is rows


# ------------------------------------------------------------------------------------------------------ diffusion actors


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_recorded_noise_gives_the_recorded_log_probabilities(problem, shared):
    module, rows = played(problem, shared, **OPTIONS)
    episodes, steps, agents, _ = rows[ACTIONS].shape
    assert rows[DENOISING].shape == (episodes, steps, agents, 5, sum(module.spec.branches))
    assert rows[DENOISING].dtype == torch.float32
    policy, _ = module.unroll(rows)
    torch.testing.assert_close(policy.of_branches(rows[ACTIONS].long()), rows[LOG_PROB], atol=2e-4, rtol=1e-3)
    other, _ = module.unroll({**rows, DENOISING: torch.randn_like(rows[DENOISING])})
    assert not torch.allclose(other.log_p, policy.log_p, atol=1e-2)


def test_talking_agents_can_denoise():
    module, rows = played("vehicular/v50-e6", intent=IntentConfig(size=4, key_size=4, tokens=4), **OPTIONS)
    policy, _ = module.unroll(rows)
    torch.testing.assert_close(policy.of_branches(rows[ACTIONS].long()), rows[LOG_PROB], atol=2e-4, rtol=1e-3)


def test_play_denoises_zeros():
    module, rows = played("games/two-step", explore=False, **OPTIONS)
    assert DENOISING not in rows
    zeros = torch.zeros(3, 2, 2, 5, sum(module.spec.branches))
    policy, _ = module.unroll({**rows, DENOISING: zeros})
    assert torch.equal(policy.mode(), rows[ACTIONS].long())
    assert len(rows[ACTIONS].unique(dim=0)) == 1


def test_the_same_generator_gives_the_same_noise_and_actions():
    rows = [played("dag/paper", **OPTIONS)[1] for _ in range(2)]
    assert torch.equal(rows[0][DENOISING], rows[1][DENOISING])
    assert torch.equal(rows[0][ACTIONS], rows[1][ACTIONS])
    noise = rows[0][DENOISING]
    assert abs(noise.mean()) < 0.05
    assert noise.std() == pytest.approx(1.0, abs=0.05)


def test_decisions_that_were_not_made_have_fresh_noise():
    module, rows = played("dag/paper", algorithm="coma", **OPTIONS)
    policy, _ = module.unroll(rows)
    longer = [module.unroll(rows, after=True)[0].log_p for _ in range(2)]
    torch.testing.assert_close(longer[0][:, :-1], policy.log_p, atol=1e-4, rtol=1e-4)
    assert torch.equal(longer[0][:, :-1], longer[1][:, :-1])
    assert not torch.equal(longer[0][:, -1], longer[1][:, -1])


def test_maddpg_asks_what_the_actors_would_do_now():
    module, rows = played("dag/paper", algorithm="maddpg", **OPTIONS)
    assert DENOISING not in rows
    torch.manual_seed(1)
    once, again = module.unroll(rows)[0].log_p, module.unroll(rows)[0].log_p
    assert not torch.equal(once, again)
    torch.manual_seed(1)
    assert torch.equal(module.unroll(rows)[0].log_p, once)


@pytest.mark.parametrize("algorithm", ["mappo", "coma", "maddpg"])
def test_only_what_acts_leaves_the_learner(algorithm):
    entry = find_algorithm(algorithm).config_class()
    scenario = make_scenario("games/two-step")
    spec = make_simulator(scenario).spec
    config = entry().team(scenario, spec, NETWORK, entry.settings_class(), env_steps=100).debugging(log_level="ERROR")
    learner = config.build_learner(spaces={DEFAULT_MODULE_ID: TeamEnvRunner.spaces_of(spec)})
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    acts = {name.partition(".")[0] for name in module.get_state(inference_only=True)}
    assert acts == {"network"} | ({"counts"} if algorithm == "coma" else set())
    trained = module.trained_parameters()
    assert set(trained) == {"actor", "critic"}
    ids = [{id(p) for p in group} for group in trained.values()]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {id(p) for p in module.parameters() if p.requires_grad}
