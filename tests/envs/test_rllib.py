"""Stock RLlib trains on team problems without a change."""

import numpy as np
import pytest
import ray
import torch
from gymnasium import spaces
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from envs.rllib import TeamMultiAgentEnv, make_env, register, scaled_vector
from envs.team import ActionHead, Field, TeamSpec


@pytest.fixture(scope="module")
def _ray():
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    register()
    yield
    if started_here:
        ray.shutdown()


def stock_ppo(env: str, env_config: dict, module: RLModuleSpec | None = None):
    config = (
        PPOConfig()
        .environment(env, env_config=env_config)
        .env_runners(num_env_runners=0)
        .multi_agent(policies={"shared"}, policy_mapping_fn=lambda agent, episode, **kwargs: "shared")
        .training(train_batch_size=64, minibatch_size=64, num_epochs=1)
        .debugging(seed=0)
    )
    return (config.rl_module(rl_module_spec=module) if module else config).build_algo()


@pytest.mark.usefixtures("_ray")
def test_stock_ppo_trains_on_the_two_step_game():
    algorithm = stock_ppo("edgeflock/games", {"scenario": "two-step"})
    before = algorithm.get_weights()["shared"]
    result = algorithm.train()
    after = algorithm.get_weights()["shared"]
    algorithm.stop()
    runners = result["env_runners"]
    assert runners["num_env_steps_sampled"] >= 64
    assert runners["episode_len_mean"] == 2
    assert 0 <= runners["episode_return_mean"] <= 16  # both agents get the team's 0 to 8
    assert any((before[name] != after[name]).any() for name in before)


@pytest.mark.usefixtures("_ray")
def test_stock_ppo_trains_on_the_vehicular_problem():
    overrides = {"num_vehicles": 8, "horizon_slots": 32, "trace_slots": 32}
    algorithm = stock_ppo("edgeflock/vehicular", {"scenario": "v50-e6", "overrides": overrides})
    before = algorithm.get_weights()["shared"]
    runners = algorithm.train()["env_runners"]
    after = algorithm.get_weights()["shared"]
    algorithm.stop()
    assert runners["episode_len_mean"] == 32
    assert set(runners["agent_episode_returns_mean"]) == {f"edge_{m}" for m in range(6)}
    assert any((before[name] != after[name]).any() for name in before)


@pytest.mark.usefixtures("_ray")
def test_rllibs_masked_ppo_only_plays_legal_choices(monkeypatch):
    played = []
    step = TeamMultiAgentEnv.step
    monkeypatch.setattr(TeamMultiAgentEnv, "step", lambda env, actions: played.append(dict(actions)) or step(env, actions))
    overrides = {"payoffs": [[[1, 2, 3], [4, 5, 6]]]}  # agent 1 has two choices, agent 2 three
    config = {"scenario": "climb", "overrides": overrides, "observation": "with_mask"}
    algorithm = stock_ppo("edgeflock/games", config, RLModuleSpec(module_class=ActionMaskingTorchRLModule))
    played.clear()  # of RLlib's own check of the environment, which samples the action space
    algorithm.train()
    algorithm.stop()
    assert len(played) >= 64
    assert {int(actions["agent_1"]) for actions in played} == {0, 1}
    assert {int(actions["agent_2"]) for actions in played} == {0, 1, 2}


def test_an_episode_step_by_step():
    env = make_env("games", {"scenario": "two-step"})
    observations, infos = env.reset(seed=3)
    assert set(observations) == set(infos) == set(env.agents) == {"agent_1", "agent_2"}
    assert observations["agent_1"].tolist() == [1, 0, 0]
    assert env.get_observation_space("agent_1").contains(observations["agent_1"])
    _, rewards, terminated, truncated, _ = env.step({"agent_1": 1, "agent_2": 0})
    assert rewards == {"agent_1": 0.0, "agent_2": 0.0}
    assert not terminated["__all__"]
    _, rewards, terminated, truncated, _ = env.step({"agent_1": 1, "agent_2": 1})
    assert rewards == {"agent_1": 8.0, "agent_2": 8.0}
    assert terminated == {"agent_1": True, "agent_2": True, "__all__": True}
    assert not any(truncated.values())
    assert set(env.agents) == set(rewards)  # RLlib's own check wants those whose last step it was among the agents


