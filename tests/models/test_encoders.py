"""Observations as networks see them: scaling, packing, members of entities, branches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.registry import make_scenario, make_simulator
from envs.team import UNBOUNDED_CLIP, ActionHead, Field, TeamSpec
from models.encoders import ActionEncoder, BranchHeads, ObservationEncoder, ObservationPacker, Standardiser

PLACES, HIDDEN, ENTITY_HIDDEN = 5, 8, 4
JOBS = TeamSpec(
    problem="test",
    scenario="test/jobs",
    agents=("a", "b"),
    observation={
        "kind": Field((PLACES,), -1, 2, scale="category", entity="job"),
        "position": Field((2,), -10.0, 30.0, "m"),
        "cycles": Field((PLACES,), 1.0, 100.0, "1", "log", "job"),
        "route": Field((PLACES, 2), 0.0, 4.0, entity="job"),
        "mode": Field((), 0, 3, scale="category"),
    },
    heads=(ActionHead("target", 4, PLACES, "job"), ActionHead("level", 2)),
    state_size=1,
    max_steps=1,
)


def spec_of(**fields: Field) -> TeamSpec:
    return TeamSpec("test", "test/fields", ("a",), fields, (ActionHead("act", 2),), state_size=1, max_steps=1)


def jobs(rows: int = 6, seed: int = 0, absent: bool = True) -> dict[str, torch.Tensor]:
    """A random observation for `rows` teams, about half of the jobs absent (never the first place's in row 0)."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(rows, 2, *shape, generator=generator)

    kind = (uniform(PLACES) * 3).long()
    if absent:
        kind[uniform(PLACES) < 0.5] = -1
    exists = kind >= 0
    return {
        "kind": kind,
        "position": uniform(2) * 40 - 10,
        "cycles": uniform(PLACES) * 100 * exists,
        "route": uniform(PLACES, 2) * 4 * exists[..., None],
        "mode": (uniform() * 4).long(),
    }


# ------------------------------------------------------------------------------------------------------ scaling and packing


@pytest.mark.parametrize(
    ("field", "values", "scaled"),
    [
        (Field((), -10.0, 30.0), [-10.0, 0.0, 30.0, 50.0], [0.0, 0.25, 1.0, 1.5]),
        # log1p in units of 2: log(1 + 6/2) / log(1 + 30/2) = log 4 / log 16 = 1/2
        (Field((), 2.0, 30.0, scale="log"), [0.0, 6.0, 30.0], [0.0, 0.5, 1.0]),
        (Field((), -1, 6, scale="category"), [-1.0, 0.0, 6.0], [-1.0, 0.0, 6.0]),
        (Field((), -math.inf, math.inf), [-1e9, 0.5, 1e9], [-UNBOUNDED_CLIP, 0.5, UNBOUNDED_CLIP]),
        (Field((), 0.0, math.inf), [7.0, 1e9], [7.0, UNBOUNDED_CLIP]),
        (Field((), 5.0, 5.0), [5.0, 5.5], [0.0, 0.5]),  # a constant: no division by zero
        (Field((), 3.0, 3.0, scale="log"), [0.0, 3.0], [0.0, 1.0]),
    ],
)
def test_fields_are_scaled_by_their_bounds(field, values, scaled):
    torch.testing.assert_close(field.scaled(torch.tensor(values)), torch.tensor(scaled))
    packed = ObservationPacker(spec_of(only=field))({"only": torch.tensor(values)[:, None]})
    torch.testing.assert_close(packed[:, 0, 0], torch.tensor(scaled, dtype=torch.float16))


def test_packed_fields_lie_one_after_another():
    packer = ObservationPacker(JOBS)
    places = {name: (piece.start, piece.stop) for name, piece in packer.slices.items()}
    assert places == {"kind": (0, 5), "position": (5, 7), "cycles": (7, 12), "route": (12, 22), "mode": (22, 23)}
    assert packer.size == 23
    observation = jobs()
    packed = packer(observation)
    assert packed.shape == (6, 2, 23)
    assert packed.dtype == torch.float16
    assert packed[..., 0:5].tolist() == observation["kind"].tolist()  # categories are exact
    assert packed[..., 22].tolist() == observation["mode"].tolist()
    torch.testing.assert_close(packed[..., 12:22].float(), observation["route"].flatten(2) / 4, atol=5e-4, rtol=0)


def test_large_categories_survive_packing():
    packer = ObservationPacker(spec_of(only=Field((), 0, 2048, scale="category")))
    assert packer({"only": torch.tensor([[2047], [2048]])}).flatten().tolist() == [2047, 2048]


@settings(max_examples=50, deadline=None)
@given(low=st.floats(1e-3, 1e3), span=st.floats(0, 1e6), share=st.floats(0, 1), scale=st.sampled_from(["linear", "log"]))
def test_values_within_bounds_are_packed_between_0_and_1(low, span, share, scale):
    field = Field((), low, low + span, scale=scale)
    value = torch.tensor([[low + share * span]], dtype=torch.float64)
    packed = ObservationPacker(spec_of(only=field))({"only": value.clamp(max=low + span)}).item()
    assert 0 <= packed <= 1.001  # float16, and the rounding of the bounds to float32


def test_a_field_that_a_scenario_makes_constant_is_packed():
    simulator = make_simulator(make_scenario("vehicular/v50-e6", {"num_vehicles": 2, "horizon_slots": 3}))
    assert simulator.spec.observation["cloud_version"].high == simulator.spec.observation["cloud_version"].low == 0
    assert ObservationPacker(simulator.spec)(simulator.reset(torch.tensor([1])).observation).isfinite().all()


# ----------------------------------------------------------------------------------------------------------------- encoders


def identity(layer: torch.nn.Linear) -> None:
    """The layer copies its inputs, as many as fit."""
    with torch.no_grad():
        layer.weight.copy_(torch.eye(*layer.weight.shape))
        layer.bias.zero_()


def test_categories_are_read_as_one_hot_with_none_as_zeros():
    spec = spec_of(mode=Field((2,), -1, 2, scale="category"))
    encoder = ObservationEncoder(spec, 6, ENTITY_HIDDEN)
    assert encoder.network[0].in_features == 6  # 2 numbers of depth 3
    identity(encoder.network[0])
    packed = ObservationPacker(spec)({"mode": torch.tensor([[[2, 0]], [[-1, 1]]])})
    encoded, entities = encoder(packed)
    assert encoded[:, 0].tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert entities == {}


@pytest.mark.parametrize("every_place", [False, True])
def test_an_agent_sees_the_mean_of_its_members_and_their_sum_over_the_capacity(every_place):
    spec = spec_of(kind=Field((4,), -1, 0, scale="category", entity="job"), size=Field((4,), 0.0, 1.0, entity="job"))
    encoder = ObservationEncoder(spec, 4, 2)
    encoder.every_place = every_place
    identity(encoder.entity_networks["job"][0])  # a member is [1 (its one-hot), size]
    identity(encoder.network[0])  # mean of both, sum over capacity of both
    observation = {
        "kind": torch.tensor([[[-1, 0, -1, 0]], [[-1, -1, -1, -1]]]),
        "size": torch.tensor([[[0.0, 0.25, 0.0, 0.75]], [[0.0] * 4]]),
    }
    encoded, entities = encoder(ObservationPacker(spec)(observation))
    # mean (1, (0.25 + 0.75) / 2), sum over the capacity (2 / 4, 1.0 / 4); nothing where there is no member
    assert encoded[:, 0].tolist() == [[1, 0.5, 0.5, 0.25], [0, 0, 0, 0]]
    members = entities["job"]
    assert members.place[members.weight > 0].tolist() == [1, 3]
    assert members.vectors[members.weight > 0].tolist() == [[1, 0.25], [1, 0.75]]
    assert len(members.place) == (8 if every_place else 2)


@pytest.fixture
def networks():
    torch.manual_seed(3)
    return ObservationEncoder(JOBS, HIDDEN, ENTITY_HIDDEN), BranchHeads(JOBS, HIDDEN, ENTITY_HIDDEN)


def scores_of(networks, observation):
    encoder, heads = networks
    encoded, entities = encoder(ObservationPacker(JOBS)(observation))
    return encoded, *heads(encoded, entities)


def test_the_order_of_members_does_not_matter_to_the_agent_and_moves_their_branches_along(networks):
    observation = jobs()
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = {name: value[:, :, order] if JOBS.observation[name].entity else value for name, value in observation.items()}
    encoded, scores, value = scores_of(networks, observation)
    encoded_moved, scores_moved, value_moved = scores_of(networks, moved)
    torch.testing.assert_close(encoded_moved, encoded)
    torch.testing.assert_close(value_moved, value)
    torch.testing.assert_close(scores_moved[:, :, :PLACES], scores[:, :, :PLACES][:, :, order])
    torch.testing.assert_close(scores_moved[:, :, PLACES:], scores[:, :, PLACES:])
    assert not torch.allclose(scores_moved, scores)


def test_what_absent_members_show_does_not_matter(networks):
    observation = jobs()
    absent = observation["kind"] < 0
    other = {**observation, "cycles": torch.where(absent, 77.0, observation["cycles"])}
    for before, after in zip(scores_of(networks, observation), scores_of(networks, other), strict=True):
        assert torch.equal(before, after)
    present = {**observation, "cycles": torch.where(absent, observation["cycles"], 77.0)}
    assert not torch.allclose(scores_of(networks, observation)[0], scores_of(networks, present)[0])


def test_every_place_gives_the_same_results_and_gradients_as_existing_members_only(networks):
    """The way of accelerators (and of exported graphs) against that of the CPU."""
    observation = jobs(rows=20)
    parameters = [p for network in networks for p in network.parameters()]
    results, gradients = [], []
    for every_place in (False, True):
        networks[0].every_place = every_place
        encoded, scores, value = scores_of(networks, observation)
        results.append((encoded, scores, value))
        gradients.append(torch.autograd.grad(scores.square().sum() + value.sum(), parameters))
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)
    assert (observation["kind"] < 0).any()


