"""Episodes of an expert: how many a round has, what the learner makes of them, and that they are always the same ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from models.diffusion import DiffusionConfig
from models.team_module import ACTIONS, DENOISING, FILLED, LOG_PROB, OBSERVATION, REWARD
from models.team_network import NetworkConfig
from tests.trainers.test_mappo import learner_of, loss_of, module_of
from trainers.algorithms.mappo import ADVANTAGE, MappoSettings
from trainers.algorithms.team_algorithm import initialise_ray
from trainers.config import make_run_config
from trainers.demonstrations import demonstrations_in_round, draw, play_demonstrations, steps_in
from trainers.train import build_algorithm, train

SMALL = NetworkConfig(hidden=8, entity_hidden=4)
DIFFUSION = SMALL.model_copy(update={"diffusion": DiffusionConfig(steps=3, hidden=8)})


def demonstrations(count: int, at_once: int = 3, seed: int = 1, scenario: str = "games/two-step"):
    return play_demonstrations(make_scenario(scenario), count, at_once, seed, "cpu")


def test_their_number_falls_with_the_rounds_until_there_are_too_few():
    assert [demonstrations_in_round(10, 3, u) for u in range(1, 6)] == [10, 5, 3, 0, 0]  # 10, 5, 3.3, 2.5, 2
    assert [demonstrations_in_round(0, 1, u) for u in (1, 2)] == [0, 0]
    assert demonstrations_in_round(3, 4, 1) == 0


def test_the_expert_plays_whole_episodes_however_many_at_once():
    rows = demonstrations(7)
    assert rows[REWARD].tolist() == [[0.0, 8.0]] * 7
    assert rows[ACTIONS].shape == (7, 2, 2, 1)
    assert steps_in(rows) == 14
    assert not {LOG_PROB, DENOISING} & set(rows)
    for at_once in (1, 7, 50):
        again = demonstrations(7, at_once)
        assert all(torch.equal(value, rows[name]) for name, value in again.items())


def test_their_episodes_are_the_seeds_own():
    scenario = make_scenario("velo/n3", {"build_requests": 3})
    rows = [play_demonstrations(scenario, count, 2, seed, "cpu") for count, seed in ((4, 1), (2, 1), (2, 9))]
    assert torch.equal(rows[0][OBSERVATION][:2], rows[1][OBSERVATION])
    assert not torch.equal(rows[1][OBSERVATION], rows[2][OBSERVATION])
    assert not torch.equal(rows[0][OBSERVATION][0], rows[0][OBSERVATION][1])


def test_a_round_draws_different_ones():
    rows = {FILLED: torch.ones(6, 2, dtype=torch.bool), REWARD: torch.arange(6.0)[:, None].expand(6, 2)}
    drawn = draw(rows, 4, np.random.default_rng(3))
    assert drawn[FILLED].shape == (4, 2)
    assert len(drawn[REWARD][:, 0].unique()) == 4
    assert torch.equal(draw(rows, 4, np.random.default_rng(3))[REWARD], drawn[REWARD])
    assert sorted(draw(rows, 6, np.random.default_rng(3))[REWARD][:, 0].tolist()) == list(range(6))


@pytest.mark.parametrize("network", [SMALL, DIFFUSION], ids=["heads", "diffusion"])
def test_their_ratios_start_at_1_and_their_advantages_decide(network):
    learner = learner_of("games/climb", network, entropy_weight=0.0)
    module = module_of(learner)
    rows = demonstrations(5, scenario="games/climb")
    rows = {**rows, **module.as_if_played(rows, seed=4)}
    assert rows[LOG_PROB].shape == rows[ACTIONS].shape
    assert (DENOISING in rows) == (network is DIFFUSION)
    rows = {**rows, **module.advantages(rows)}
    log_p = learner.module[DEFAULT_MODULE_ID].forward_train(rows)[LOG_PROB]
    assert torch.equal((log_p - rows[LOG_PROB].sum(-1)).exp(), torch.ones(5, 1, 2))
    for sign in (1.0, -1.0):
        module.zero_grad()
        rows[ADVANTAGE] = torch.full((5, 1), sign)
        out = learner.module[DEFAULT_MODULE_ID].forward_train(rows)
        loss_of(learner, rows, out).backward()
        step = {name: p - 1e-3 * p.grad for name, p in module.network.named_parameters() if p.grad is not None}
        moved = torch.func.functional_call(module.network, step, (rows[OBSERVATION][:, :1], previous(5), start(module, 5)))
        with torch.no_grad():
            before = module.network(rows[OBSERVATION][:, :1], previous(5), start(module, 5))
        chosen = rows[ACTIONS].long()[..., None]
        change = (moved.scores.log_softmax(-1) - before.scores.log_softmax(-1)).gather(-1, chosen).mean()
        assert change * sign > 0  # imitated where the advantage is positive, avoided where it is negative


def previous(rows: int) -> torch.Tensor:
    return torch.full((rows, 1, 2, 1), -1)


def start(module, rows: int) -> torch.Tensor:
    return module.network.initial_state(rows)


def test_the_same_seed_gives_the_same_noise():
    module = module_of(learner_of("games/climb", DIFFUSION))
    rows = demonstrations(5, scenario="games/climb")
    noise = [module.as_if_played(rows, seed)[DENOISING] for seed in (4, 4, 5)]
    assert noise[0].shape == (5, 1, 2, 3, 3)
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])


def test_a_problem_without_an_expert_is_refused_before_anything_is_made(tmp_path: Path):
    config = make_run_config("mappo", "dialogue/d1", overrides=["algorithm.demonstrations=5"])
    with pytest.raises(InputError, match=r"algorithm.demonstrations = 5: expected 0, as dialogue has no expert"):
        train(config, tmp_path / "run", report=print)
    config = make_run_config("mappo", "games/climb", overrides=["network.request_encoder.field=prompt"])
    with pytest.raises(
        InputError, match=r"network.request_encoder.field = 'prompt': expected a plain field of games/climb, node"
    ):
        train(config, tmp_path / "run", report=print)
    assert not (tmp_path / "run").exists()
    MappoSettings(demonstrations=5).check(make_simulator(make_scenario("games/climb")))


def test_they_count_as_experience_and_as_part_of_the_first_rounds():
    torch.set_num_threads(1)
    initialise_ray(0)
    settings = ["algorithm.demonstrations=6", "algorithm.demonstrations_min=3", "algorithm.epochs=1", "training.num_envs=4"]
    config = make_run_config("mappo", "games/two-step", 3, [*settings, "training.evaluation_interval=100"])
    algorithm = build_algorithm(config, make_simulator(config.scenario).spec)
    learnt: list[int] = []
    learn = algorithm.learn
    algorithm.learn = lambda rows, **kwargs: (learnt.append(len(rows[FILLED])), learn(rows, **kwargs))
    try:
        counts = []
        for _ in range(4):
            algorithm.train()
            counts.append((algorithm.episodes, algorithm.env_steps))
    finally:
        algorithm.stop()
    assert learnt == [4 + 6, 4 + 3, 4]  # the first round takes the inputs' statistics only; 6 / 3 is too few
    assert counts == [(4, 8), (14, 28), (18, 36), (22, 44)]