@pytest.mark.parametrize("observation", ["flat", "with_mask"])
def test_what_the_vehicular_problem_shows_lies_in_its_space(observation):
    env = make_env("vehicular", {"scenario": "v50-e6", "observation": observation})
    observations, _ = env.reset(seed=0)
    again, _ = env.reset(seed=0)
    for _ in range(10):
        for agent in env.agents:
            assert env.get_observation_space(agent).contains(observations[agent])
        vectors = np.stack([shown["observations"] if isinstance(shown, dict) else shown for shown in observations.values()])
        assert np.abs(vectors).max() <= 1.5  # a stock network can read it
        observations, *_ = env.step({agent: env.get_action_space(agent).sample() for agent in env.agents})
    first = make_env("vehicular", {"scenario": "v50-e6", "observation": observation}).reset(seed=0)[0]
    np.testing.assert_equal(first, again)


def test_the_mask_runs_through_all_branches():
    env = make_env("vehicular", {"scenario": "v50-e6", "observation": "with_mask"})
    observations, _ = env.reset(seed=0)
    spec, result = env.team.simulator.spec, env.team.result
    mask = observations[spec.agents[2]]["action_mask"]
    parts = np.split(mask, np.cumsum(spec.branches)[:-1])
    for branch, part in enumerate(parts):
        assert part.tolist() == result.action_mask[0, 2, branch, : spec.branches[branch]].tolist()


def test_fields_are_scaled_for_a_stock_network():
    fields = {
        "place": Field((2,), -10.0, 30.0, "m"),
        "cycles": Field((), 1.0, 1e6, scale="log"),
        "kind": Field((2,), -1, 2, scale="category"),
        "free": Field((), -np.inf, np.inf),
        "constant": Field((), 5.0, 5.0),
    }
    spec = TeamSpec("test", "test", ("a",), fields, (ActionHead("act", 2),), 1, 1)
    values = {
        "place": torch.tensor([[[-10.0, 20.0]]]),
        "cycles": torch.tensor([[1e6]]),
        "kind": torch.tensor([[[2, -1]]]),
        "free": torch.tensor([[-1e9]]),
        "constant": torch.tensor([[5.0]]),
    }
    assert scaled_vector(values, spec)[0, 0].tolist() == [0, 0.75, 1, 0, 0, 1, 0, 0, 0, -1e4, 0]
    low_end = scaled_vector({**values, "cycles": torch.tensor([[0.0]])}, spec)
    assert low_end[0, 0, 2] == 0


def test_scenarios_by_name_dict_and_module():
    scenario = make_scenario("games/climb", {"payoffs": [[[3.0]]]})
    for config in (
        {"scenario": scenario.model_dump(mode="json")},
        {"scenario": {"payoffs": [[[3.0]]]}},
        {"scenario": "climb", "overrides": {"payoffs": [[[3.0]]]}},
        {"scenario": "games/climb", "overrides": {"payoffs": [[[3.0]]]}},
    ):
        env = make_env("games", config)
        env.reset(seed=0)
        assert env.step({"agent_1": 0, "agent_2": 0})[1] == {"agent_1": 3.0, "agent_2": 3.0}
    spread = make_env("pettingzoo", {"scenario": "mpe2.simple_spread_v3", "overrides": {"max_steps": 2}})
    observations, _ = spread.reset(seed=0)
    assert {agent: shown.shape for agent, shown in observations.items()} == {f"agent_{n}": (18,) for n in range(3)}
    assert spread.get_action_space("agent_0") == spaces.Discrete(5)
    spread.step(dict.fromkeys(spread.agents, 0))
    assert spread.step(dict.fromkeys(spread.agents, 0))[3]["__all__"]
    spread.close()


@pytest.mark.parametrize(
    ("problem", "config", "complaint"),
    [
        ("games", {}, "scenario = None: expected the name of a preset"),
        ("games", {"scenario": "chess"}, "games/two-step"),
        ("games", {"scenario": "climb", "sceanrio": 1}, "unknown key 'sceanrio'"),
        ("games", {"scenario": "climb", "observation": "deep"}, "expected one of flat, with_mask"),
        ("games", {"scenario": "climb", "overrides": {"payoff": []}}, "unknown key 'payoff'"),
        ("games", {"scenario": {"problem": "vehicular"}}, "it is of the problem 'vehicular', expected 'games'"),
    ],
)
def test_bad_env_configs_are_refused_in_one_line(problem, config, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        make_env(problem, config)
    assert "\n" not in str(error.value)


def test_only_a_single_episode_can_be_viewed():
    with pytest.raises(ValueError, match="expected 1"):
        TeamMultiAgentEnv(make_simulator(make_scenario("games/climb"), 3))