def test_scores_are_0_beyond_a_branch_and_for_absent_members(networks):
    observation = jobs()
    _, scores, value = scores_of(networks, observation)
    assert scores.shape == (6, 2, PLACES + 1, 4)
    assert value.shape == (6, 2)
    absent = observation["kind"] < 0
    assert (scores[:, :, :PLACES][absent] == 0).all()
    assert (scores[:, :, :PLACES][~absent] != 0).all()
    assert (scores[:, :, PLACES, 2:] == 0).all()  # "level" has two choices, the widest head four
    assert (scores[:, :, PLACES, :2] != 0).all()


def test_an_entity_without_empty_places_has_all_members():
    spec = spec_of(load=Field((3,), 0.0, 1.0, entity="node"))
    _, entities = ObservationEncoder(spec, 4, 2)(torch.zeros(2, 1, 3, dtype=torch.float16))
    assert entities["node"].row.tolist() == [0, 0, 0, 1, 1, 1]
    assert entities["node"].weight.tolist() == [1] * 6


def test_leading_dimensions_are_kept(networks):
    encoder, heads = networks
    packed = ObservationPacker(JOBS)(jobs())
    encoded, entities = encoder(packed.unflatten(0, (2, 3)))
    assert encoded.shape == (2, 3, 2, HIDDEN)
    scores, value = heads(encoded, entities)
    assert torch.equal(scores.flatten(0, 1), heads(*encoder(packed))[0])
    assert value.shape == (2, 3, 2)


