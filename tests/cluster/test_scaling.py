"""Runners and learners over the nodes of a real cluster: where they are, what they compute, and who waits for whom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from envs.errors import InputError
from envs.registry import make_simulator
from models.team_module import FILLED
from tests.cluster.nodes import nodes
from trainers.algorithms.team_algorithm import TeamAlgorithm
from trainers.config import RunConfig, make_run_config
from trainers.remote import Needs, require_resources
from trainers.rollout import TeamEnvRunner
from trainers.train import build_algorithm, configure, require_gpus, train

SMALL = [
    *("algorithm.batch_episodes=4", "algorithm.learning_starts=4", "algorithm.updates=2"),
    *("training.num_envs=4", "training.evaluation_interval=1000", "training.timeout_s=60"),
]
TWO = "training.runners=2"
ASYNCHRONOUS = "training.asynchronous=true"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two nodes of one core, to which this process is connected."""
    ray.shutdown()  # of tests before, in the same process
    with nodes(2) as running:
        ray.init(running.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield
        finally:
            ray.shutdown()


def built(*settings: str, algorithm: str = "vdn", scenario: str = "games/two-step", seed: int = 3) -> TeamAlgorithm:
    config = make_run_config(algorithm, scenario, seed, [*SMALL, *settings])
    torch.set_num_threads(1)
    return build_algorithm(config, make_simulator(config.scenario).spec)


def weights(algorithm: TeamAlgorithm) -> dict[str, np.ndarray]:
    return algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]


def test_runners_are_on_all_nodes_and_play_what_local_ones_would(cluster: None) -> None:
    algorithm = built(TWO)
    try:
        places = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: ray.get_runtime_context().get_node_id(), local_env_runner=False
        )
        assert len(set(places)) == 2
        assert ray.get_runtime_context().get_node_id() not in places
        algorithm._publish()
        parts = algorithm.sample_episodes()
        for index, rows in enumerate(parts, start=1):
            alone = TeamEnvRunner(config=algorithm.config, worker_index=index)
            alone.set_state({"rl_module": algorithm.env_runner_group.local_env_runner.get_state()["rl_module"]})
            expected, _ = alone.sample(env_steps=0)
            assert all(torch.equal(rows[name], expected[name]) for name in expected)
    finally:
        algorithm.stop()


def test_the_same_seed_gives_the_same_training_over_nodes(cluster: None) -> None:
    results = []
    for _ in range(2):
        algorithm = built(TWO)
        try:
            for _ in range(4):
                algorithm.train()
            results.append(weights(algorithm))
        finally:
            algorithm.stop()
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize(("algorithm", "options"), [("vdn", []), ("mappo", ["algorithm.minibatches=1"])])
def test_two_learners_on_two_nodes_learn_what_one_learns(cluster: None, algorithm: str, options: list[str]) -> None:
    options = [one for one in [*options, "algorithm.epochs=2"] if algorithm == "mappo"]
    small = [one for one in SMALL if algorithm == "vdn" or one.startswith("training.")]
    results, start = [], {}
    for learners in (0, 2):
        config = make_run_config(algorithm, "games/two-step", 3, [*small, *options, f"training.learners={learners}"])
        trained = build_algorithm(config, make_simulator(config.scenario).spec)
        try:
            if learners:
                trained.learner_group.set_state({"learner": {"rl_module": start}})
                trained.sync()
            else:
                start = trained.learner_group.get_state()["learner"]["rl_module"]
            for _ in range(3):
                trained.train()
            results.append(weights(trained))
        finally:
            trained.stop()
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=2e-3, atol=2e-5, err_msg=name)


class SlowRunner(TeamEnvRunner):
    """The second of two runners has a simulator that takes its time."""

    def sample(self, **kwargs):
        if self._index == 2:
            time.sleep(0.6)
        return super().sample(**kwargs)


def test_a_slow_runner_slows_no_other_and_updates_keep_to_their_share(cluster: None) -> None:
    config = make_run_config("vdn", "games/two-step", 3, [*SMALL, TWO, ASYNCHRONOUS])
    algorithm = configure(config, make_simulator(config.scenario).spec).env_runners(env_runner_cls=SlowRunner).build_algo()
    try:
        algorithm.train()
        ages = [algorithm.train()["env_runners"]["weights_age_mean"] for _ in range(30)]
        delivered = algorithm.remote.delivered
        assert delivered[1] > 4 * delivered[2] >= 4
        assert algorithm.episodes == 4 * delivered.total()
        assert algorithm.updates * 8 + algorithm.credit == 2 * algorithm.episodes  # two updates for eight episodes
        assert min(ages) >= 0
        assert max(ages) > 0
    finally:
        algorithm.stop()


