"""Team simulators as PettingZoo environments, and PettingZoo environments as team simulators."""

import gc
import importlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo.test import parallel_api_test, parallel_seed_test

from envs.contract import check_simulator
from envs.errors import InputError
from envs.pettingzoo import PettingZooSimulator, TeamParallelEnv, parallel_env
from envs.registry import make_scenario, make_simulator, scenario_from_dict
from envs.team import ActionHead, Field, StepResult, TeamSimulator, TeamSpec, random_actions

SPREAD = "pettingzoo:mpe2.simple_spread_v3"
SMALL = "pettingzoo:small_zoo"


@pytest.fixture(autouse=True)
def _small_zoo_is_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def zoo(name: str, num_envs: int, **overrides) -> PettingZooSimulator:
    return make_simulator(make_scenario(name, overrides), num_envs)


class Branching(TeamSimulator):
    """Two agents with two heads; the second leaves after the first step, the first is cut off after the third."""

    def __init__(self, num_envs: int = 1) -> None:
        self.num_envs, self.device = num_envs, torch.device("cpu")
        fields = {"kind": Field((), -1, 4, scale="category"), "place": Field((2,), -5.0, 1e4, "m")}
        heads = (ActionHead("pick", 3), ActionHead("send", 2, count=2))
        self.spec = TeamSpec("test", "test/branching", ("x", "y"), fields, heads, 1, 3)

    def reset(self, seeds):
        self.seeds, self.clock = seeds.clone(), 0
        return self._show()

    def step(self, actions):
        self.actions, self.clock = actions, self.clock + 1
        return self._show()

    def _show(self):
        mask = self.spec.choice_exists().repeat(1, 2, 1, 1)
        mask[:, 0, 0, 1] = False
        return StepResult(
            observation={"kind": torch.tensor([[3, -1]]), "place": torch.full((1, 2, 2), 7000.0)},
            state=torch.full((1, 1), float(self.clock)),
            action_mask=mask,
            reward=torch.full((1,), float(self.clock)),
            terminated=torch.tensor([False]),
            truncated=torch.tensor([self.clock >= 3]),
            alive=torch.tensor([[True, self.clock < 1]]),
            metrics={"late": torch.tensor([2.0])},
        )


# ---------------------------------------------------------------------------------------------- a simulator as a ParallelEnv


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("make", [parallel_env, lambda: parallel_env("vehicular/v50-e6"), lambda: TeamParallelEnv(Branching())])
def test_passes_pettingzoos_own_tests(make):
    parallel_api_test(make(), num_cycles=30)
    parallel_seed_test(make, num_cycles=30)


def test_game_through_pettingzoo_pays_like_the_game():
    env = parallel_env("games/two-step")
    observations, infos = env.reset(seed=1)
    assert observations["agent_1"]["observation"].tolist() == [1, 0, 0]
    assert observations["agent_1"]["action_mask"].tolist() == [1, 1]
    assert infos == {agent: {"reward": 0.0} for agent in ("agent_1", "agent_2")}
    assert env.state().tolist() == [1, 0, 0]
    env.step({"agent_1": 1, "agent_2": 0})
    _, rewards, terminated, truncated, infos = env.step({"agent_1": np.int64(1), "agent_2": 1})
    assert rewards == {"agent_1": 8.0, "agent_2": 8.0}
    assert terminated == {"agent_1": True, "agent_2": True}
    assert truncated == {"agent_1": False, "agent_2": False}
    assert infos["agent_2"] == {"reward": 8.0}
    assert env.agents == []
    assert env.state().tolist() == [0, 0, 1]


