"""Random layered graphs in the manner of daggen (Suter & Hunold): fat, density, regularity and ccr shape them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated

import networkx as nx
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from envs.dag.graphs import MODALITIES

Share = Annotated[float, Field(ge=0, le=1)]


class RandomGraphs(BaseModel):
    """How random tasks look."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    nodes: int = Field(20, ge=1, le=100, description="subtasks of a task")
    fat: Share = Field(0.5, description="mean width of a layer is nodes^fat: 0 is a chain, 1 almost a single layer")
    density: Share = Field(0.3, description="share of the layer before that a subtask may depend on, beside one")
    regularity: Share = Field(0.7, description="1: all layers are equally wide; 0: widths vary by a factor of up to 2")
    ccr: float = Field(
        0.1, ge=0, le=100, description="mean time of an output on the wire per mean computing time, whatever the modality"
    )
    modality_shares: tuple[Share, Share, Share, Share] = Field(
        (0.2, 0.35, 0.35, 0.1), description="of text, image, audio and multimodal subtasks, in units of their sum"
    )
    pool: int = Field(64, ge=1, le=4_096, description="different graphs that the tasks of all episodes are drawn from")

    @field_validator("modality_shares")
    @classmethod
    def _some_modality(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if not any(shares):
            raise ValueError("expected at least one share above 0")
        return shares


def random_graph(shape: RandomGraphs, rng: np.random.Generator, balanced_bits: Mapping[str, float]) -> nx.DiGraph:
    """A connected layered graph whose nodes `0, 1, …` are in topological order.

    Every subtask outside the first layer needs at least one of the layer before; what is still in pieces then is joined.

    Args:
        balanced_bits: Modality to the output size whose transfer takes as long as a mean computation (ccr = 1).
    """
    shares = np.array(
        [share if m in balanced_bits else 0.0 for m, share in zip(MODALITIES, shape.modality_shares, strict=True)]
    )
    modalities = rng.choice(len(MODALITIES), size=shape.nodes, p=shares / shares.sum())
    graph = nx.DiGraph()
    for node, modality in enumerate(MODALITIES[m] for m in modalities):
        bits = shape.ccr * balanced_bits[modality] * rng.uniform(0.5, 1.5)
        graph.add_node(node, modality=modality, output_bits=float(round(bits)))
    layers = _layers(shape, rng)
    for before, layer in pairwise(layers):
        for node in layer:
            wanted = 1 + round(rng.uniform(0.0, shape.density) * len(before))
            for parent in rng.choice(before, size=min(wanted, len(before)), replace=False):
                graph.add_edge(int(parent), node)
    _join(graph, layers, rng)
    return graph


def _layers(shape: RandomGraphs, rng: np.random.Generator) -> list[range]:
    """Node numbers by layer; at least two layers where there is more than one node."""
    width = math.exp(shape.fat * math.log(shape.nodes))
    layers: list[range] = []
    first = 0
    while first < shape.nodes:
        factor = rng.uniform(shape.regularity, 2.0 - shape.regularity) if shape.regularity < 1 else 1.0
        left = shape.nodes - first
        size = min(max(1, round(width * factor)), left if layers else max(1, left - 1))
        layers.append(range(first, first + size))
        first += size
    return layers


def _join(graph: nx.DiGraph, layers: list[range], rng: np.random.Generator) -> None:
    """Adds one edge from a first-layer to a second-layer node for every piece beyond one."""
    if len(layers) < 2:
        return
    roots, second = set(layers[0]), layers[1]
    main = set(nx.node_connected_component(graph.to_undirected(as_view=True), second[0]))
    for piece in sorted(nx.weakly_connected_components(graph), key=min):
        if piece <= main:
            continue
        below = sorted(piece & set(second))
        source = sorted(main & roots) if below else sorted(piece & roots)
        target = below or sorted(main & set(second))
        graph.add_edge(int(rng.choice(source)), int(rng.choice(target)))
        main |= piece
