"""The parts of the value-decomposition family, each against numbers worked by hand."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from ray.rllib.core import DEFAULT_MODULE_ID

from envs.registry import make_scenario
from envs.team import ActionHead, Field, TeamSpec
from models.encoders import BranchScores
from models.team_module import ACTION_MASK, ACTIONS, ALIVE, FILLED, OBSERVATION, REWARD, STATE, TERMINATED
from models.team_network import IntentConfig, NetworkConfig, NetworkOutput
from trainers.algorithms.value_decomposition import (
    ValueDecompositionConfig,
    ValueSettings,
    branch_value,
)
from trainers.learned_policy import build_module
from trainers.reward_moments import RewardMoments
from trainers.rollout import TeamEnvRunner

AGENTS, STEPS, BATCH, STATE_SIZE = 3, 6, 4, 5
SPEC = TeamSpec(
    problem="test",
    scenario="test/two-heads",
    agents=("a", "b", "c"),
    observation={"seen": Field((4,), 0.0, 1.0)},
    heads=(ActionHead("first", 4, count=2), ActionHead("second", 2)),
    state_size=STATE_SIZE,
    max_steps=STEPS,
)
NETWORK = NetworkConfig(hidden=8, entity_hidden=4, intent=IntentConfig(size=3, key_size=3, tokens=2))


# --------------------------------------------------------------------------------------------------------------- rewards


def test_rewards_are_standardised_by_all_that_were_sampled():
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(3):
        reward = 50 + 3 * torch.randn(4, 5, generator=generator)
        batches.append({REWARD: reward, FILLED: torch.rand(4, 5, generator=generator) < 0.7})
    moments = RewardMoments()
    for rows in batches:
        moments.add(rows)
    sampled = np.concatenate([rows[REWARD][rows[FILLED]].numpy() for rows in batches])
    standard = moments.standardise(batches[1])
    expected = (batches[1][REWARD].numpy() - sampled.mean()) / sampled.std()
    np.testing.assert_allclose(standard[REWARD].numpy(), expected, rtol=1e-4, atol=1e-4)
    assert standard[FILLED] is batches[1][FILLED]


def test_equal_rewards_become_0():
    rows = {REWARD: torch.full((2, 3), 0.1), FILLED: torch.ones(2, 3, dtype=torch.bool)}
    moments = RewardMoments()
    moments.add(rows)
    assert (moments.standardise(rows)[REWARD] == 0).all()


# ---------------------------------------------------------------------------------------------------------------- values


def test_an_agents_value_is_its_value_and_the_scores_of_the_branches_that_decide():
    scores = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [100.0, 200.0, 0.0]] * 2)
    branches = BranchScores(torch.arange(6), scores, shape=(1, 1, 2, 3))
    out = NetworkOutput(branches, value=torch.tensor([[[0.5, 0.25]]]), hidden=torch.zeros(0))
    choices = torch.tensor([2, 0, 1, 1, 1, 0])
    decides = torch.tensor([True, True, True, True, False, True])
    # 0.5 + 3 + 10 + 200, and 0.25 + 2 + 100 (the second branch has one legal choice)
    assert branch_value(out, choices, decides, torch.tensor([[[True, True]]])).tolist() == [[[213.5, 102.25]]]
    assert branch_value(out, choices, decides, torch.tensor([[[True, False]]])).tolist() == [[[213.5, 0.0]]]


# ----------------------------------------------------------------------------------------------------------- exploration


def test_epsilon_falls_linearly_and_stays():
    schedule = ValueSettings(epsilon_start=0.9, epsilon_end=0.1, epsilon_steps=1000)
    assert [schedule.epsilon(n) for n in (0, 500, 1000, 10**9)] == pytest.approx([0.9, 0.5, 0.1, 0.1])


def test_learning_that_would_never_start_is_refused():
    assert ValueSettings(replay_capacity=10, learning_starts=10).learning_starts == 10
    with pytest.raises(ValidationError, match="expected at most replay_capacity = 10"):
        ValueSettings(replay_capacity=10, learning_starts=11)
    with pytest.raises(ValidationError, match="expected at most replay_capacity = 10"):
        ValueSettings(replay_capacity=10)  # less than learning_starts' default


def random_mask(rows: int, seed: int) -> torch.Tensor:
    """`[rows, N, H, C]` with one legal choice at least."""
    mask = (torch.rand(rows, AGENTS, 3, 4, generator=torch.Generator().manual_seed(seed)) < 0.5) & SPEC.choice_exists()
    mask[..., 0] |= ~mask.any(-1)
    return mask


def acting(epsilon: float, rows: int = 200, seed: int = 0, explore: bool = True):
    """Actions of fresh agents and the mask that they acted under."""
    torch.manual_seed(1)
    module = build_module("idmac", SPEC, NETWORK, ValueSettings(epsilon_start=epsilon, epsilon_end=epsilon))
    packed = torch.rand(rows, AGENTS, 4, generator=torch.Generator().manual_seed(2)).to(torch.float16)
    mask = random_mask(rows, seed=3)
    generator = torch.Generator().manual_seed(seed)
    actions, state, _ = module.act(packed, mask, module.initial_state(rows), explore, generator=generator)
    assert torch.equal(state["previous_actions"], actions)
    return actions, mask


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_actions_are_legal(epsilon):
    actions, mask = acting(epsilon)
    assert actions.shape == (200, AGENTS, 3)
    assert mask.gather(-1, actions[..., None]).all()


def test_at_epsilon_1_all_legal_choices_are_taken_evenly():
    actions, mask = acting(1.0, rows=3000)
    counts = mask.sum(-1)
    for choices in (2, 3, 4):
        rank = (mask.long().cumsum(-1).gather(-1, actions[..., None]).squeeze(-1) - 1)[counts == choices]
        share = torch.bincount(rank, minlength=choices) / len(rank)
        assert (share - 1 / choices).abs().max() < 0.03


def test_exploration_follows_its_generator_and_play_needs_none():
    assert torch.equal(acting(0.5, seed=4)[0], acting(0.5, seed=4)[0])
    assert not torch.equal(acting(0.5, seed=4)[0], acting(0.5, seed=5)[0])
    assert torch.equal(acting(0.5, seed=4, explore=False)[0], acting(0.9, seed=5, explore=False)[0])


def test_epsilon_is_the_share_of_branches_that_explore():
    torch.manual_seed(1)
    silent = NetworkConfig(hidden=8, entity_hidden=4)  # the noise of intents would move the best choices too
    module = build_module("vdn", SPEC, silent, ValueSettings(epsilon_start=0.4))
    packed, mask = torch.rand(2000, AGENTS, 4).to(torch.float16), random_mask(2000, seed=3)
    greedy, mixed = (
        module.act(packed, mask, module.initial_state(2000), explore, generator=torch.Generator().manual_seed(6))[0]
        for explore in (False, True)
    )
    # of the branches with 4 legal choices 40 % explore, and 3/4 of those find another choice
    assert (greedy != mixed)[mask.sum(-1) == 4].float().mean().item() == pytest.approx(0.3, abs=0.03)


# --------------------------------------------------------------------------------------------------------- loss and update


def learner_of(**changes):
    """A learner with fresh weights."""
    config = (
        ValueDecompositionConfig()
        .team(make_scenario("games/two-step"), SPEC, NETWORK, ValueSettings(**changes), env_steps=1000)
        .debugging(seed=5, log_level="ERROR")
    )
    return config.build_learner(spaces={DEFAULT_MODULE_ID: TeamEnvRunner.spaces_of(SPEC)})


@pytest.fixture(scope="module")
def learner():
    return learner_of(entropy_weight=0.1, continuity_weight=0.1)


LENGTHS = torch.tensor([6, 3, 1, 4])


def batch(seed: int = 0, noise_seed: int | None = None) -> dict[str, torch.Tensor]:
    """Random joint episodes of `LENGTHS` steps; with `noise_seed`, everything that comes after them is other noise."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.arange(STEPS + 1) <= LENGTHS[:, None]  # also what the last action led to

    def numbers(steps: int, *shape: int) -> torch.Tensor:
        inside = torch.rand(BATCH, steps, *shape, generator=generator)
        if noise_seed is None:
            return inside
        outside = torch.rand(inside.shape, generator=torch.Generator().manual_seed(noise_seed))
        keep = (seen if steps == STEPS + 1 else seen[:, 1:]).reshape(BATCH, steps, *[1] * len(shape))
        return torch.where(keep, inside, outside)

    rows = {
        OBSERVATION: numbers(STEPS + 1, AGENTS, 4).to(torch.float16),
        STATE: numbers(STEPS + 1, STATE_SIZE),
        ACTION_MASK: (numbers(STEPS + 1, AGENTS, 3, 4) < 0.6) & SPEC.choice_exists(),
        ALIVE: numbers(STEPS + 1, AGENTS) < 0.9,
        ACTIONS: (numbers(STEPS, AGENTS, 3) * 2).to(torch.int16),
        REWARD: numbers(STEPS) * 3,
        TERMINATED: numbers(STEPS) < 0.5,
        FILLED: torch.arange(STEPS) < LENGTHS[:, None],
    }
    rows[ACTION_MASK][..., 0] |= ~rows[ACTION_MASK].any(-1)
    rows[TERMINATED] &= (torch.arange(STEPS) >= LENGTHS[:, None] - 1) & (LENGTHS[:, None] != 3)  # row 1 is truncated
    return rows


