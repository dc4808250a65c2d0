"""MAPPO's normalisation, advantages and loss, each against numbers worked by hand."""

import math

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from models.diffusion import DiffusionConfig
from models.team_module import AGENT_REWARD, ALIVE, FILLED, LOG_PROB, OBSERVATION, REWARD, STATE, TERMINATED
from models.team_network import NetworkConfig
from trainers.algorithms.mappo import ADVANTAGE, OLD_VALUE, TARGET, MappoConfig, MappoSettings, ValueNormaliser
from trainers.algorithms.returns import generalised_advantages
from trainers.rollout import TeamEnvRunner, play_episodes

NETWORK = NetworkConfig(hidden=8, entity_hidden=4)


def learner_of(scenario: str = "games/two-step", network: NetworkConfig = NETWORK, **changes):
    """A learner with fresh weights."""
    built = make_scenario(scenario, {"max_steps": 4} if "spread" in scenario else {})
    simulator = make_simulator(built)
    simulator.close()
    config = (
        MappoConfig()
        .team(built, simulator.spec, network, MappoSettings(**changes), env_steps=1000)
        .debugging(seed=5, log_level="ERROR")
    )
    return config.build_learner(spaces={DEFAULT_MODULE_ID: TeamEnvRunner.spaces_of(simulator.spec)})


def module_of(learner):
    return learner.module[DEFAULT_MODULE_ID].unwrapped()


def loss_of(learner, rows, fwd_out):
    return learner.compute_loss_for_module(module_id=DEFAULT_MODULE_ID, config=learner.config, batch=rows, fwd_out=fwd_out)


# --------------------------------------------------------------------------------------------------------- value normaliser


def test_the_normaliser_is_the_identity_at_the_start():
    normaliser = ValueNormaliser()
    values = torch.tensor([-3.0, 7.0])
    assert torch.equal(normaliser.normalise(values), values)
    assert torch.equal(normaliser.restore(values), values)


