"""The graphs of a scenario as tensors.

G  graphs      J  places for subtasks      K  modalities      L  locations
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from envs.dag.graphs import MODALITIES, check_graph, read_graph
from envs.dag.random_graphs import random_graph
from envs.dag.scenario import DagScenario
from envs.dag.templates import TEMPLATES
from envs.errors import InputError


@dataclass(frozen=True)
class GraphPool:
    """Graphs padded to J places, each in topological order.

    Attributes:
        names: The subtasks' names by place, for each graph.
        modality: `[G, J]` int64, -1 in an empty place.
        successors: `[G, J, J]` bool, whether the column's subtask needs the row's output.
        input_bits, output_bits: `[G, J, 2]` float64, the range that sizes are drawn from; 0 in an empty place.
    """

    names: tuple[tuple[str, ...], ...]
    modality: Tensor
    successors: Tensor
    input_bits: Tensor
    output_bits: Tensor

    @property
    def places(self) -> int:
        """J."""
        return self.modality.shape[1]


def load_pool(s: DagScenario, device: torch.device | str = "cpu") -> GraphPool:
    """The scenario's graphs: templates, files or random ones.

    Raises:
        InputError: A graph cannot be used.
    """
    return _stack(_graphs(s), s, device)


def hosts(s: DagScenario, device: torch.device | str = "cpu") -> Tensor:
    """`[K + 1, L]` bool: what each location hosts; the last row, for "no subtask", is False."""
    rows = [[name in names for names in s.location_modalities] for name in MODALITIES]
    return torch.tensor([*rows, [False] * s.num_locations], device=device)


def seconds_per_bit(s: DagScenario, device: torch.device | str = "cpu") -> Tensor:
    """`[L, L]` float64: of a subtask's output from the first location to the second."""
    table = torch.full((s.num_locations, s.num_locations), 1.0 / s.edge_link_bps, dtype=torch.float64, device=device)
    table[-1, :] = table[:, -1] = 1.0 / s.edge_cloud_bps
    return table.fill_diagonal_(0.0)


def _graphs(s: DagScenario) -> list[nx.DiGraph]:
    if s.random_graphs is None:
        return [_named_graph(name, index, s) for index, name in enumerate(s.graphs[: s.num_tasks])]
    shape = s.random_graphs
    shares = dict(zip(MODALITIES, shape.modality_shares, strict=True))
    if not any(shares[name] for name in s.hosted):
        raise InputError("random_graphs.modality_shares: no server hosts any modality with a share above 0")
    balanced = balanced_bits(s)
    seeds = np.random.SeedSequence(s.graph_seed).spawn(shape.pool)
    return [random_graph(shape, np.random.default_rng(seed), balanced) for seed in seeds]


def _named_graph(name: str, index: int, s: DagScenario) -> nx.DiGraph:
    if name not in TEMPLATES:
        if not name.endswith(".json"):
            raise InputError(f"graphs.{index} = {name!r}: expected a .json file or one of {', '.join(TEMPLATES)}")
        return read_graph(name, s.hosted)
    graph = TEMPLATES[name]()
    check_graph(graph, name, s.hosted)
    return graph


def balanced_bits(s: DagScenario) -> dict[str, float]:
    """Hosted modality to the output size whose transfer between an edge and the cloud takes as long as a mean computation."""
    bits = {}
    for name, (low, high) in zip(MODALITIES, s.input_bits, strict=True):
        speeds = [hz for hz, names in zip(s.location_hz, s.location_modalities, strict=True) if name in names]
        if speeds:
            cycles = 0.5 * (low + high) * s.cycles_per_bit
            bits[name] = s.edge_cloud_bps * cycles * sum(1.0 / hz for hz in speeds) / len(speeds)
    return bits


def _stack(graphs: list[nx.DiGraph], s: DagScenario, device: torch.device | str) -> GraphPool:
    places = max(len(graph) for graph in graphs)
    modality = np.full((len(graphs), places), -1, dtype=np.int64)
    successors = np.zeros((len(graphs), places, places), dtype=bool)
    bits = {"input_bits": np.zeros((len(graphs), places, 2)), "output_bits": np.zeros((len(graphs), places, 2))}
    names = []
    for g, graph in enumerate(graphs):
        position = {node: index for index, node in enumerate(graph)}
        order = list(nx.lexicographical_topological_sort(graph, key=position.__getitem__))
        place = {node: index for index, node in enumerate(order)}
        names.append(tuple(str(node) for node in order))
        for node, j in place.items():
            attributes = graph.nodes[node]
            kind = MODALITIES.index(attributes["modality"])
            modality[g, j] = kind
            successors[g, j, [place[after] for after in graph.successors(node)]] = True
            for field, ranges in (("input_bits", s.input_bits), ("output_bits", s.output_bits)):
                bits[field][g, j] = attributes.get(field, ranges[kind])
    return GraphPool(
        names=tuple(names),
        modality=torch.from_numpy(modality).to(device),
        successors=torch.from_numpy(successors).to(device),
        input_bits=torch.from_numpy(bits["input_bits"]).to(device),
        output_bits=torch.from_numpy(bits["output_bits"]).to(device),
    )