def loss_of(learner, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(7)  # the intents' noise
    out = learner.module[DEFAULT_MODULE_ID].forward_train(rows)
    return learner.compute_loss_for_module(module_id=DEFAULT_MODULE_ID, config=learner.config, batch=rows, fwd_out=out)


def test_padding_changes_neither_loss_nor_gradients(learner):
    module = learner.module[DEFAULT_MODULE_ID]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    one, other = batch(), batch(noise_seed=99)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    results = []
    for rows in (one, other):
        loss = loss_of(learner, rows)
        results.append((loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)))
    assert torch.equal(results[0][0], results[1][0])
    for mine, theirs in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-6)


def test_everything_inside_the_episodes_matters(learner):
    before = loss_of(learner, batch())
    for name in (OBSERVATION, STATE, REWARD):
        rows = batch()
        rows[name] = rows[name].clone()
        rows[name][2, 0] += 0.5  # the shortest episode: its only step
        assert loss_of(learner, rows) != before
    rows = batch()
    rows[OBSERVATION][1, 3] += 0.5  # what the truncated episode ended in
    assert loss_of(learner, rows) != before
    rows = batch()
    rows[OBSERVATION][2, 1] += 0.5  # what a terminated one ended in: its value is never asked for
    rows[TERMINATED][2, 0] = True
    same = batch()
    same[TERMINATED][2, 0] = True
    assert loss_of(learner, rows) == loss_of(learner, same)


