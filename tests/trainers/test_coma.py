"""COMA's counterfactual advantages, targets and loss, and UCB-COMA's exploration, each against numbers worked by hand."""

import math

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from envs.registry import make_scenario
from envs.team import ActionHead, Field, TeamSpec
from models.distributions import BranchCategorical
from models.team_module import ACTION_MASK, ACTIONS, ALIVE, FILLED, LOG_PROB, OBSERVATION, REWARD, STATE, TERMINATED
from models.team_network import NetworkConfig
from trainers.algorithms.coma import ComaConfig, ComaSettings, counterfactual_advantage, ucb_scores
from trainers.rollout import TeamEnvRunner

AGENTS, STEPS, PLACES, OPTIONS = 2, 4, 3, 2
SPEC = TeamSpec(
    problem="test",
    scenario="test/pairs",
    agents=("a", "b"),
    observation={"load": Field((PLACES,), 0.0, 1.0, entity="job"), "clock": Field((), 0.0, 1.0)},
    heads=(ActionHead("pair", PLACES * OPTIONS, members="job"), ActionHead("level", 2)),
    state_size=3,
    max_steps=STEPS,
)
NETWORK = NetworkConfig(hidden=8, entity_hidden=4)
LENGTHS = torch.tensor([4, 2, 3])


def learner_of(**changes):
    """A learner with fresh weights."""
    config = (
        ComaConfig()
        .team(make_scenario("games/two-step"), SPEC, NETWORK, ComaSettings(**changes), env_steps=1000)
        .debugging(seed=5, log_level="ERROR")
    )
    return config.build_learner(spaces={DEFAULT_MODULE_ID: TeamEnvRunner.spaces_of(SPEC)})


def module_of(learner):
    return learner.module[DEFAULT_MODULE_ID].unwrapped()


