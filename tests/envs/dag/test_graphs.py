"""Task graphs: templates, JSON files, and what is refused with which words."""

import json

import networkx as nx
import pytest
import torch

from envs.dag.graphs import check_graph, read_graph, write_graph
from envs.dag.templates import TEMPLATES
from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from tests.envs.dag.play import simulator, write_json

TEXT = {"modality": "text"}
IMAGE = {"modality": "image"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_tasks_of_five_to_eight_subtasks(name):
    graph = TEMPLATES[name]()
    check_graph(graph, name)
    assert 5 <= len(graph) <= 8
    assert sum(not list(graph.successors(node)) for node in graph) == 1  # one answer


def test_templates_have_the_patterns_of_the_paper():
    graphs = {name: make() for name, make in TEMPLATES.items()}
    modalities = {name: set(nx.get_node_attributes(graph, "modality").values()) for name, graph in graphs.items()}
    assert modalities == {
        "text-analysis": {"text"},
        "image-analysis": {"image"},
        "audio-analysis": {"audio"},
        "visual-question-answering": {"text", "image", "multimodal"},
        "audio-text-analysis": {"text", "audio", "multimodal"},
    }
    assert max(degree for _, degree in graphs["text-analysis"].out_degree) == 1  # a chain
    sources = {name: sum(not degree for _, degree in graph.in_degree) for name, graph in graphs.items()}
    assert list(sources.values()) == [1, 1, 1, 2, 2]
    for name in ("image-analysis", "audio-analysis"):  # branch and merge
        assert max(degree for _, degree in graphs[name].out_degree) > 1
        assert max(degree for _, degree in graphs[name].in_degree) > 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_written_graphs_are_read_back(tmp_path, name):
    graph = TEMPLATES[name]()
    graph.nodes["answer"]["output_bits"] = 123.0
    write_graph(graph, tmp_path / "task.json")
    again = read_graph(tmp_path / "task.json")
    assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
    assert list(again.edges) == list(graph.edges)


def test_links_are_edges_too(tmp_path):
    path = write_json(tmp_path / "task.json", {"a": TEXT, "b": IMAGE}, [("a", "b")], key="links")
    assert list(read_graph(path).edges) == [("a", "b")]


def test_a_graph_of_any_order_is_scheduled_in_topological_order(tmp_path):
    nodes = {"last": TEXT, "middle": IMAGE, "first": TEXT, 7: {**TEXT, "input_bits": 500, "output_bits": 0}}
    path = write_json(tmp_path / "task.json", nodes, [("first", "middle"), ("middle", "last"), (7, "last")])
    sim = simulator(1, graphs=[path], num_tasks=1)
    assert sim.pool.names == (("first", "middle", "7", "last"),)
    assert sim.pool.successors[0].nonzero().tolist() == [[0, 1], [1, 3], [2, 3]]
    assert sim.pool.modality[0].tolist() == [0, 1, 0, 0]
    assert sim.pool.input_bits[0, 2].tolist() == [500, 500]
    assert sim.pool.output_bits[0, 2].tolist() == [0, 0]


def test_tasks_take_the_graphs_in_turn():
    sim = simulator(1, graphs=["text-analysis", "image-analysis"], num_tasks=3)
    assert [graph[0] for graph in sim.pool.names] == ["analyse", "analyse"]
    shown = sim.reset(torch.tensor([0])).observation["subtask_modality"][0]
    assert shown.max(1).values.tolist() == [0, 1, 0]
    assert simulator(1, num_tasks=1).spec.heads[0].choices == 5 * 4  # the places of what is used


BAD = {
    "cyclic": (
        {"a": TEXT, "b": TEXT, "c": TEXT, "d": TEXT},
        [("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")],
        "edge 'd' -> 'b' closes a cycle",
    ),
    "self loop": ({"a": TEXT, "b": TEXT}, [("a", "b"), ("b", "b")], "edge 'b' -> 'b' is a self loop"),
    "no modality": ({"a": TEXT, "b": {}}, [("a", "b")], "node 'b' has no field 'modality'"),
    "unknown modality": ({"a": {"modality": "smell"}}, [], "node 'a' has the unknown modality 'smell', expected one of text"),
    "odd modality": ({"a": {"modality": ["text"]}}, [], "node 'a' has the unknown modality ['text']"),
    "not hosted": (
        {"a": TEXT, "v": {"modality": "multimodal"}},
        [("a", "v")],
        "node 'v' has the modality 'multimodal', which no",
    ),
    "negative": ({"a": {**TEXT, "input_bits": -1}}, [], "node 'a' has input_bits = -1, expected a finite number of at least 0"),
    "infinite": ({"a": {**TEXT, "output_bits": float("inf")}}, [], "node 'a' has output_bits = inf, expected a finite"),
    "no number": ({"a": {**TEXT, "input_bits": float("nan")}}, [], "node 'a' has input_bits = nan, expected a finite"),
    "huge": ({"a": {**TEXT, "input_bits": 10**400}}, [], "node 'a' has input_bits = 1000"),
    "text as number": ({"a": {**TEXT, "input_bits": "12"}}, [], "node 'a' has input_bits = '12', expected a finite"),
    "true as number": ({"a": {**TEXT, "input_bits": True}}, [], "node 'a' has input_bits = True, expected a finite"),
    "unknown field": ({"a": {**TEXT, "input_bit": 3}}, [], "node 'a' has the unknown field 'input_bit', expected modality"),
    "empty": ({}, [], "the graph is empty, expected at least one node"),
    "unknown end": ({"a": TEXT}, [("a", "z")], "edge 'a' -> 'z' names the unknown node 'z'"),
    "unknown start": ({"a": TEXT}, [("z", "a")], "edge 'z' -> 'a' names the unknown node 'z'"),
    "double edge": ({"a": TEXT, "b": TEXT}, [("a", "b"), ("a", "b")], "edge 'a' -> 'b' is there twice"),
    "cut off": ({"x": TEXT, "a": TEXT, "b": TEXT}, [("a", "b")], "node 'x' is cut off from 'a' and the rest"),
    "too many": ({f"n{i}": TEXT for i in range(201)}, [], "201 nodes, expected at most 200"),
}
BAD_TEXT = {
    "not JSON": ("{nodes", "not JSON (Expecting property name"),
    "nothing": ("", "not JSON (Expecting value"),
    "deep": ("[" * 100_000, "not JSON ("),
    "list": ("[]", "expected a JSON object with 'nodes' and 'edges'"),
    "no nodes": ('{"edges": []}', "field 'nodes' is missing"),
    "no edges": ('{"nodes": []}', "field 'edges' is missing"),
    "nodes no list": ('{"nodes": {}, "edges": []}', "nodes is no list"),
    "undirected": ('{"directed": false, "nodes": [], "edges": []}', "directed = False, expected a directed graph"),
    "node no object": ('{"nodes": ["a"], "edges": []}', "node 0 is 'a', expected an object"),
    "node without name": ('{"nodes": [{"modality": "text"}], "edges": []}', "node 0 has no field 'id'"),
    "odd name": ('{"nodes": [{"id": [1]}], "edges": []}', "node 0 has id = [1], expected text or an integer"),
    "same name": ('{"nodes": [{"id": "a", "modality": "text"}, {"id": "a"}], "edges": []}', "node 'a' is there twice"),
    "edge without end": ('{"nodes": [{"id": "a"}], "edges": [{"source": "a"}]}', "edge 0 has no field 'target'"),
    "edge no object": ('{"nodes": [{"id": "a"}], "edges": [["a", "a"]]}', "edge 0 is ['a', 'a'], expected an object"),
    "edge's field": (
        '{"nodes": [{"id": 1}, {"id": 2}], "edges": [{"source": 1, "target": 2, "weight": 3}]}',
        "edge 1 -> 2 has the unknown field 'weight'",
    ),
}


def refusal(path, **overrides):
    """What is said where a simulator is made of the file, and of nothing but it."""
    hosts = {"cloud_modalities": ["text", "image", "audio"], "graphs": [str(path)], "num_tasks": 1}
    with pytest.raises(InputError) as error:
        make_simulator(make_scenario("dag/t5", {**hosts, **overrides}))
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", BAD)
def test_bad_graphs_are_refused_naming_file_and_place(tmp_path, name):
    nodes, edges, complaint = BAD[name]
    path = write_json(tmp_path / "bad.json", nodes, edges)
    assert refusal(path).startswith(f"{path}: {complaint}")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "bad.json"]


