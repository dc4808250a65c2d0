"""Sampled episodes are what stepping the simulator by hand gives, and repeat themselves."""

import numpy as np
import pytest
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO

import trainers.rollout
from envs.registry import make_scenario, make_simulator
from envs.team import ActionHead, Field, Metric, StepResult, TeamSimulator, TeamSpec
from models.team_module import ACTION_MASK, ACTIONS, ALIVE, FILLED, OBSERVATION, REWARD, STATE, TERMINATED
from models.team_network import NetworkConfig
from trainers.algorithms.value_decomposition import ValueDecompositionConfig, ValueSettings
from trainers.learned_policy import build_module
from trainers.rollout import TeamEnvRunner, play_episodes

NETWORK = NetworkConfig(hidden=8, entity_hidden=4)


def fresh_module(spec: TeamSpec, seed: int = 0):
    torch.manual_seed(seed)
    return build_module("vdn", spec, NETWORK, ValueSettings(epsilon_start=0.5))


def by_hand(simulator: TeamSimulator, module, seeds: torch.Tensor, explore: bool) -> tuple[list, list[StepResult]]:
    """Joint actions and results, step by step, with the generator that starts at 3."""
    generator, state = torch.Generator().manual_seed(3), module.initial_state(simulator.num_envs)
    results, actions = [simulator.reset(seeds)], []
    while not results[-1].finished.all():
        packed = module.packer(results[-1].observation)
        chosen, state, _ = module.act(packed, results[-1].action_mask, state, explore, generator=generator)
        actions.append(chosen)
        results.append(simulator.step(chosen))
    return actions, results


def check_rows(rows: dict[str, torch.Tensor], module, actions: list, results: list[StepResult]) -> None:
    """The rows hold what was seen and done by hand."""
    assert torch.equal(rows[OBSERVATION], torch.stack([module.packer(r.observation) for r in results], dim=1))
    for name, shown in ((STATE, "state"), (ACTION_MASK, "action_mask"), (ALIVE, "alive")):
        assert torch.equal(rows[name], torch.stack([getattr(r, shown) for r in results], dim=1))
    assert torch.equal(rows[ACTIONS].long(), torch.stack(actions, dim=1))
    assert torch.equal(rows[REWARD], torch.stack([r.reward for r in results[1:]], dim=1))
    assert torch.equal(rows[TERMINATED], torch.stack([r.terminated for r in results[1:]], dim=1))
    assert torch.equal(rows[FILLED], torch.stack([~r.finished for r in results[:-1]], dim=1))


@pytest.mark.parametrize("name", ["games/two-step", "pettingzoo:mpe2.simple_spread_v3"])
@pytest.mark.parametrize("explore", [False, True])
def test_episodes_are_what_stepping_by_hand_gives(name, explore):
    overrides = {"max_steps": 7} if "spread" in name else {}
    simulator = make_simulator(make_scenario(name, overrides), 4)
    module, seeds = fresh_module(simulator.spec), torch.tensor([1, 5, 8, 9])
    rows, figures = play_episodes(simulator, module, seeds, explore, generator=torch.Generator().manual_seed(3))
    actions, results = by_hand(simulator, module, seeds, explore)
    assert len(actions) == simulator.spec.max_steps == (7 if overrides else 2)
    check_rows(rows, module, actions, results)
    assert rows[FILLED].all()
    np.testing.assert_allclose(figures["return"], sum(r.reward for r in results).numpy(), rtol=1e-6)
    assert rows[TERMINATED][:, -1].all() == (not overrides)  # simple_spread is truncated
    if overrides:
        assert len(set(figures["return"])) == 4
    simulator.close()