def test_the_loss_by_hand(learner):
    """Mean over filled steps of the squared error, plus the weighted regularisers (eqs. 37, 38)."""
    filled = torch.tensor([[True, True], [True, False]])
    fwd_out = {
        "joint_value": torch.tensor([[1.0, 2.0], [3.0, 100.0]]),
        "targets": torch.tensor([[0.0, 4.0], [3.5, -100.0]]),
        "entropy_loss": torch.tensor([[3.0, 6.0], [0.0, 100.0]]),
        "continuity_loss": torch.tensor([[-1.0, 0.0], [-0.5, 100.0]]),
    }
    loss = learner.compute_loss_for_module(
        module_id=DEFAULT_MODULE_ID, config=learner.config, batch={FILLED: filled}, fwd_out=fwd_out
    )
    # (1 + 4 + 0.25) / 3 + 0.1 * (3 + 6 + 0) / 3 + 0.1 * (-1 + 0 - 0.5) / 3
    assert loss.item() == pytest.approx(1.75 + 0.3 - 0.05)


def test_targets_follow_by_the_share_tau():
    learner = learner_of(target_tau=0.25)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    pairs = [(module.target_network, module.network), (module.target_mixer, module.mixer)]
    with torch.no_grad():
        for target, online in pairs:
            assert [p.tolist() for p in target.parameters()] == [p.tolist() for p in online.parameters()]  # at the start
            for value, network in ((1.0, target), (3.0, online)):
                for parameter in network.parameters():
                    parameter.fill_(value)
    learner.after_gradient_based_update(timesteps={})
    for target, online in pairs:
        assert all((p == 1.5).all() for p in target.parameters())  # 1 + 0.25 * (3 - 1)
        assert all((p == 3.0).all() for p in online.parameters())
        assert not any(p.requires_grad for p in target.parameters())


def test_only_what_acts_leaves_the_learner(learner):
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    acts = {name.partition(".")[0] for name in module.get_state(inference_only=True)}
    assert acts == {"network"}
    learns = {name.partition(".")[0] for name in module.get_state()}
    assert learns == {"network", "mixer", "target_network", "target_mixer", "state_standard"}
