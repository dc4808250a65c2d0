"""The helpers of the contract itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.team import ActionHead, Field, StepResult, TeamSpec, episode_seeds, random_actions


def spec(*heads: ActionHead, **fields: Field) -> TeamSpec:
    return TeamSpec("test", "test/one", ("a", "b"), fields, heads, state_size=1, max_steps=1)


@settings(max_examples=50)
@given(shape=st.lists(st.integers(1, 4), max_size=3), choices=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_random_actions_are_legal(shape, choices, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(*shape, choices, generator=generator) < 0.4
    mask[..., -1] |= ~mask.any(-1)  # the contract: at least one legal choice
    actions = random_actions(mask, generator)
    assert actions.shape == tuple(shape)
    assert actions.dtype == torch.int64
    assert mask.gather(-1, actions[..., None]).all()


def test_random_actions_cover_all_legal_choices_evenly():
    mask = torch.tensor([[True, False, True, True], [False, True, False, False]])
    actions = random_actions(mask.expand(3000, 2, 4), torch.Generator().manual_seed(1))
    counts = torch.stack([torch.bincount(actions[:, branch], minlength=4) for branch in range(2)])
    assert counts[1].tolist() == [0, 3000, 0, 0]
    assert counts[0, 1] == 0
    assert (counts[0, [0, 2, 3]] - 1000).abs().max() < 130  # five standard deviations


def test_random_actions_follow_their_generator():
    mask = torch.ones(50, 5, dtype=torch.bool)
    one, again = (random_actions(mask, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, random_actions(mask, torch.Generator().manual_seed(3)))


@given(run_seed=st.integers(0, 2**64), first=st.integers(0, 2**40), count=st.integers(0, 50))
def test_episode_seeds_are_distinct_and_a_piece_of_one_list(run_seed, first, count):
    seeds = episode_seeds(run_seed, first, count)
    assert seeds.dtype == torch.int64
    assert seeds.shape == (count,)
    assert len(set(seeds.tolist())) == count
    assert (seeds >= 0).all()
    later = episode_seeds(run_seed, first + 1, count)
    assert torch.equal(seeds[1:], later[: max(count - 1, 0)])


def test_episode_seeds_of_different_runs_do_not_overlap():
    seeds = [seed for run in range(50) for seed in episode_seeds(run, 0, 100).tolist()]
    assert len(set(seeds)) == len(seeds)


def test_branches_are_counted_head_by_head():
    two = spec(ActionHead("target", 3, count=2), ActionHead("power", 5))
    assert two.num_agents == 2
    assert two.branches == (3, 3, 5)
    assert (two.num_branches, two.max_choices) == (3, 5)
    assert two.choice_exists().int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("fields", "members"),
    [({}, "None"), ({"size": Field((4,), 0, 1, entity="request")}, "4"), ({"size": Field((3,), 0, 1)}, "None")],
)
def test_a_head_must_match_the_entity_that_it_belongs_to(fields, members):
    with pytest.raises(ValueError, match=rf"'target' has 3 branches for the entity 'request', .* {members} members"):
        spec(ActionHead("target", 2, count=3, entity="request"), **fields)


def test_a_head_that_matches_its_entity_is_accepted():
    head = ActionHead("target", 2, count=3, entity="request")
    assert spec(head, size=Field((3, 2), 0, 1, entity="request")).num_branches == 3


def test_finished_is_either_end():
    flags = torch.tensor([[True, False, False], [False, True, False]])
    empty = torch.zeros(3)
    result = StepResult({}, empty, empty, empty, flags[0], flags[1], empty, {})
    assert result.finished.tolist() == [True, True, False]


@pytest.mark.parametrize("low", [0.0, -1.0, -float("inf")])
def test_a_logarithmic_field_needs_a_smallest_value_that_matters(low):
    with pytest.raises(ValueError, match=rf"'size' is logarithmic with low = {low:g}: expected more than 0"):
        spec(ActionHead("act", 2), size=Field((), low, 10.0, scale="log"))
    spec(ActionHead("act", 2), size=Field((), 1e-9, 10.0, scale="log"))


@pytest.mark.parametrize(
    ("field", "depth"),
    [(Field((), -1, 4, scale="category"), 5), (Field((), 0, 4, scale="category"), 5), (Field((7,), 0.0, 4.0), 1)],
)
def test_a_category_is_as_deep_as_its_one_hot(field, depth):
    assert field.depth == depth