class Countdown(TeamSimulator):
    """Episode `seed` ends after `seed` steps: odd ones terminate, even ones are truncated. Requests come in odd ones only."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.spec = TeamSpec(
            problem="test",
            scenario="test/countdown",
            agents=("a", "b"),
            observation={"left": Field((), 0.0, 10.0)},
            heads=(ActionHead("choice", 3),),
            state_size=1,
            max_steps=10,
            metrics={
                "latency_s": Metric("latency_s", "requests", "s", "lower"),
                "load": Metric("load", "steps"),
                "moves": Metric("load"),
            },
        )

    def reset(self, seeds):
        self._seeds, self._left = seeds, seeds.clone()
        return self._show(torch.zeros(self.num_envs))

    def step(self, actions):
        running = self._left > 0
        self._left = (self._left - 1).clamp(min=0)
        return self._show(torch.where(running, 1.0 + actions.float().sum((1, 2)), 0.0))

    def _show(self, reward):
        over, odd = self._left == 0, self._seeds % 2 == 1
        requests = torch.where(odd, 2.0, 0.0)
        return StepResult(
            observation={"left": self._left.float()[:, None].expand(-1, 2)},
            state=self._left.float()[:, None],
            action_mask=torch.ones(self.num_envs, 2, 1, 3, dtype=torch.bool),
            reward=reward,
            terminated=over & odd,
            truncated=over & ~odd,
            alive=torch.ones(self.num_envs, 2, dtype=torch.bool),
            metrics={"latency_s": 0.25 * requests, "requests": requests, "load": self._left.float()},
        )


def test_rows_that_finish_early_wait_for_the_longest():
    simulator, seeds = Countdown(4), torch.tensor([3, 1, 6, 2])
    module = fresh_module(simulator.spec)
    rows, figures = play_episodes(simulator, module, seeds, explore=False)
    assert rows[FILLED].tolist() == [[t < seed for t in range(6)] for seed in seeds.tolist()]
    assert (rows[REWARD][~rows[FILLED]] == 0).all()
    assert (rows[REWARD][rows[FILLED]] >= 1).all()
    ends = rows[TERMINATED] & rows[FILLED]
    assert ends.nonzero().tolist() == [[0, 2], [1, 0]]
    assert {name: value.shape[1] for name, value in rows.items() if name not in (STATE, OBSERVATION, ACTION_MASK, ALIVE)} == {
        ACTIONS: 6,
        REWARD: 6,
        TERMINATED: 6,
        FILLED: 6,
    }
    assert rows[OBSERVATION].shape == (4, 7, 2, 1)
    actions, results = by_hand(simulator, module, seeds, explore=False)
    check_rows(rows, module, actions, results)
    np.testing.assert_array_equal(figures["steps"], [3, 1, 6, 2])
    np.testing.assert_array_equal(figures["return"], rows[REWARD].sum(1).numpy())
    # finished rows count no more: their last load is 0, but requests go on in odd ones
    np.testing.assert_array_equal(figures["latency_s"], [0.25, 0.25, np.nan, np.nan])
    np.testing.assert_array_equal(figures["moves"], [2 + 1 + 0, 0, 5 + 4 + 3 + 2 + 1 + 0, 1 + 0])
    np.testing.assert_allclose(figures["load"], [1, 0, 2.5, 0.5])


def test_an_episode_does_not_depend_on_those_beside_it():
    rows, _ = play_episodes(together := Countdown(3), fresh_module(together.spec), torch.tensor([5, 2, 6]), explore=False)
    alone, _ = play_episodes(Countdown(1), fresh_module(together.spec), torch.tensor([5]), explore=False)
    for name, value in alone.items():
        assert torch.equal(rows[name][:1, : value.shape[1]], value)


# -------------------------------------------------------------------------------------------------------------- the runner


def runner_of(seed: int = 0, worker: int = 1, scenario: str = "games/two-step", **overrides) -> TeamEnvRunner:
    built = make_scenario(scenario, overrides)
    spec = make_simulator(built).spec
    config = (
        ValueDecompositionConfig()
        .team(built, spec, NETWORK, ValueSettings(epsilon_start=0.5, epsilon_steps=100), env_steps=1000)
        .env_runners(num_envs_per_env_runner=3)
        .debugging(seed=seed, log_level="ERROR")
    )
    torch.manual_seed(0)  # the same weights in all
    return TeamEnvRunner(config=config, worker_index=worker)


@pytest.fixture
def played(monkeypatch) -> list[list[int]]:
    """The seeds of every round of episodes that runners play."""
    seeds = []
    monkeypatch.setattr(trainers.rollout, "play_episodes", lambda *args: seeds.append(args[2].tolist()) or play_episodes(*args))
    return seeds


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_samples_are_a_function_of_seed_worker_and_environment_steps(played):
    spread = {"scenario": "pettingzoo:mpe2.simple_spread_v3", "max_steps": 4}
    runner = runner_of(**spread)
    runner.sample(env_steps=900)
    first, _ = runner.sample(env_steps=40)
    again, _ = runner_of(**spread).sample(env_steps=40)  # as after a restart
    assert same(first, again)
    for other in (runner_of(worker=2, **spread), runner_of(seed=1, **spread)):
        assert not same(other.sample(env_steps=40)[0], first)
    later, _ = runner.sample(env_steps=41)
    assert not same(later, first)
    assert len({seed for seeds in played for seed in seeds}) == 5 * 3  # six rounds, one of them twice
    runner.stop()


def test_exploring_and_playing(played):
    runner = runner_of()
    seeds = torch.tensor([4, 5, 6])
    rows, figures = runner.sample(explore=False, seeds=seeds)
    assert played == [[4, 5, 6]]
    assert same(runner.sample(explore=False, seeds=seeds, env_steps=77)[0], rows)  # nothing random is left
    assert len(rows[ACTIONS].unique(dim=0)) == 1
    explored = [runner.sample(env_steps=n)[0][ACTIONS] for n in (0, 1, 2, 3)]  # the configuration's default
    assert len({tuple(actions.flatten().tolist()) for actions in explored}) > 1
    assert figures["steps"].tolist() == [2, 2, 2]


def test_metrics_of_a_runner():
    runner = runner_of()
    returns = np.concatenate([runner.sample(env_steps=n)[1]["return"] for n in (0, 1)])
    metrics = runner.get_metrics()
    peeked = {name: stats.peek() for name, stats in metrics.items()}
    assert peeked["num_env_steps_sampled"] == peeked["num_env_steps_sampled_lifetime"] == 12
    assert peeked["num_episodes"] == 6
    assert peeked["episode_return_mean"] == pytest.approx(returns[3:].mean())  # of the last round
    assert peeked["steps_mean"] == 2


def filled(runner: TeamEnvRunner, value: float) -> dict[str, np.ndarray]:
    """Weights of the runner's module, all set to `value`."""
    return {name: np.full_like(array, value) for name, array in runner.module.get_state(inference_only=True).items()}