def test_spaces_follow_fields_and_heads():
    env = TeamParallelEnv(Branching())
    assert env.action_space("x") == spaces.MultiDiscrete([3, 2, 2])
    box = env.observation_space("x")["observation"]
    assert box.low.tolist() == [-1, -5, -5]
    assert box.high.tolist() == [4, 1e4, 1e4]
    assert env.layout == {"kind": slice(0, 1), "place": slice(1, 3)}
    observations, _ = env.reset(seed=0)
    assert observations["y"]["observation"].tolist() == [-1, 7000, 7000]
    assert [part.tolist() for part in observations["x"]["action_mask"]] == [[1, 0, 1], [1, 1], [1, 1]]
    assert env.observation_space("x").contains(observations["x"])


def test_what_the_vehicular_problem_shows_lies_in_its_space():
    env = parallel_env("vehicular/v50-e6")
    observations, _ = env.reset(seed=0)
    for _ in range(20):
        assert all(env.observation_space(agent).contains(observations[agent]) for agent in env.agents)
        choices = {a: env.action_space(a).sample(mask=observations[a]["action_mask"]) for a in env.agents}
        observations, *_ = env.step(choices)


def test_agents_leave_as_the_simulator_says():
    env = TeamParallelEnv(Branching())
    env.reset(seed=0)
    both = {"x": [2, 1, 0], "y": [0, 1, 1]}
    _, rewards, terminated, truncated, _ = env.step(both)
    assert env.simulator.actions.tolist() == [[[2, 1, 0], [0, 1, 1]]]
    assert rewards == {"x": 1.0, "y": 1.0}
    assert (terminated, truncated) == ({"x": False, "y": True}, {"x": False, "y": False})
    assert env.agents == ["x"]
    assert set(env.step(both)[0]) == {"x"}
    assert env.simulator.actions.tolist() == [[[2, 1, 0], [0, 0, 0]]]
    _, _, terminated, truncated, _ = env.step({"x": [0, 0, 0]})
    assert (terminated, truncated) == ({"x": False}, {"x": True})
    assert env.agents == []
    assert env.step({}) == ({}, {}, {}, {}, {})


def test_seeds_that_follow_a_given_seed_are_determined_and_do_not_overlap():
    def seeds(first: int) -> list[int]:
        env = TeamParallelEnv(Branching())
        env.reset(seed=first)
        found = [env.simulator.seeds.item()]
        for _ in range(3):
            env.reset()
            found.append(env.simulator.seeds.item())
        return found

    assert seeds(7)[0] == 7
    assert seeds(7) == seeds(7)
    assert not set(seeds(7)) & set(seeds(8))  # vector environments seed their copies with successive numbers


def test_unseeded_environments_differ():
    one, other = TeamParallelEnv(Branching()), TeamParallelEnv(Branching())
    one.reset()
    other.reset()
    assert one.simulator.seeds.item() != other.simulator.seeds.item()


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(InputError, match=r"expected an integer in \[0, 2\^63\)"):
        parallel_env().reset(seed=seed)


@pytest.mark.parametrize("action", [3, -1, 0.5, [0, 1]])
def test_an_action_outside_its_space_is_refused(action):
    env = parallel_env()
    env.reset(seed=0)
    with pytest.raises(InputError, match="agent 'agent_2'"):
        env.step({"agent_1": 0, "agent_2": action})


def test_a_missing_action_is_refused():
    env = parallel_env()
    env.reset(seed=0)
    with pytest.raises(InputError, match="no action for agent 'agent_2'"):
        env.step({"agent_1": 0})


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="has 2, expected 1"):
        TeamParallelEnv(make_simulator(make_scenario("games/climb"), 2))
    with pytest.raises(RuntimeError, match="reset"):
        parallel_env().step({})
    with pytest.raises(InputError, match="unknown scenario"):
        parallel_env("games/none")


# ---------------------------------------------------------------------------------------------- a ParallelEnv as a simulator


