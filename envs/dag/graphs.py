"""Tasks as networkx graphs: what makes one usable, and node-link JSON files of them.

A node is a subtask with the attribute `modality` and, where its sizes are fixed rather than drawn for each episode,
`input_bits` and `output_bits`. An edge leads from a subtask to one that needs its output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import networkx as nx

from envs.errors import InputError

MODALITIES = ("text", "image", "audio", "multimodal")
SIZES = ("input_bits", "output_bits")
MAX_NODES = 200


def read_graph(path: str | Path, hosted: Collection[str] = MODALITIES) -> nx.DiGraph:
    """The task in a node-link JSON file, checked.

    Args:
        hosted: Modalities that some server hosts.

    Raises:
        InputError: Naming the file, the node or edge, and what is wrong with it.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    graph = _from_node_link(content, str(path))
    check_graph(graph, str(path), hosted)
    return graph


def write_graph(graph: nx.DiGraph, path: str | Path) -> None:
    """Writes a task as node-link JSON that `read_graph` reads back.

    Raises:
        InputError: The graph is not usable as a task.
    """
    check_graph(graph, str(path))
    text = json.dumps(nx.node_link_data(graph, edges="edges"), indent=2)
    Path(path).write_text(text + "\n", encoding="utf-8")


def check_graph(graph: nx.DiGraph, where: str, hosted: Collection[str] = MODALITIES) -> None:
    """Refuses what cannot be scheduled.

    Args:
        where: Opens the message.

    Raises:
        InputError: Naming the node or edge and what is wrong with it.
    """
    if not graph:
        raise InputError(f"{where}: the graph is empty, expected at least one node")
    if len(graph) > MAX_NODES:
        raise InputError(f"{where}: {len(graph)} nodes, expected at most {MAX_NODES}")
    for node, attributes in graph.nodes(data=True):
        _check_node(f"{where}: node {node!r}", attributes, hosted)
    for source, target in graph.edges:
        if source == target:
            raise InputError(f"{where}: edge {source!r} -> {target!r} is a self loop")
    if not nx.is_directed_acyclic_graph(graph):
        source, target = nx.find_cycle(graph)[-1][:2]
        raise InputError(f"{where}: edge {source!r} -> {target!r} closes a cycle")
    parts = list(nx.weakly_connected_components(graph))
    if len(parts) > 1:
        largest = max(parts, key=len)
        lost, kept = (next(node for node in graph if (node in largest) is inside) for inside in (False, True))
        raise InputError(f"{where}: node {lost!r} is cut off from {kept!r} and the rest")


def _check_node(where: str, attributes: dict[str, Any], hosted: Collection[str]) -> None:
    if "modality" not in attributes:
        raise InputError(f"{where} has no field 'modality'")
    modality = attributes["modality"]
    if modality not in MODALITIES:
        raise InputError(f"{where} has the unknown modality {modality!r}, expected one of {', '.join(MODALITIES)}")
    if modality not in hosted:
        raise InputError(f"{where} has the modality {modality!r}, which no server hosts")
    for name in SIZES:
        if name in attributes and not _is_size(attributes[name]):
            raise InputError(f"{where} has {name} = {attributes[name]!r}, expected a finite number of at least 0")
    if unknown := sorted(set(attributes) - {"modality", *SIZES}, key=str):
        raise InputError(f"{where} has the unknown field {unknown[0]!r}, expected modality, {', '.join(SIZES)}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e15 and math.isfinite(value)


def _from_node_link(content: Any, where: str) -> nx.DiGraph:
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a JSON object with 'nodes' and 'edges'")
    if content.get("directed", True) is not True:
        raise InputError(f"{where}: directed = {content['directed']!r}, expected a directed graph")
    edges = "edges" if "edges" in content or "links" not in content else "links"
    for key in ("nodes", edges):
        if not isinstance(content.get(key), list):
            raise InputError(f"{where}: field {key!r} is missing" if key not in content else f"{where}: {key} is no list")
    graph = nx.DiGraph()
    for index, node in enumerate(content["nodes"]):
        name = _name(node, "id", f"{where}: node {index}")
        if name in graph:
            raise InputError(f"{where}: node {name!r} is there twice")
        graph.add_node(name)
        graph.nodes[name].update({key: value for key, value in node.items() if key != "id"})
    for index, edge in enumerate(content[edges]):
        source, target = (_name(edge, end, f"{where}: edge {index}") for end in ("source", "target"))
        for end in (source, target):
            if end not in graph:
                raise InputError(f"{where}: edge {source!r} -> {target!r} names the unknown node {end!r}")
        if graph.has_edge(source, target):
            raise InputError(f"{where}: edge {source!r} -> {target!r} is there twice")
        if unknown := sorted(set(edge) - {"source", "target"}):
            raise InputError(f"{where}: edge {source!r} -> {target!r} has the unknown field {unknown[0]!r}")
        graph.add_edge(source, target)
    return graph


def _name(item: Any, key: str, where: str) -> str | int:
    """The name of a node under `key` of a node or an edge."""
    if not isinstance(item, dict):
        raise InputError(f"{where} is {item!r}, expected an object")
    if key not in item:
        raise InputError(f"{where} has no field {key!r}")
    name = item[key]
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise InputError(f"{where} has {key} = {name!r}, expected text or an integer")
    return name
