"""Every algorithm on every kind of problem, for a moment: it learns, plays, is exported, and goes on from a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from envs.registry import make_simulator
from envs.team import TeamSpec, episode_seeds
from models.team_module import ACTIONS, FILLED
from trainers.algorithms import ALGORITHMS
from trainers.algorithms.replay_algorithm import ReplaySettings
from trainers.algorithms.team_algorithm import EVALUATION_SEED, TeamAlgorithm, initialise_ray
from trainers.config import RunConfig, make_run_config
from trainers.evaluate import evaluate
from trainers.learned_policy import export_policy, load_policy
from trainers.rollout import play_episodes
from trainers.train import build_algorithm

PROBLEMS: dict[str, list[str]] = {
    "games/two-step": [],
    "dag/paper": [],
    "vehicular/v50-e6": ["scenario.num_vehicles=6", "scenario.horizon_slots=5"],
    "pettingzoo:mpe2.simple_spread_v3": ["scenario.max_steps=4"],
}
# Presets of one family that differ in numbers only: the rest of them is tried on one problem.
FAMILY = [name for name in ALGORITHMS if name in ("g-mappo", "t-mappo", "lrs") or name.startswith("dlrs-")]
CASES = [(name, problem) for name in ALGORITHMS for problem in PROBLEMS if name not in FAMILY or problem == "games/two-step"]
EPISODES = 4
NETWORK = ["network.hidden=16", "network.entity_hidden=8"]
TRAINING = [
    *(f"training.num_envs={EPISODES}", f"training.evaluation_episodes={EPISODES}"),
    *("training.evaluation_interval=100", "training.threads=1"),
]


def small_config(algorithm: str, problem: str, *more: str) -> RunConfig:
    """The algorithm's own configuration, with everything cut down that costs time."""
    settings = ALGORITHMS[algorithm].config_class().settings_class
    if issubclass(settings, ReplaySettings):
        capped = ["algorithm.batch_episodes=4", "algorithm.updates=2", f"algorithm.learning_starts={EPISODES}"]
    elif "epochs" in settings.model_fields:
        capped = ["algorithm.epochs=2", "algorithm.minibatches=2"]
    else:
        capped = []
    return make_run_config(algorithm, problem, 3, [*PROBLEMS[problem], *NETWORK, *TRAINING, *capped, *more])


@contextmanager
def built(config: RunConfig) -> Iterator[tuple[TeamAlgorithm, TeamSpec]]:
    """A fresh algorithm in this process, and the problem's contract."""
    torch.set_num_threads(1)
    initialise_ray(0)
    simulator = make_simulator(config.scenario)
    simulator.close()
    algorithm = build_algorithm(config, simulator.spec)
    try:
        yield algorithm, simulator.spec
    finally:
        algorithm.stop()


def weights(algorithm: TeamAlgorithm) -> dict[str, torch.Tensor]:
    """All that learner and runner hold in numbers."""
    learner = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
    runner = algorithm.env_runner_group.local_env_runner.module.state_dict()
    parts = {f"learner.{name}": torch.as_tensor(value).clone() for name, value in learner.items()}
    return {**parts, **{f"runner.{name}": value.clone() for name, value in runner.items()}}


@pytest.mark.parametrize(("algorithm", "problem"), CASES)
def test_every_algorithm_learns_and_plays_every_problem(algorithm: str, problem: str, tmp_path: Path) -> None:
    config = small_config(algorithm, problem)
    with built(config) as (trained, spec):
        before = weights(trained)
        for _ in range(2):
            trained.train()
        assert trained.episodes == 2 * EPISODES
        assert 2 * EPISODES <= trained.env_steps <= 2 * EPISODES * spec.max_steps
        after = weights(trained)
        assert all(value.isfinite().all() for value in after.values())
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("runner."))
        module = trained.env_runner_group.local_env_runner.module
        learnt = {name: value for name, value in after.items() if name.startswith("learner.")}
        for name, value in module.state_dict().items():  # what acts is what was learnt
            assert torch.equal(value, learnt[f"learner.{name}"])
        figures = trained.evaluate()
        assert figures["episodes"] == EPISODES
        export_policy(config, spec, module, tmp_path / "bundle", {})
        policy = load_policy(tmp_path / "bundle")
        seeds = episode_seeds(EVALUATION_SEED, 0, EPISODES)
        played = evaluate(policy, config.scenario, seeds)
        assert figures["return"] == pytest.approx(float(played.pooled("return")), rel=1e-5, abs=1e-5)
        simulator = make_simulator(config.scenario, EPISODES)
        rows = [play_episodes(simulator, one, seeds, explore=False)[0] for one in (module, policy.module)]
        simulator.close()
        assert torch.equal(rows[0][ACTIONS], rows[1][ACTIONS])
        assert rows[0][FILLED][:, 0].all()


RESUMED: dict[str, tuple[str, list[str]]] = {
    "mappo": ("dag/paper", []),
    "ucb-coma": ("dag/paper", []),
    "ucb-coma before it learns": ("dag/paper", [f"algorithm.learning_starts={3 * EPISODES}"]),
    "maddpg": ("pettingzoo:mpe2.simple_spread_v3", []),
    "cs-ucb": ("dag/paper", []),
    "dlrs": ("games/two-step", ["algorithm.demonstrations=6", "algorithm.demonstrations_min=2"]),
    "coma with dlrs' actor": ("dag/paper", ["network.diffusion.steps=3", "network.diffusion.hidden=8"]),
    "maddpg with dlrs' actor": ("dag/paper", ["network.diffusion.steps=3", "network.diffusion.hidden=8"]),
}


@pytest.mark.parametrize("case", RESUMED)
def test_resuming_from_a_checkpoint_equals_never_having_stopped(case: str, tmp_path: Path) -> None:
    problem, more = RESUMED[case]
    config = small_config(case.split()[0], problem, *more)
    with built(config) as (whole, _):
        for _ in range(2):
            whole.train()
        whole.save_checkpoint(str(tmp_path))
        expected = two_more(whole)
    with built(config) as (resumed, _):
        resumed.load_checkpoint(str(tmp_path))
        got = two_more(resumed)
    assert got.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(got[name], expected[name])]
    assert different == []


def two_more(algorithm: TeamAlgorithm) -> dict[str, torch.Tensor]:
    """Weights after two more iterations, and the counters."""
    for _ in range(2):
        algorithm.train()
    counters = {"episodes": torch.tensor(algorithm.episodes), "env_steps": torch.tensor(algorithm.env_steps)}
    return {**weights(algorithm), **counters}