@pytest.mark.parametrize("workers", [1, 2])
def test_simple_spread_equals_stepping_it_by_hand(workers):
    simulator = zoo(SPREAD, 3, kwargs={"max_cycles": 25}, workers=workers)
    spec = simulator.spec
    assert (spec.max_steps, spec.branches, spec.state_size) == (25, (5,), 54)
    assert spec.observation["observation"].shape == (18,)
    generator = torch.Generator().manual_seed(0)
    seeds = torch.tensor([3, 2**62 + 5, 8])
    result = simulator.reset(seeds)
    envs = [importlib.import_module("mpe2.simple_spread_v3").parallel_env(max_cycles=25) for _ in seeds]
    shown = [env.reset(seed=seed)[0] for env, seed in zip(envs, (3, 5, 8), strict=True)]
    for step in range(26):
        for row, env in enumerate(envs):
            expected = np.stack([shown[row][agent] for agent in spec.agents])
            np.testing.assert_array_equal(result.observation["observation"][row].numpy(), expected)
            np.testing.assert_array_equal(result.state[row].numpy(), env.state())
        assert result.truncated.tolist() == [step == 25] * 3
        if step == 25:
            break
        actions = random_actions(result.action_mask, generator)
        result = simulator.step(actions)
        for row, env in enumerate(envs):
            shown[row], rewards, *_ = env.step(dict(zip(spec.agents, actions[row, :, 0].tolist(), strict=True)))
            assert result.reward[row].item() == pytest.approx(sum(rewards.values()) / 3, rel=1e-6)
    assert not result.terminated.any()
    assert result.alive.all()  # cut off, not gone: what they see now is worth bootstrapping from
    assert simulator.step(actions).reward.tolist() == [0, 0, 0]
    simulator.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_simple_spread_keeps_the_contract(workers):
    check_simulator(lambda num_envs: zoo(SPREAD, num_envs, kwargs={"max_cycles": 4}, workers=workers), steps=6)


@pytest.mark.parametrize("kind", ["Leaving", "Stateful"])
def test_the_unusual_environment_keeps_the_contract(kind):
    check_simulator(lambda num_envs: zoo(SMALL, num_envs, kwargs={"kind": kind}), steps=6)


def test_different_agents_are_padded():
    simulator = zoo(SMALL, 1)
    assert simulator.spec.agents == ("wide", "brief", "masked")
    assert simulator.spec.branches == (4, 2)
    field = simulator.spec.observation["observation"]
    assert (field.shape, field.low, field.high) == ((4,), -1.0, 255.0)
    assert simulator.spec.state_size == 12
    result = simulator.reset(torch.tensor([5]))
    noise = np.random.default_rng(5).integers(256)
    expected = [[noise, 0, 0, 255], [1, 0, 0, 0], [-1, 0, 0, 0]]
    assert result.observation["observation"][0].tolist() == expected
    assert result.state[0].tolist() == [number for agent in expected for number in agent]
    assert result.action_mask[0].int().tolist() == [
        [[1, 1, 1, 0], [1, 1, 0, 0]],
        [[1, 1, 0, 0], [1, 0, 0, 0]],
        [[0, 1, 1, 1], [1, 0, 0, 0]],
    ]


@pytest.mark.parametrize(("team_reward", "weight"), [("sum", 1.0), ("mean", 1 / 3)])
def test_actions_arrive_and_illegal_ones_become_the_first_legal_one(team_reward, weight):
    simulator = zoo(SMALL, 1, team_reward=team_reward)
    simulator.reset(torch.tensor([5]))
    result = simulator.step(torch.tensor([[[2, 1], [1, 0], [3, 0]]]))
    assert result.reward.item() == pytest.approx((21 + 6 + 3) * weight)
    assert result.metrics["reward"].tolist() == result.reward.tolist()
    result = simulator.step(torch.tensor([[[3, 1], [3, 1], [1, 0]]]))  # wide, brief lack 3; masked may not choose the clock, 1
    assert result.reward.item() == pytest.approx((1 + 5 + 0) * weight)