def test_actions_are_encoded_as_shares_of_each_head():
    encoder = ActionEncoder(JOBS)
    assert encoder.size == 6  # 4 targets and 2 levels
    actions = torch.tensor([[3, 3, 0, 1, 3, 1], [-1] * 6])
    torch.testing.assert_close(encoder(actions), torch.tensor([[0.2, 0.2, 0.0, 0.6, 0.0, 1.0], [0.0] * 6]))
    assert torch.equal(encoder(actions.to(torch.int16)), encoder(actions))


def test_standardiser_by_hand():
    standard = Standardiser(3)
    x = torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0], [5.0, 5.0, 1e6]])
    assert torch.equal(standard(x), x.clamp(max=8.0))  # before fit: nothing but the limit of 8
    standard.fit(x)
    # Column 0: mean 3, deviation 2. Column 1 is constant: shifted only. Column 2: mean 1e6 / 3, deviation 1e6 / sqrt(3).
    expected = torch.tensor([[-1.0, 0.0, -(3**-0.5)], [0.0, 0.0, -(3**-0.5)], [1.0, 0.0, 2 * 3**-0.5]])
    torch.testing.assert_close(standard(x), expected)
    assert standard(torch.tensor([[1e9, 5.0, 0.0]]))[0, 0] == 8.0


def test_standardiser_without_data_changes_nothing():
    standard = Standardiser(2)
    standard.fit(torch.empty(0, 2))
    standard.fit(torch.tensor([[7.0, 7.0]]))
    assert standard.shift.tolist() == [0.0, 0.0]
    assert standard.scale.tolist() == [1.0, 1.0]