def test_the_first_targets_are_normalised_by_their_own_moments():
    normaliser = ValueNormaliser()
    normaliser.update(torch.tensor([10.0, 14.0]))  # mean 12, deviation 2: the small weight of the first update is taken out
    torch.testing.assert_close(normaliser.normalise(torch.tensor([12.0, 16.0])), torch.tensor([0.0, 2.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(normaliser.restore(torch.tensor([0.0, 2.0])), torch.tensor([12.0, 16.0]), atol=1e-3, rtol=0)


def test_moments_are_weighted_averages():
    normaliser = ValueNormaliser()
    batches = [np.array([0.0, 2.0]), np.array([5.0, 9.0]), np.array([4.0])]
    for batch in batches:
        normaliser.update(torch.tensor(batch))
    weights = np.array([0.99**2, 0.99, 1.0])
    weights /= weights.sum()
    mean = weights @ [batch.mean() for batch in batches]
    deviation = math.sqrt(weights @ [(batch**2).mean() for batch in batches] - mean**2)
    got = normaliser.normalise(torch.tensor([3.0])).item()
    assert got == pytest.approx((3.0 - mean) / deviation, rel=1e-3)
    assert normaliser.restore(torch.tensor([got])).item() == pytest.approx(3.0, rel=1e-5)


def test_equal_targets_are_not_blown_up():
    normaliser = ValueNormaliser()
    normaliser.update(torch.full((5,), 3.0))
    assert normaliser.normalise(torch.tensor([3.1])).item() == pytest.approx(1.0, rel=1e-2)  # variance: at least 0.01


# -------------------------------------------------------------------------------------------------------------- advantages


def sampled_rows() -> dict[str, torch.Tensor]:
    """Three short episodes whose steps after their ends hold noise."""
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor([[2], [1], [2]])
    filled = torch.arange(2) < length
    return {
        STATE: torch.nn.functional.one_hot(torch.randint(0, 3, (3, 3), generator=generator), 3).float(),
        REWARD: 50.0 + 10.0 * torch.rand(3, 2, generator=generator),
        TERMINATED: torch.arange(2) >= length - 1,
        FILLED: filled,
    }


def test_advantages_are_normalised_over_the_steps_that_were_played():
    module = module_of(learner_of())
    rows = sampled_rows()
    got = module.advantages(rows)
    inside = got[ADVANTAGE][rows[FILLED]]
    assert inside.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert inside.std(unbiased=False).item() == pytest.approx(1.0, abs=1e-4)
    noise = {**rows, REWARD: torch.where(rows[FILLED], rows[REWARD], 1e4), STATE: rows[STATE].clone()}
    noise[STATE][1, 2] = 7.0  # after the end of the second episode
    other = module_of(learner_of())
    again = other.advantages(noise)
    for name in (ADVANTAGE, TARGET, OLD_VALUE):
        torch.testing.assert_close(again[name][rows[FILLED]], got[name][rows[FILLED]])
    assert torch.equal(other.normaliser.moments, module.normaliser.moments)


def test_advantages_targets_and_old_values_are_in_their_units():
    module = module_of(learner_of(gamma=0.5, gae_lambda=0.25))
    rows = sampled_rows()
    module.normaliser.update(torch.tensor([40.0, 60.0]))  # mean 50, deviation 10
    with torch.no_grad():
        old = module.critic(rows[STATE])
        value = module.normaliser.restore(old)
    torch.testing.assert_close(value, 50.0 + 10.0 * old, rtol=1e-3, atol=0)
    raw = generalised_advantages(rows[REWARD], rows[TERMINATED], rows[FILLED], value, 0.5, 0.25)
    got = module.advantages(rows)
    inside = raw[rows[FILLED]]
    torch.testing.assert_close(got[TARGET][rows[FILLED]], (raw + value[:, :-1])[rows[FILLED]])
    expected = (inside - inside.mean()) / inside.std(unbiased=False)
    torch.testing.assert_close(got[ADVANTAGE][rows[FILLED]], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[OLD_VALUE], old[:, :-1])  # what the critic said, in the units in which it learns


def test_with_credit_of_its_own_each_agent_has_the_advantages_of_its_own_reward():
    module = module_of(learner_of("dialogue/d8", gamma=0.5, gae_lambda=0.25, credit="agent"))
    rows = sampled_rows()
    rows[STATE] = torch.randn(3, 3, module.spec.state_size)
    rows[AGENT_REWARD] = torch.rand(3, 2, 8)
    with torch.no_grad():
        value = module.critic(rows[STATE])
    assert value.shape == (3, 3, 8)
    got = module.advantages(rows)
    for agent in (0, 7):
        each = (rows[TERMINATED], rows[FILLED], value[..., agent], 0.5, 0.25)
        alone = generalised_advantages(rows[AGENT_REWARD][..., agent], *each)
        torch.testing.assert_close(got[TARGET][..., agent], alone + value[:, :-1, agent])
    inside = got[ADVANTAGE][rows[FILLED]]
    assert inside.mean().item() == pytest.approx(0.0, abs=1e-5)


def test_with_credit_of_its_own_an_agent_is_moved_by_its_own_advantage():
    learner = learner_of(credit="agent", entropy_weight=0.0)
    rows = {
        FILLED: torch.ones(1, 1, dtype=torch.bool),
        ALIVE: torch.ones(1, 2, 2, dtype=torch.bool),
        LOG_PROB: torch.zeros(1, 1, 2, 1),
        ADVANTAGE: torch.tensor([[[2.0, -1.0]]]),
        OLD_VALUE: torch.zeros(1, 1, 2),
    }
    ratio = torch.tensor([[[1.1, 0.9]]])
    fwd_out = {LOG_PROB: ratio.log(), "entropy": torch.zeros(1, 1, 2), "value": torch.tensor([[[0.1, 0.0]]])}
    loss = loss_of(learner, rows, {**fwd_out, "target": torch.zeros(1, 1, 2)})
    # policy: -(1.1 * 2 - 0.9 * 1) / 2 = -0.65; value: mean of 0.1^2 / 2 and 0
    assert loss.item() == pytest.approx(-0.65 + 0.0025, abs=1e-6)


def test_credit_of_its_own_needs_rewards_of_agents():
    with pytest.raises(InputError, match="has one reward for all"):
        MappoSettings(credit="agent").check(make_simulator(make_scenario("games/two-step")))
    MappoSettings(credit="agent").check(make_simulator(make_scenario("dialogue/d1")))


# -------------------------------------------------------------------------------------------------------------------- loss

# One episode of two steps and one of a single step; the second agent has left in the first one's second step.
ROWS = {
    FILLED: torch.tensor([[True, True], [True, False]]),
    ALIVE: torch.tensor([[[True, True], [True, False], [True, False]], [[True, True], [True, True], [True, True]]]),
    ADVANTAGE: torch.tensor([[1.0, -2.0], [3.0, 1000.0]]),
    LOG_PROB: torch.full((2, 2, 2, 1), math.log(0.5)),
    OLD_VALUE: torch.tensor([[0.0, 1.0], [2.0, 1000.0]]),
}


def loss_parts(learner, ratios, values, targets, entropy):
    fwd_out = {
        LOG_PROB: (torch.tensor(ratios) * 0.5).log(),
        "value": torch.tensor(values, requires_grad=True),
        "target": torch.tensor(targets),
        "entropy": torch.tensor(entropy),
    }
    fwd_out[LOG_PROB].requires_grad_()
    loss = loss_of(learner, ROWS, fwd_out)
    loss.backward()
    return loss.item(), fwd_out[LOG_PROB].grad, fwd_out["value"].grad


def test_the_loss_by_hand():
    learner = learner_of(clip=0.2, entropy_weight=0.1, huber=1.0)
    loss, policy_gradient, value_gradient = loss_parts(
        learner,
        ratios=[[[1.0, 1.5], [0.5, 9.0]], [[0.5, 2.0], [9.0, 9.0]]],
        values=[[0.1, 2.0], [2.0, 500.0]],
        targets=[[0.3, 0.0], [4.0, -500.0]],
        entropy=[[[1.0, 2.0], [3.0, 77.0]], [[0.0, 4.0], [77.0, 77.0]]],
    )
    # Five decisions count. Advantage 1: ratio 1 gives 1, ratio 1.5 is cut to 1.2. Advantage -2: the smaller of 0.5 * -2 and
    # 0.8 * -2 is -1.6. Advantage 3: 0.5 gives 1.5 (not 0.8 * 3), 2 is cut to 1.2 * 3 = 3.6.
    policy_loss = -(1.0 + 1.2 - 1.6 + 1.5 + 3.6) / 5
    # Values: 0.1 is within 0.2 of the old 0: error 0.2, 0.02. 2 against the target 0: Huber 2 - 0.5 = 1.5, and cut to 1.2 less:
    # the larger, 1.5, counts. 2 against 4: 2 - 0.5 = 1.5 either way.
    value_loss = (0.02 + 1.5 + 1.5) / 3
    entropy = (1 + 2 + 3 + 0 + 4) / 5
    assert loss == pytest.approx(policy_loss + value_loss - 0.1 * entropy, abs=1e-5)
    # d ratio / d log p = ratio: -1 * 1 / 5 and -3 * 0.5 / 5; cut ones, those that have left and padding get nothing
    assert policy_gradient.flatten().tolist() == pytest.approx([-0.2, 0, 0, 0, -0.3, 0, 0, 0], abs=1e-5)
    assert value_gradient.flatten().tolist() == pytest.approx([-0.2 / 3, 1 / 3, -1 / 3, 0], abs=1e-5)


def test_a_value_that_has_come_far_towards_its_target_moves_no_further():
    learner = learner_of(clip=0.2, entropy_weight=0.0)
    *_, gradient = loss_parts(
        learner,
        ratios=[[[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]],
        values=[[0.5, 1.0], [1.5, 0.0]],  # old: 0, 1, 2
        targets=[[1.0, 3.0], [3.0, 0.0]],
        entropy=[[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]],
    )
    # 0 -> 0.5 towards 1: more than the clip, so the cut value's larger error counts, and has no gradient; 1 has not moved;
    # 2 -> 1.5 went the wrong way, and its error of 1.5 is the larger one
    assert gradient.flatten().tolist() == pytest.approx([0.0, -2.0 / 3, -1.5 / 3, 0.0])


def test_branches_of_an_agent_share_one_ratio():
    learner = learner_of(clip=0.2, entropy_weight=0.0)
    rows = {**ROWS, LOG_PROB: torch.full((2, 2, 2, 2), math.log(0.5))}  # two branches, 0.25 together
    fwd_out = {
        LOG_PROB: torch.full((2, 2, 2), math.log(0.275)),  # ratio 1.1
        "value": ROWS[OLD_VALUE],
        "target": ROWS[OLD_VALUE],
        "entropy": torch.zeros(2, 2, 2),
    }
    # 1.1 * (1 + 1 - 2 + 3 + 3) / 5
    assert loss_of(learner, rows, fwd_out).item() == pytest.approx(-1.1 * 6 / 5, rel=1e-5)


@pytest.mark.parametrize("scenario", ["games/two-step", "pettingzoo:mpe2.simple_spread_v3"])
def test_before_the_first_update_ratios_are_1_and_nothing_is_clipped(scenario):
    learner = learner_of(scenario, entropy_weight=0.0, huber=1e6)
    module = module_of(learner)
    simulator = make_simulator(learner.config.env_config["scenario"], 8)
    rows, _ = play_episodes(simulator, module, torch.arange(8), True, generator=torch.Generator().manual_seed(0))
    simulator.close()
    rows[REWARD] = rows[REWARD] - 300.0  # far from what a fresh critic says
    rows = {**rows, **module.advantages(rows)}
    out = learner.module[DEFAULT_MODULE_ID].forward_train(rows)
    torch.testing.assert_close(out[LOG_PROB], rows[LOG_PROB].sum(-1), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(out["value"], rows[OLD_VALUE])
    loss_of(learner, rows, out).backward()
    gradient = torch.cat([p.grad.flatten() for p in module.critic.parameters()])
    module.zero_grad()
    again = learner.module[DEFAULT_MODULE_ID].forward_train(rows)["value"]
    ((again - out["target"]).square() / 2).mean().backward()
    torch.testing.assert_close(gradient, torch.cat([p.grad.flatten() for p in module.critic.parameters()]))
    assert gradient.abs().max() > 1e-3


def test_the_critic_and_the_policy_are_standardised_by_what_was_sampled():
    module = module_of(learner_of())
    simulator = make_simulator(make_scenario("games/two-step"), 8)
    rows, _ = play_episodes(simulator, module, torch.arange(8), True, generator=torch.Generator().manual_seed(0))
    module.fit_inputs(rows)
    states = rows[STATE].flatten(0, 1)
    torch.testing.assert_close(module.critic.standard.shift, states.mean(0))
    seen = rows[OBSERVATION].float().flatten(0, 2)
    torch.testing.assert_close(module.network.encoder.plain_standard.shift, seen.mean(0))


@pytest.mark.parametrize("schedule", ["linear", "vp"])
@pytest.mark.parametrize("steps", [5, 10])
def test_before_the_first_update_a_diffusion_actors_ratios_are_1_to_the_bit(steps, schedule):
    network = NETWORK.model_copy(update={"diffusion": DiffusionConfig(steps=steps, schedule=schedule, hidden=16)})
    learner = learner_of("games/climb", network)  # one step an episode: runner and learner compute it in batches of one shape
    simulator = make_simulator(learner.config.env_config["scenario"], 32)
    rows, _ = play_episodes(simulator, module_of(learner), torch.arange(32), True, generator=torch.Generator().manual_seed(0))
    log_p = learner.module[DEFAULT_MODULE_ID].forward_train({**rows, **module_of(learner).advantages(rows)})[LOG_PROB]
    assert torch.equal((log_p - rows[LOG_PROB].sum(-1)).exp(), torch.ones(32, 1, 2))
    assert len(log_p.unique()) > 32  # every decision had noise of its own
