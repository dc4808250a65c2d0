"""Graph convolution over an entity's members, and heads that pick one of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.team import ActionHead, Field, TeamSpec
from models.dag_encoder import DagEncoder, normalised_adjacency
from models.encoders import BranchHeads, ObservationEncoder, ObservationPacker

FEATURES, HIDDEN, SIZE = 3, 5, 2


def chain_with_fork() -> torch.Tensor:
    """Nodes 1 and 2 depend on node 0."""
    edges = torch.zeros(3, 3)
    edges[0, 1] = edges[0, 2] = 1.0
    return edges


def random_graph(nodes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features `[J, FEATURES]`, edges of a DAG `[J, J]`, and which nodes exist `[J]`, the first always; 0 elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    exists = (torch.rand(nodes, generator=generator) < 0.7).float()
    exists[0] = 1.0
    edges = torch.triu((torch.rand(nodes, nodes, generator=generator) < 0.5).float(), diagonal=1)
    features = torch.randn(nodes, FEATURES, generator=generator)
    return features * exists[:, None], edges * exists[:, None] * exists, exists


def encoder() -> DagEncoder:
    torch.manual_seed(3)
    return DagEncoder(FEATURES, HIDDEN, SIZE)


def test_normalised_adjacency_by_hand():
    # With itself, node 0 has 3 neighbours and nodes 1 and 2 have 2 each; an entry is 1 / sqrt(neighbours * neighbours).
    corner = 1 / math.sqrt(3 * 2)
    expected = [[1 / 3, corner, corner], [corner, 1 / 2, 0.0], [corner, 0.0, 1 / 2]]
    torch.testing.assert_close(normalised_adjacency(chain_with_fork(), torch.ones(3)), torch.tensor(expected))


def test_an_absent_node_has_no_neighbours_and_costs_the_others_none():
    edges = chain_with_fork()
    edges[0, 2] = 0.0
    # without node 2, nodes 0 and 1 have 2 neighbours each
    expected = [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    got = normalised_adjacency(edges, torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(got, torch.tensor(expected))


def test_two_nodes_that_depend_on_each_other_are_neighbours_once():
    edges = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(normalised_adjacency(edges, torch.ones(2)), torch.full((2, 2), 0.5))


@settings(max_examples=20, deadline=None)
@given(nodes=st.integers(1, 6), seed=st.integers(0, 1000))
def test_two_layers_are_what_a_loop_over_nodes_gives(nodes, seed):
    net = encoder()
    features, edges, exists = random_graph(nodes, seed)
    got, graph = net(features, edges, exists)
    here = [i for i in range(nodes) if exists[i]]
    neighbours = {i: [j for j in here if j == i or edges[i, j] or edges[j, i]] for i in here}
    vectors = {i: features[i] for i in here}
    for layer in net.layers:
        told = {i: sum(vectors[j] / math.sqrt(len(neighbours[i]) * len(neighbours[j])) for j in neighbours[i]) for i in here}
        vectors = {i: torch.relu(layer.weight @ told[i] + layer.bias) for i in here}
    for i in range(nodes):
        torch.testing.assert_close(got[i], vectors[i] if i in here else torch.zeros(HIDDEN))
    mean = torch.stack(list(vectors.values())).mean(0)
    torch.testing.assert_close(graph, net.pooled.weight @ mean + net.pooled.bias)


@settings(max_examples=20, deadline=None)
@given(nodes=st.integers(1, 6), more=st.integers(1, 4), seed=st.integers(0, 1000))
def test_empty_places_change_nothing(nodes, more, seed):
    net = encoder()
    features, edges, exists = random_graph(nodes, seed)
    vectors, graph = net(features, edges, exists)
    pad = torch.nn.functional.pad
    wide, same = net(pad(features, (0, 0, 0, more)), pad(edges, (0, more, 0, more)), pad(exists, (0, more)))
    torch.testing.assert_close(wide[:nodes], vectors)
    torch.testing.assert_close(same, graph)
    assert (wide[nodes:] == 0).all()


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(5)), seed=st.integers(0, 1000))
def test_the_order_of_nodes_moves_their_vectors_and_leaves_the_graph(order, seed):
    net = encoder()
    features, edges, exists = random_graph(5, seed)
    vectors, graph = net(features, edges, exists)
    moved, same = net(features[order], edges[order][:, order], exists[order])
    torch.testing.assert_close(moved, vectors[order])
    torch.testing.assert_close(same, graph)


def test_a_graph_without_nodes_is_finite():
    vectors, graph = encoder()(torch.zeros(2, 4, FEATURES), torch.zeros(2, 4, 4), torch.zeros(2, 4))
    assert (vectors == 0).all()
    assert graph.isfinite().all()


def test_a_node_hears_two_edges_far_and_no_further():
    net = encoder()
    edges = torch.zeros(4, 4)
    edges[0, 1] = edges[1, 2] = edges[2, 3] = 1.0
    influences = torch.zeros(4, 4, dtype=torch.bool)
    for seed in range(5):  # a relu may hide one
        features = torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        vectors, _ = net(features, edges, torch.ones(4))
        for i in range(4):
            (gradient,) = torch.autograd.grad(vectors[i].sum(), features, retain_graph=True)
            influences[i] |= (gradient != 0).any(-1)
    assert influences.tolist() == [[abs(i - j) <= 2 for j in range(4)] for i in range(4)]


# ------------------------------------------------------------------------------------------------- in the agents' networks

PLACES, OPTIONS = 4, 3
TASKS = TeamSpec(
    problem="test",
    scenario="test/tasks",
    agents=("a", "b"),
    observation={
        "kind": Field((PLACES,), -1, 1, scale="category", entity="subtask"),
        "cycles": Field((PLACES,), 0.0, 1.0, entity="subtask"),
        "needs": Field((PLACES, PLACES), 0, 1, scale="adjacency", entity="subtask"),
        "speed": Field((2,), 0.0, 1.0),
    },
    heads=(ActionHead("decision", PLACES * OPTIONS, members="subtask"), ActionHead("level", 2)),
    state_size=1,
    max_steps=1,
)


def tasks(rows: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random graphs with some absent subtasks, and two that have none."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(rows, 2, *shape, generator=generator)

    kind = (uniform(PLACES) * 3).long() - 1
    kind[0, 0] = -1
    kind[1, 1] = 1
    exists = (kind >= 0).float()
    needs = torch.triu((uniform(PLACES, PLACES) < 0.6).float(), diagonal=1)
    return {
        "kind": kind,
        "cycles": uniform(PLACES) * exists,
        "needs": needs * exists[..., None] * exists[..., None, :],
        "speed": uniform(2),
    }


@pytest.fixture
def networks():
    torch.manual_seed(5)
    return ObservationEncoder(TASKS, 8, 6, graph_size=3), BranchHeads(TASKS, 8, 6)


def scores_of(networks, observation):
    encoder, heads = networks
    encoded, entities = encoder(ObservationPacker(TASKS)(observation))
    return encoded, *heads(encoded, entities)


def test_the_graph_joins_the_plain_fields(networks):
    # 2 plain numbers, mean and sum of 6 numbers of the members, 3 of the graph; adjacency is no feature of a member
    assert networks[0].network[0].in_features == 2 + 2 * 6 + 3
    assert networks[0].entity_networks["subtask"][0].in_features == 2 + 1


def test_edges_matter_to_those_that_they_join_and_to_the_agent(networks):
    observation = tasks()
    row = {name: value[1:2, 1:].expand(1, 2, *value.shape[2:]) for name, value in observation.items()}  # all places are taken
    row = {name: value.clone() for name, value in row.items()}
    row["needs"][:] = 0.0
    joined = {**row, "needs": row["needs"].clone()}
    joined["needs"][0, 0, 0, 1] = 1.0
    encoder = networks[0]
    (before, members), (after, others) = (encoder(ObservationPacker(TASKS)(o)) for o in (row, joined))
    assert not torch.equal(before[0, 0], after[0, 0])
    torch.testing.assert_close(before[0, 1], after[0, 1])
    change = (members["subtask"].vectors - others["subtask"].vectors).abs().amax(-1).view(2, PLACES) > 1e-5
    assert change.tolist() == [[True, True, False, False], [False] * 4]


def test_every_place_gives_the_same_as_existing_members_only(networks):
    """The way of accelerators against that of the CPU, with gradients."""
    observation = tasks(rows=12)
    parameters = [p for network in networks for p in network.parameters()]
    results, gradients = [], []
    for every_place in (False, True):
        networks[0].every_place = every_place
        encoded, scores, value = scores_of(networks, observation)
        results.append((encoded, scores, value))
        gradients.append(torch.autograd.grad(scores.square().sum() + value.sum(), parameters))
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("every_place", [False, True])
def test_choices_of_absent_members_score_0(networks, every_place):
    networks[0].every_place = every_place
    observation = tasks()
    _, scores, value = scores_of(networks, observation)
    assert scores.shape == (5, 2, 2, PLACES * OPTIONS)
    assert value.shape == (5, 2)
    pairs = scores[:, :, 0].unflatten(-1, (PLACES, OPTIONS))
    absent = observation["kind"] < 0
    assert (pairs[absent] == 0).all()
    assert (pairs[~absent] != 0).all()
    assert absent[0, 0].all()
    assert not absent[1, 1].any()
    assert (scores[:, :, 1, 2:] == 0).all()  # the second head has two choices


def test_the_order_of_members_moves_their_choices_along(networks):
    observation, order = tasks(), [2, 0, 3, 1]
    moved = {name: value[:, :, order] if TASKS.observation[name].entity else value for name, value in observation.items()}
    moved["needs"] = moved["needs"][..., order]
    encoded, scores, value = scores_of(networks, observation)
    encoded_moved, scores_moved, value_moved = scores_of(networks, moved)
    torch.testing.assert_close(encoded_moved, encoded)
    torch.testing.assert_close(value_moved, value)
    pairs, pairs_moved = (s[:, :, 0].unflatten(-1, (PLACES, OPTIONS)) for s in (scores, scores_moved))
    torch.testing.assert_close(pairs_moved, pairs[:, :, order])
    assert not torch.allclose(pairs_moved, pairs)


def test_without_graph_convolution_edges_do_not_matter(networks):
    observation = tasks()
    cut = {**observation, "needs": torch.zeros_like(observation["needs"])}
    joined, apart = (networks[0](ObservationPacker(TASKS)(o))[0] for o in (observation, cut))
    assert not torch.equal(joined, apart)
    networks[0].graph_convolution = False
    torch.testing.assert_close(networks[0](ObservationPacker(TASKS)(observation))[0], apart)