def batch(seed: int = 0, noise_seed: int | None = None) -> dict[str, torch.Tensor]:
    """Episodes of `LENGTHS` steps, the last two truncated; with `noise_seed` everything after them is other noise."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.arange(STEPS + 1) <= LENGTHS[:, None]

    def numbers(steps: int, *shape: int) -> torch.Tensor:
        inside = torch.rand(3, steps, *shape, generator=generator)
        if noise_seed is None:
            return inside
        outside = torch.rand(inside.shape, generator=torch.Generator().manual_seed(noise_seed))
        keep = (seen if steps == STEPS + 1 else seen[:, 1:]).reshape(3, steps, *[1] * len(shape))
        return torch.where(keep, inside, outside)

    rows = {
        OBSERVATION: numbers(STEPS + 1, AGENTS, PLACES + 1).to(torch.float16),
        STATE: numbers(STEPS + 1, 3),
        ACTION_MASK: (numbers(STEPS + 1, AGENTS, 2, 6) < 0.6) & SPEC.choice_exists(),
        ALIVE: numbers(STEPS + 1, AGENTS) < 0.8,
        REWARD: numbers(STEPS) * 3,
        TERMINATED: torch.zeros(3, STEPS, dtype=torch.bool),
        FILLED: torch.arange(STEPS) < LENGTHS[:, None],
    }
    rows[TERMINATED][0, -1] = True
    rows[ALIVE][..., 0] = True
    rows[ACTION_MASK][..., 0] |= ~rows[ACTION_MASK].any(-1)
    chance = numbers(STEPS, AGENTS, 2, 6).masked_fill(~rows[ACTION_MASK][:, :-1], -1.0)
    rows[ACTIONS] = chance.argmax(-1).to(torch.int16)
    rows[LOG_PROB] = -numbers(STEPS, AGENTS, 2)
    return rows


def outputs(learner, rows):
    torch.manual_seed(7)  # what a truncated episode goes on with is sampled
    return learner.module[DEFAULT_MODULE_ID].forward_train(rows)


def loss_of(learner, rows):
    return learner.compute_loss_for_module(
        module_id=DEFAULT_MODULE_ID, config=learner.config, batch=rows, fwd_out=outputs(learner, rows)
    )


# -------------------------------------------------------------------------------------------------------------- advantages


def test_the_counterfactual_advantage_by_hand():
    policy = BranchCategorical(torch.tensor([[[0.25, 0.75, 0.0], [0.5, 0.3, 0.2]]]).clamp(min=1e-30).log())
    scores = torch.tensor([[[4.0, 8.0, 99.0], [10.0, 0.0, -5.0]]])
    # baselines: 1 + 6 = 7 (the illegal 99 does not count), and 5 + 0 - 1 = 4
    got = counterfactual_advantage(policy, scores, torch.tensor([[0, 2]]))
    torch.testing.assert_close(got, torch.tensor([[4.0 - 7.0, -5.0 - 4.0]]))


def test_the_policys_mean_advantage_is_0():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 2, 6, generator=generator) < 0.6
    mask[..., 1] = True
    policy = BranchCategorical.of(torch.randn(5, 2, 6, generator=generator), mask)
    scores = torch.randn(5, 2, 6, generator=generator)
    each = torch.stack([counterfactual_advantage(policy, scores, torch.full((5, 2), choice)) for choice in range(6)], -1)
    torch.testing.assert_close((policy.log_p.exp() * each).sum(-1), torch.zeros(5, 2), atol=1e-5, rtol=0)
    assert each.abs().max() > 0.5


def test_a_forced_choice_is_neither_good_nor_bad():
    learner, rows = learner_of(), batch()
    rows[ACTION_MASK][0, 1, 0, 0] = False
    rows[ACTION_MASK][0, 1, 0, 0, 2] = True  # agent 0's pair in step 1
    rows[ACTIONS][0, 1, 0, 0] = 2
    out = outputs(learner, rows)
    assert out["advantage"][0, 1, 0, 0] == 0
    assert (rows[ACTION_MASK][:, :-1].sum(-1) > 1)[out["advantage"] != 0].all()
    with torch.no_grad():
        critic = module_of(learner).critic
        scores, value = critic(rows[OBSERVATION][:, :-1], rows[STATE][:, :-1], rows[ACTIONS].long())
    level = scores[0, 1, 0, 1, rows[ACTIONS][0, 1, 0, 1].long()]
    decides = rows[ACTION_MASK][0, 1, 0, 1].sum() > 1
    torch.testing.assert_close(out["q"][0, 1, 0].detach(), value[0, 1, 0] + level * decides)


# ----------------------------------------------------------------------------------------------------------------- targets


def test_targets_by_hand_from_the_slow_critic():
    """One-step targets: the reward and the discounted mean over those that are there of what the slow copy says next."""
    learner = learner_of(td_lambda=0.0, gamma=0.5)
    module, rows = module_of(learner), batch()
    with torch.no_grad():
        for parameter in module.target_critic.parameters():
            parameter.mul_(1.7)  # not what the critic itself says
        pad = torch.nn.functional.pad(rows[ACTIONS].long(), (0, 0, 0, 0, 0, 1))
        scores, value = module.target_critic(rows[OBSERVATION], rows[STATE], pad)
    targets = outputs(learner, rows)["targets"]
    for row, steps in enumerate(LENGTHS.tolist()):
        for t in range(steps - 1):
            said = []
            for agent in range(AGENTS):
                if rows[ALIVE][row, t + 1, agent]:
                    q = value[row, t + 1, agent].item()
                    for branch in range(2):
                        if rows[ACTION_MASK][row, t + 1, agent, branch].sum() > 1:
                            q += scores[row, t + 1, agent, branch, pad[row, t + 1, agent, branch]].item()
                    said.append(q)
            expected = rows[REWARD][row, t].item() + 0.5 * sum(said) / len(said)
            assert targets[row, t].item() == pytest.approx(expected, abs=1e-5)
    assert targets[0, -1] == rows[REWARD][0, -1]  # it terminated


def test_a_truncated_episode_goes_on_with_the_value_of_what_it_saw_last():
    learner = learner_of(td_lambda=0.0, gamma=0.5)
    module, rows = module_of(learner), batch()
    rows[ACTION_MASK][1, 2] = False
    rows[ACTION_MASK][1, 2, :, :, 1] = True  # what comes after the second episode's end is forced, so it is known
    with torch.no_grad():
        _, value = module.target_critic(rows[OBSERVATION][:, 2], rows[STATE][:, 2], torch.ones(3, AGENTS, 2, dtype=torch.int64))
    there = rows[ALIVE][1, 2]
    expected = rows[REWARD][1, 1] + 0.5 * value[1][there].mean()
    torch.testing.assert_close(outputs(learner, rows)["targets"][1, 1], expected)


def test_an_episodes_targets_do_not_depend_on_how_long_the_others_are():
    learner, rows = learner_of(), batch()
    rows[ACTION_MASK][1, 2] = False
    rows[ACTION_MASK][1, 2, :, :, 1] = True
    alone = {name: value[1:2, : 2 + value.shape[1] - STEPS] for name, value in rows.items()}
    torch.testing.assert_close(outputs(learner, alone)["targets"], outputs(learner, rows)["targets"][1:2, :2])


# -------------------------------------------------------------------------------------------------------------------- loss


def test_the_loss_by_hand():
    learner = learner_of(entropy_weight=0.1)
    rows = {
        FILLED: torch.tensor([[True, True], [True, False]]),
        ALIVE: torch.tensor([[[True, True], [True, False], [True, True]], [[True, True]] * 3]),
        LOG_PROB: torch.full((2, 2, 2, 1), math.log(0.5)),
    }
    log_p = torch.tensor([[[0.5, 0.25], [0.75, 0.9]], [[0.125, 0.5], [0.9, 0.9]]]).log().unsqueeze(-1).requires_grad_()
    fwd_out = {
        "q": torch.tensor([[[1.0, 2.0], [0.0, 99.0]], [[3.0, 3.0], [99.0, 99.0]]], requires_grad=True),
        "targets": torch.tensor([[2.0, 2.0], [1.0, -99.0]]),
        "advantage": torch.tensor([[[1.0, -2.0], [4.0, 99.0]], [[8.0, 0.0], [99.0, 99.0]]]).unsqueeze(-1),
        "log_p": log_p,
        "entropy": torch.tensor([[[1.0, 0.0], [2.0, 99.0]], [[0.0, 2.0], [99.0, 99.0]]]),
    }
    loss = learner.compute_loss_for_module(module_id=DEFAULT_MODULE_ID, config=learner.config, batch=rows, fwd_out=fwd_out)
    # Five decisions. Errors: -1, 0, -2, 2, 2. Weights by importance: 0.5/0.5 = 1, 0.5, 1.5 cut to 1, 0.25, 1.
    critic = (1 + 0 + 4 + 4 + 4) / 5
    logs = [math.log(p) for p in (0.5, 0.25, 0.75, 0.125)]
    policy = -(1 * 1 * logs[0] + 0.5 * -2 * logs[1] + 1 * 4 * logs[2] + 0.25 * 8 * logs[3]) / 5
    assert loss.item() == pytest.approx(critic + policy - 0.1 * (1 + 0 + 2 + 0 + 2) / 5, rel=1e-5)
    loss.backward()
    # the weights themselves have no gradient: -weight * advantage / 5
    assert log_p.grad.flatten().tolist() == pytest.approx([-0.2, 0.2, -0.8, 0, -0.4, 0, 0, 0])


def test_padding_changes_neither_loss_nor_gradients():
    learner = learner_of()
    module = module_of(learner)
    trained = [p for group in module.trained_parameters().values() for p in group]
    one, other = batch(), batch(noise_seed=99)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    results = []
    for rows in (one, other):
        loss = loss_of(learner, rows)
        results.append((loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


def test_actor_and_critic_learn_from_their_own_parts_of_the_loss():
    learner, rows = learner_of(), batch()
    module = module_of(learner)
    out = outputs(learner, rows)
    groups = module.trained_parameters()
    for name, group in (("q", "critic"), ("log_p", "actor")):
        other = "actor" if group == "critic" else "critic"
        got = torch.autograd.grad(out[name].sum(), groups[group] + groups[other], retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().max() > 0 for g in got[: len(groups[group])])
        assert all(g is None for g in got[len(groups[group]) :])
    assert not out["advantage"].requires_grad
    assert not out["targets"].requires_grad


def test_the_slow_critic_follows_by_the_share_tau():
    learner = learner_of(target_tau=0.25)
    module = module_of(learner)
    with torch.no_grad():
        for value, network in ((1.0, module.target_critic), (3.0, module.critic)):
            for parameter in network.parameters():
                parameter.fill_(value)
    learner.after_gradient_based_update(timesteps={})
    assert all((p == 1.5).all() for p in module.target_critic.parameters())  # 1 + 0.25 * (3 - 1)
    assert not any(p.requires_grad for p in module.target_critic.parameters())


# --------------------------------------------------------------------------------------------------- upper confidence bounds


def test_ucb_scores_by_hand():
    log_p = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]).log()
    counts = torch.tensor([[[3.0, 1.0], [0.0, 8.0]]])
    parts = torch.tensor([2.0, 1.0])
    got = ucb_scores(log_p, counts, parts, factor=0.5)
    first, second = math.sqrt(2 * math.log(4)), math.sqrt(2 * math.log(8))
    # a pair's term counts twice: once for the subtask, once for the location
    expected = [
        [math.log(0.5) + 0.5 * 2 * first / math.sqrt(4), math.log(0.5) + 0.5 * 2 * first / math.sqrt(2)],
        [math.log(0.25) + 0.5 * second, math.log(0.75) + 0.5 * second / 3],
    ]
    torch.testing.assert_close(got, torch.tensor([expected]))


def test_before_the_first_choice_the_policy_decides_alone():
    log_p = torch.tensor([[[0.5, 0.5]]]).log()
    assert torch.equal(ucb_scores(log_p, torch.zeros(1, 1, 2), torch.ones(1), factor=9.0), log_p)


def test_a_choice_of_a_pair_counts_as_two_decisions():
    module = module_of(learner_of(exploration="ucb"))
    assert module.parts.tolist() == [2.0, 1.0]


def test_the_factor_falls_linearly():
    settings = ComaSettings(ucb_start=2.0, ucb_end=0.5, ucb_steps=100)
    assert [settings.exploration_factor(n) for n in (0, 50, 100, 10**6)] == pytest.approx([2.0, 1.25, 0.5, 0.5])


def test_counts_are_of_each_agent_branch_and_choice():
    module = module_of(learner_of())
    actions = torch.tensor([[[5, 1], [0, 0]], [[5, 0], [2, 0]]])
    module.count(actions, torch.tensor([[True, True], [True, False]]))
    expected = torch.zeros(AGENTS, 2, 6)
    expected[0, 0, 5], expected[0, 1, 0], expected[0, 1, 1], expected[1, 0, 0], expected[1, 1, 0] = 2, 1, 1, 1, 1
    assert torch.equal(module.counts, expected)


def test_rows_are_counted_where_agents_were_there_and_the_episode_went_on():
    module, rows = module_of(learner_of()), batch()
    module.count_rows(rows)
    expected = torch.zeros(AGENTS, 2, 6)
    for row, steps in enumerate(LENGTHS.tolist()):
        for t in range(steps):
            for agent in range(AGENTS):
                if rows[ALIVE][row, t, agent]:
                    for branch in range(2):
                        expected[agent, branch, rows[ACTIONS][row, t, agent, branch].long()] += 1
    assert torch.equal(module.counts, expected)


def test_ucb_tries_what_was_tried_least_and_only_what_is_legal():
    module = module_of(learner_of(exploration="ucb", ucb_start=1e3, ucb_end=1e3))
    packed = torch.zeros(1, AGENTS, PLACES + 1, dtype=torch.float16)
    mask = SPEC.choice_exists().expand(1, AGENTS, 2, 6).clone()
    mask[..., 0, 4] = False
    taken = []
    for _ in range(20):
        actions, _, extras = module.act(packed, mask, module.initial_state(1), explore=True)
        taken.append(actions[0, 0])
        assert extras[LOG_PROB].shape == (1, AGENTS, 2)
    pairs, levels = torch.stack(taken).T
    assert torch.bincount(pairs, minlength=6).tolist() == [4, 4, 4, 4, 0, 4]  # with so large a factor all get their turn
    assert torch.bincount(levels).tolist() == [10, 10]
    assert module.counts[0].sum(-1).tolist() == [20, 20]
    before = module.counts.clone()
    module.act(packed, mask, module.initial_state(1), explore=False)
    assert torch.equal(module.counts, before)  # play counts nothing


def test_counts_travel_to_runners_and_stay_in_states():
    learner = learner_of(exploration="ucb")
    module = module_of(learner)
    module.count_rows(batch())
    runner = TeamEnvRunner(config=learner.config, worker_index=1)
    runner.set_state({"rl_module": {DEFAULT_MODULE_ID: module.get_state(inference_only=True)}})
    assert torch.equal(runner.module.counts, module.counts)
    assert module.counts.sum() > 0
    restored = learner_of(exploration="ucb")
    restored.set_state(learner.get_state())
    assert torch.equal(module_of(restored).counts, module.counts)
