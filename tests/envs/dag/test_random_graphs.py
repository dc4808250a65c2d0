"""Random layered graphs, and how episodes draw them."""

import networkx as nx
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.dag.graphs import check_graph
from envs.dag.pool import balanced_bits
from envs.dag.random_graphs import RandomGraphs, random_graph
from envs.team import episode_seeds
from tests.envs.dag.play import simulator

SHARES = st.floats(0, 1)
SHAPES = st.builds(
    RandomGraphs, nodes=st.integers(1, 60), fat=SHARES, density=SHARES, regularity=SHARES, ccr=st.floats(0, 10), pool=st.just(1)
)
BITS = {"text": 1e4, "image": 1e6, "audio": 2e6, "multimodal": 3e6}


def graph_of(seed=0, bits=BITS, **shape):
    return random_graph(RandomGraphs(**shape), np.random.default_rng(seed), bits)


def depth(graph):
    return len(nx.dag_longest_path(graph))


@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32))
def test_random_graphs_are_usable_and_repeatable(shape, seed):
    graph, again = (random_graph(shape, np.random.default_rng(seed), BITS) for _ in range(2))
    check_graph(graph, "random")
    assert len(graph) == shape.nodes
    assert all(source < target for source, target in graph.edges)
    assert nx.utils.graphs_equal(graph, again)


def test_what_shapes_a_graph():
    assert list(graph_of(nodes=9, fat=0.0, regularity=1.0).edges) == [(i, i + 1) for i in range(8)]
    assert depth(graph_of(nodes=50, fat=1.0, regularity=1.0)) == 2
    flat, slim = (np.mean([depth(graph_of(seed, nodes=50, fat=fat)) for seed in range(20)]) for fat in (0.8, 0.2))
    assert flat < slim / 3
    dense, sparse = (np.mean([graph_of(seed, nodes=50, density=d).size() for seed in range(20)]) for d in (1.0, 0.0))
    assert sparse < 60 < 120 < dense
    outputs = nx.get_node_attributes(graph_of(nodes=20, ccr=0.5, modality_shares=(0, 1, 0, 0)), "output_bits").values()
    assert min(outputs) >= 0.25e6
    assert max(outputs) <= 0.75e6


def test_modalities_come_in_their_shares_and_only_where_hosted():
    graph = graph_of(nodes=100, modality_shares=(0.0, 0.5, 0.5, 0.0))
    assert set(nx.get_node_attributes(graph, "modality").values()) == {"image", "audio"}
    graph = graph_of(nodes=100, bits={"text": 1e4, "audio": 1e5})
    assert set(nx.get_node_attributes(graph, "modality").values()) == {"text", "audio"}


def test_an_output_of_ccr_one_takes_as_long_as_a_computation():
    """Image: 0.2 Mbit * 1900 = 0.38 Gcycle takes 0.38 / 2.3 and 0.38 / 10 s, 0.1016 s in the mean: 1.219 Mbit at 12 Mbit/s."""
    assert round(balanced_bits(simulator().scenario)["image"]) == round(12e6 * 0.38 * (1 / 2.3 + 1 / 10) / 2)


def test_tasks_draw_their_graph_by_the_episodes_seed():
    shape = {"nodes": 6, "pool": 8}
    sim, seeds = simulator(200, random_graphs=shape, num_tasks=5), episode_seeds(0, 0, 200)
    sim.reset(seeds)
    drawn = sim.episode.graph
    assert torch.bincount(drawn.flatten(), minlength=8).min() > 1000 / 8 / 2
    assert (drawn != drawn[:, :1]).any()
    for row in (0, 7):
        instance = sim.instance(row)
        for task in range(5):
            np.testing.assert_array_equal(instance.successors[task], sim.pool.successors[drawn[row, task]])
    other = simulator(2, random_graphs=shape, num_tasks=3, graph_seed=1)
    assert not torch.equal(other.pool.successors, sim.pool.successors)