def weight(runner: TeamEnvRunner) -> float:
    values = torch.cat([parameter.flatten() for parameter in runner.module.parameters()]).unique().tolist()
    assert len(values) == 1
    return values[0]


def test_only_newer_weights_are_taken():
    runner = runner_of()

    def give(value: float, number: int) -> float:
        runner.set_state({COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: filled(runner, value)}, WEIGHTS_SEQ_NO: number})
        return weight(runner)

    assert give(1.0, 5) == 1
    assert give(3.0, 5) == 1  # the same
    assert give(2.0, 4) == 1  # older
    assert give(4.0, 6) == 4
    assert give(5.0, 0) == 5  # forced
    assert give(6.0, 6) == 5  # the number is still known
    assert runner.get_state()[WEIGHTS_SEQ_NO] == 6


def test_state_survives_a_restart():
    runner, restarted = runner_of(), runner_of()
    runner.sample()
    runner.set_state({COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: filled(runner, 7.0)}, WEIGHTS_SEQ_NO: 3})
    state = runner.get_state()
    assert state[NUM_ENV_STEPS_SAMPLED_LIFETIME] == 6
    restarted.set_state(state)
    assert weight(restarted) == 7
    again = restarted.get_state()
    assert {name: again[name] for name in (WEIGHTS_SEQ_NO, NUM_ENV_STEPS_SAMPLED_LIFETIME)} == {
        WEIGHTS_SEQ_NO: 3,
        NUM_ENV_STEPS_SAMPLED_LIFETIME: 6,
    }
    assert COMPONENT_RL_MODULE not in runner.get_state(not_components=COMPONENT_RL_MODULE)
    restarted.set_state({WEIGHTS_SEQ_NO: 9})  # no weights came with it
    assert weight(restarted) == 7


def test_weights_may_come_as_a_reference(monkeypatch):
    runner, reference = runner_of(), ray.ObjectRef.nil()
    stored = {reference: {DEFAULT_MODULE_ID: filled(runner, 8.0)}}
    monkeypatch.setattr(ray, "get", stored.__getitem__)
    runner.set_state({COMPONENT_RL_MODULE: reference, WEIGHTS_SEQ_NO: 1})
    assert weight(runner) == 8


def test_the_simulator_is_made_when_it_is_needed_and_closed_at_the_end(monkeypatch):
    made = []
    monkeypatch.setattr(trainers.rollout, "make_simulator", lambda *args: made.append(make_simulator(*args)) or made[-1])
    runner = runner_of()
    runner.stop()
    assert made == []
    runner.sample()
    closed = []
    made[0].close = lambda: closed.append(True)
    runner.stop()
    assert len(made) == len(closed) == 1