@pytest.mark.parametrize(("goal", "alive"), [(False, [True, False, True]), (True, [True, False, False])])
def test_agents_that_leave_early_are_masked(goal, alive):
    simulator = zoo(SMALL, 2, kwargs={"goal": goal})
    simulator.reset(torch.tensor([5, 6]))
    actions = torch.ones(2, 3, 2, dtype=torch.int64)
    assert simulator.step(actions).alive.all()
    result = simulator.step(actions)
    assert result.alive.tolist() == [[True, False, True]] * 2
    assert result.action_mask[0, 1].int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert not result.observation["observation"][0, 1].any()
    simulator.step(actions)
    result = simulator.step(actions)
    assert result.truncated.all()
    assert not result.terminated.any()
    assert result.alive.tolist() == [alive] * 2


def test_everyone_gone_for_good_terminates_the_row():
    simulator = zoo(SMALL, 1)
    env = simulator._copies._envs[0]
    step = env.step
    env.step = lambda actions: ends(*step(actions))

    def ends(observations, rewards, terminated, truncated, infos):
        gone = dict.fromkeys(terminated, env.clock == 3)
        env.agents = [] if env.clock == 3 else env.agents
        return observations, rewards, gone, dict.fromkeys(truncated, False), infos

    simulator.reset(torch.tensor([5]))
    actions = torch.ones(1, 3, 2, dtype=torch.int64)
    results = [simulator.step(actions) for _ in range(3)]
    assert [result.terminated.item() for result in results] == [False, False, True]
    assert not results[-1].truncated.any()


def test_own_state_and_own_limit_are_used_and_empty_masks_leave_a_choice():
    simulator = zoo(SMALL, 1, kwargs={"kind": "Stateful"})
    assert (simulator.spec.state_size, simulator.spec.max_steps) == (2, 3)
    simulator.reset(torch.tensor([5]))
    actions = torch.ones(1, 3, 2, dtype=torch.int64)
    result = simulator.step(actions)
    assert result.state[0].tolist() == [1, np.random.default_rng(5).integers(256)]
    assert result.action_mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert not simulator.step(actions).finished.any()
    assert simulator.step(actions).truncated.all()


def test_the_last_state_stays_where_the_environment_has_none_left():
    simulator = zoo(SMALL, 1, kwargs={"kind": "Stateful"}, max_steps=9)
    simulator.reset(torch.tensor([5]))
    results = [simulator.step(torch.ones(1, 3, 2, dtype=torch.int64)) for _ in range(4)]
    assert results[3].truncated.all()
    assert results[3].state.tolist() == results[2].state.tolist()


def test_max_steps_cuts_off():
    assert zoo(SMALL, 1).spec.max_steps == 500
    simulator = zoo(SMALL, 1, max_steps=1)
    assert simulator.spec.max_steps == 1
    simulator.reset(torch.tensor([0]))
    assert simulator.step(torch.zeros(1, 3, 2, dtype=torch.int64)).truncated.all()


def test_a_game_there_and_back_is_the_same_game():
    direct = make_simulator(make_scenario("games/two-step"), 4)
    around = zoo("pettingzoo:envs.pettingzoo", 4, kwargs={"scenario": "games/two-step"})
    for simulator in (direct, around):
        simulator.reset(torch.arange(4))
    for joint in ([[1, 0]] * 4, [[0, 0], [0, 1], [1, 0], [1, 1]]):
        actions = torch.tensor(joint)[..., None]
        one, other = direct.step(actions), around.step(actions)
        assert one.reward.tolist() == other.reward.tolist()
        assert one.terminated.tolist() == other.terminated.tolist()
        assert one.state.tolist() == other.state.tolist()
        assert one.action_mask.tolist() == other.action_mask.tolist()