@pytest.mark.parametrize("name", BAD_TEXT)
def test_bad_files_are_refused_naming_file_and_place(tmp_path, name):
    text, complaint = BAD_TEXT[name]
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    assert refusal(path).startswith(f"{path}: {complaint}")


def test_files_that_cannot_be_read(tmp_path):
    assert refusal(tmp_path / "none.json") == f"{tmp_path / 'none.json'}: cannot be read (No such file or directory)"
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    assert "not JSON" in refusal(tmp_path / "bytes.json")
    folder = tmp_path / "folder.json"
    folder.mkdir()
    assert "cannot be read" in refusal(folder)


def test_a_name_that_is_neither_template_nor_file():
    assert refusal("text-analysys").startswith(
        "graphs.0 = 'text-analysys': expected a .json file or one of text-analysis, image"
    )


def test_a_template_that_no_server_hosts():
    message = refusal("visual-question-answering")
    assert message == "visual-question-answering: node 'fuse' has the modality 'multimodal', which no server hosts"


@pytest.mark.parametrize("name", ["cyclic", "cut off", "infinite", "empty"])
def test_bad_graphs_are_not_written(tmp_path, name):
    nodes, edges, complaint = BAD[name]
    graph = nx.DiGraph()
    graph.add_nodes_from(nodes.items())
    graph.add_edges_from(edges)
    with pytest.raises(InputError) as error:
        write_graph(graph, tmp_path / "task.json")
    assert str(error.value) == f"{tmp_path / 'task.json'}: {complaint}" or complaint in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_node_link_json(tmp_path):
    write_graph(TEMPLATES["text-analysis"](), tmp_path / "task.json")
    content = json.loads((tmp_path / "task.json").read_text())
    assert content["edges"][0] == {"source": "analyse", "target": "extract"}
    assert content["nodes"][0] == {"modality": "text", "id": "analyse"}
