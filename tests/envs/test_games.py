"""The games pay what the papers say."""

import itertools

import pytest
import torch

from envs.errors import InputError
from envs.registry import make_scenario, make_simulator, scenario_from_dict

SEEDS = torch.arange(4)


def play(name: str, *steps: list[list[int]], overrides: dict | None = None):
    """Plays joint choices (`steps[t][row] = [agent 1, agent 2]`) and returns the results of all steps."""
    simulator = make_simulator(make_scenario(name, overrides), len(steps[0]))
    simulator.reset(SEEDS[: len(steps[0])])
    return [simulator.step(torch.tensor(step)[..., None]) for step in steps]


def test_two_step_pays_seven_after_the_safe_choice_and_the_matrix_after_the_risky_one():
    joint = [list(pair) for pair in itertools.product(range(2), range(2))]
    for other in (0, 1):  # agent 2's first choice has no effect
        first, last = play("games/two-step", [[0, other]] * 4, joint)
        assert first.reward.tolist() == [0, 0, 0, 0]
        assert not first.finished.any()
        assert first.state.tolist() == [[0, 1, 0]] * 4
        assert last.reward.tolist() == [7, 7, 7, 7]
        assert last.terminated.all()
        first, last = play("games/two-step", [[1, other]] * 4, joint)
        assert first.state.tolist() == [[0, 0, 1]] * 4
        assert last.reward.tolist() == [0, 1, 1, 8]
        assert not last.truncated.any()


@pytest.mark.parametrize(
    ("name", "payoffs", "optimum"),
    [
        ("games/qplex-matrix", [8, -12, -12, -12, 0, 0, -12, 0, 0], 8),
        ("games/climb", [11, -30, 0, -30, 7, 6, 0, 0, 5], 11),
    ],
)
def test_matrix_games_pay_their_matrix_in_one_step(name, payoffs, optimum):
    simulator = make_simulator(make_scenario(name), 9)
    simulator.reset(torch.arange(9))
    result = simulator.step(torch.cartesian_prod(torch.arange(3), torch.arange(3))[..., None])
    assert result.reward.tolist() == payoffs
    assert result.metrics["reward"].tolist() == payoffs
    assert result.terminated.all()
    assert make_scenario(name).optimal_return == optimum


def test_two_step_optimum():
    assert make_scenario("games/two-step").optimal_return == 8


@pytest.mark.parametrize("name", ["two-step", "qplex-matrix", "agreement", "climb"])
def test_the_expert_plays_the_optimum(name):
    scenario = make_scenario(f"games/{name}")
    simulator = make_simulator(scenario, 2)
    step = simulator.reset(SEEDS[:2])
    total = torch.zeros(2)
    while not step.finished.all():
        actions = simulator.expert_actions()
        assert step.action_mask.gather(-1, actions[..., None]).all()
        step = simulator.step(actions)
        total += step.reward
    assert simulator.has_expert()
    assert total.tolist() == [scenario.optimal_return] * 2


def test_the_expert_makes_the_best_of_a_wrong_start():
    simulator = make_simulator(make_scenario("games/two-step"), 2)
    simulator.reset(SEEDS[:2])
    simulator.step(torch.tensor([[[0], [0]], [[1], [0]]]))
    assert simulator.expert_actions()[1].tolist() == [[1], [1]]
    assert simulator.step(simulator.expert_actions()).reward.tolist() == [7.0, 8.0]


def test_both_agents_and_the_state_see_the_node():
    simulator = make_simulator(make_scenario("games/two-step"), 2)
    start = simulator.reset(SEEDS[:2])
    assert start.state.tolist() == [[1, 0, 0]] * 2
    after = simulator.step(torch.tensor([[[0], [0]], [[1], [0]]]))
    assert after.observation["node"].tolist() == [[[0, 1, 0]] * 2, [[0, 0, 1]] * 2]


def test_finished_rows_idle_until_reset():
    simulator = make_simulator(make_scenario("games/climb"), 1)
    simulator.reset(SEEDS[:1])
    best = torch.zeros(1, 2, 1, dtype=torch.int64)
    assert simulator.step(best).reward.item() == 11
    idle = simulator.step(best)
    assert idle.reward.item() == 0
    assert idle.metrics["reward"].item() == 0
    assert idle.terminated.item()
    assert not simulator.reset(SEEDS[:1]).terminated.item()
    assert simulator.step(best).reward.item() == 11


def test_own_rectangular_payoffs_are_masked_and_illegal_choices_count_as_zero():
    overrides = {"payoffs": [[[1, 2, 3], [4, 5, 6]]]}
    simulator = make_simulator(make_scenario("games/climb", overrides), 1)
    mask = simulator.reset(SEEDS[:1]).action_mask
    assert mask[0, :, 0].tolist() == [[True, True, False], [True, True, True]]
    (result,) = play("games/climb", [[1, 2], [2, 2]], overrides=overrides)
    assert result.reward.tolist() == [6, 3]


def test_agent_1_picks_among_more_matrices_than_it_has_rows():
    overrides = {"payoffs": [[[1]], [[2]], [[3]]]}
    simulator = make_simulator(make_scenario("games/two-step", overrides), 1)
    assert simulator.reset(SEEDS[:1]).action_mask[0, :, 0].tolist() == [[True, True, True], [True, False, False]]
    assert play("games/two-step", [[2, 0]], [[0, 0]], overrides=overrides)[1].reward.item() == 3


def test_scenario_survives_json():
    scenario = make_scenario("games/two-step")
    assert scenario_from_dict(scenario.model_dump(mode="json")) == scenario


@pytest.mark.parametrize(
    ("payoffs", "complaint"),
    [
        ([[[1, 2], [3]]], "2 rows of 2 numbers"),
        ([[[1]], [[1], [2]]], "1 rows of 1 numbers"),
        ([[[1, float("nan")]]], "finite"),
        ([[[1, "x"]]], "payoffs.0.0.1 = 'x'"),
        ([], "at least 1"),
        ([[[]]], "at least 1"),
    ],
)
def test_bad_payoffs_are_refused_in_one_line(payoffs, complaint):
    with pytest.raises(InputError, match="payoffs") as error:
        make_scenario("games/climb", {"payoffs": payoffs})
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