def test_asynchronous_requests_of_one_moment_play_different_episodes(cluster: None) -> None:
    algorithm = built(TWO, ASYNCHRONOUS, "training.in_flight=3", scenario="dag/t5", algorithm="vdn")
    try:
        rows = [rows for _ in range(4) for rows in algorithm.sample_episodes()]
        first = {rows["state"][0, 0].numpy().tobytes() for rows in rows}
        assert len(first) == len(rows)
        assert all(rows[FILLED].any(1).all() for rows in rows)
    finally:
        algorithm.stop()


def test_the_two_step_game_is_solved_asynchronously(cluster: None) -> None:
    """Rashid et al. 2018, Sec. 5: monotonic mixing reaches 8."""
    values = [
        *("algorithm.epsilon_end=1.0", "algorithm.gamma=1.0", "algorithm.td_lambda=0.0", "algorithm.target_tau=0.02"),
        *("algorithm.lr=1e-3", "algorithm.rewards=raw", "algorithm.updates=8", "training.num_envs=16"),
        *("algorithm.batch_episodes=32", "algorithm.learning_starts=32"),
    ]
    algorithm = built(TWO, ASYNCHRONOUS, *values, algorithm="qmix", seed=1)
    try:
        for _ in range(80):
            algorithm.train()
        assert algorithm.evaluate()["return"] == 8.0
    finally:
        algorithm.stop()


def test_an_asynchronous_training_goes_on_from_its_checkpoint(cluster: None, tmp_path: Path) -> None:
    algorithm = built(TWO, ASYNCHRONOUS)
    try:
        for _ in range(3):
            algorithm.train()
        algorithm.save_checkpoint(str(tmp_path))
        before, counters = weights(algorithm), (algorithm.env_steps, algorithm.episodes, algorithm.draws, algorithm.credit)
    finally:
        algorithm.stop()
    resumed = built(TWO, ASYNCHRONOUS)
    try:
        resumed.load_checkpoint(str(tmp_path))
        assert (resumed.env_steps, resumed.episodes, resumed.draws, resumed.credit) == counters
        assert all(np.array_equal(before[name], value) for name, value in weights(resumed).items())
        resumed.train()
        assert resumed.episodes >= counters[1] + 8
    finally:
        resumed.stop()


# ------------------------------------------------------------------------------------------------------- bad input, and GPUs


@pytest.mark.parametrize(
    ("algorithm", "settings", "says"),
    [
        ("mappo", [TWO, ASYNCHRONOUS], "mappo learns only from what its latest policy has played"),
        ("cs-ucb", [TWO, ASYNCHRONOUS], "expected false"),
        ("vdn", [ASYNCHRONOUS], "expected runners >= 1"),
        ("vdn", [TWO, "training.device=cuda"], "expected runner_gpus > 0"),
        ("vdn", ["training.timeout_s=0"], "timeout_s"),
    ],
)
def test_what_does_not_fit_together_is_one_line(algorithm: str, settings: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        make_run_config(algorithm, "games/two-step", 0, settings)
    assert "\n" not in str(error.value)


def config_with(*settings: str) -> RunConfig:
    return make_run_config("vdn", "games/two-step", 0, [*SMALL, *settings])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is missing here")
@pytest.mark.parametrize("setting", ["training.device=cuda", "training.learner_gpus=1"])
def test_a_gpu_that_is_not_there_is_one_line(setting: str, tmp_path: Path) -> None:
    config = config_with(setting)
    with pytest.raises(InputError, match=f"{setting.partition('=')[0]}: this process sees no GPU"):
        require_gpus(config.training)
    with pytest.raises(InputError):
        train(config, tmp_path / "run", lambda record: None)
    assert not (tmp_path / "run").exists()


def test_what_the_cluster_has_not_is_one_line_after_a_limit(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "as in a job")
    require_resources([Needs("runners", 2, 0.0)], 20.0)
    started = time.monotonic()
    with pytest.raises(InputError, match=r"1 learners with 1 CPU and 0\.5 GPUs each, but Ray has 2 CPUs"):
        require_resources([Needs("runners", 2, 0.0), Needs("learners", 1, 0.5)], 1.0)
    assert time.monotonic() - started < 10


def test_gpus_are_asked_of_ray_for_the_processes_that_use_them() -> None:
    config = config_with(
        TWO, "training.runner_gpus=0.5", "training.learners=2", "training.learner_gpus=1", "training.device=cuda"
    )
    rllib = configure(config, make_simulator(config.scenario).spec)
    assert (rllib.num_gpus_per_env_runner, rllib.num_gpus_per_learner, rllib.num_learners) == (0.5, 1, 2)
    assert rllib.env_config["device"] == "cuda"