@pytest.mark.parametrize(
    ("name", "overrides", "complaint"),
    [
        ("pettingzoo:no_such_zoo.thing", {}, "pip install no_such_zoo"),
        ("pettingzoo:envs.team", {}, "no function parallel_env"),
        ("pettingzoo:not a module", {}, "module = 'not a module'"),
        (SPREAD, {"kwargs": {"N": "three"}}, "rejects kwargs"),
        (SPREAD, {"kwargs": {"legs": 2}}, "legs"),
        (SPREAD, {"kwargs": {"continuous_actions": True}}, "agent 'agent_0': action space Box"),
        (SMALL, {"kwargs": {"kind": "OddSpace"}}, "agent 'wide': observation space Graph"),
        (SMALL, {"kwargs": {"kind": "Nobody"}}, "possible_agents"),
        (SMALL, {"max_steps": 0}, "max_steps = 0"),
        (SMALL, {"color": "red"}, "unknown key 'color'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(name, overrides, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        zoo(name, 1, **overrides)
    assert "\n" not in str(error.value)


def test_scenario_survives_json():
    scenario = make_scenario(SMALL, {"kwargs": {"goal": True}})
    assert scenario_from_dict(scenario.model_dump(mode="json")) == scenario


# ---------------------------------------------------------------------------------------------- worker processes


def exchange(**kwargs) -> PettingZooSimulator:
    """Two workers after a reset and one step, whose environments misbehave as `kwargs` say."""
    simulator = zoo(SMALL, 3, workers=2, timeout_s=60.0, kwargs=kwargs)
    simulator.reset(torch.arange(3))
    simulator.step(torch.ones(3, 3, 2, dtype=torch.int64))
    return simulator


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("workers", [1, 2])
def test_closing_closes_the_environments(workers, tmp_path):
    simulator = zoo(SMALL, 2, workers=workers, kwargs={"closed_file": str(tmp_path / "closed")})
    (tmp_path / "closed").unlink()  # left by the one that was made to see its spaces
    simulator.close()
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"raise_at": 2}, "(?s)rows 0 to 0: .*ArithmeticError: a bug in the environment"),
        ({"exit_at": 2}, "rows 0 to 0: the process died with exit code 7"),
        ({"sleep_at": 2}, "rows 0 to 0: no answer in time"),
    ],
)
def test_a_failing_worker_is_an_error_and_ends_them_all(kwargs, complaint):
    simulator = exchange(**kwargs)
    assert simulator._copies._timeout == 60.0
    if "sleep_at" in kwargs:
        simulator._copies._timeout = 0.5  # not from the start: a busy machine may need longer to start the workers
    pids = [worker.process.pid for worker in simulator._copies._workers]
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=complaint):
        simulator.step(torch.ones(3, 3, 2, dtype=torch.int64))
    assert time.monotonic() - started < 20
    assert not any(is_running(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="are closed"):
        simulator.reset(torch.arange(3))


def test_a_killed_worker_is_an_error():
    simulator = exchange()
    os.kill(simulator._copies._workers[1].process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="rows 1 to 2: the process died with exit code -9"):
        simulator.step(torch.ones(3, 3, 2, dtype=torch.int64))


def test_workers_end_with_their_simulator():
    closed, dropped = exchange(), exchange()
    pids = [worker.process.pid for simulator in (closed, dropped) for worker in simulator._copies._workers]
    assert all(is_running(pid) for pid in pids)
    closed.close()
    del dropped
    gc.collect()
    assert not any(is_running(pid) for pid in pids)


def test_ctrl_c_during_a_step_ends_the_workers():
    simulator = exchange(sleep_at=2)
    pids = [worker.process.pid for worker in simulator._copies._workers]

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            simulator.step(torch.ones(3, 3, 2, dtype=torch.int64))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not any(is_running(pid) for pid in pids)


def test_workers_do_not_import_torch():
    simulator = exchange()
    maps = Path(f"/proc/{simulator._copies._workers[0].process.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert "libtorch" not in maps.read_text()
    simulator.close()


def test_processors_give_the_number_of_workers():
    simulator = zoo(SMALL, 64, workers=0)
    used = len(getattr(simulator._copies, "_workers", [None]))
    assert used == min(64, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    simulator.close()
