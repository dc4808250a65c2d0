"""The Open Inference Protocol V2 gives the same decisions."""

from typing import Any

import numpy as np
import pytest

from tests.serve.serving import Server

pytestmark = pytest.mark.anyio


def tensors(server: Server, name: str, teams: int = 2) -> list[dict[str, Any]]:
    """The example as tensors, for several equal teams; every second one nested."""
    example, inputs = server.example(name), []
    for prefix, part, datatype in (("", "observation", None), ("mask.", "action_mask", "BOOL")):
        for place, (field, value) in enumerate(example[part].items()):
            array = np.array([value] * teams)
            kind = datatype or ("INT64" if array.dtype.kind == "i" else "FP32")
            data = array.tolist() if place % 2 else array.ravel().tolist()
            inputs.append({"name": prefix + field, "datatype": kind, "shape": list(array.shape), "data": data})
    return inputs


async def infer(server: Server, name: str, inputs: list[dict[str, Any]], **more: Any) -> Any:
    return await server.client.post(f"/v2/models/{name}/infer", json={"inputs": inputs, **more})


async def test_it_decides_as_decide_does_and_remembers(server: Server) -> None:
    name, inputs = "vehicular", tensors(server, "vehicular")
    spec = server.shelf.newest[name].spec
    token, plural = None, {"observation": "observations", "action_mask": "action_masks"}
    both = {plural[part]: {key: [value] * 2 for key, value in of.items()} for part, of in server.example(name).items()}
    tokens = {"name": "state", "datatype": "BYTES", "shape": [2], "data": ["", ""]}
    for _ in range(3):
        decided = (await server.decide(name, {**both, "states": [token] * 2})).json()
        expected = {**decided["decisions"][0], "version": decided["version"]}
        answer = (await infer(server, name, [*inputs, tokens], id="x")).json()
        outputs = {output["name"]: output for output in answer["outputs"]}
        assert (answer["model_name"], answer["model_version"], answer["id"]) == (name, expected["version"], "x")
        for head in spec.heads:
            chosen = np.array(outputs[head.name]["data"]).reshape(outputs[head.name]["shape"])
            for team in chosen:
                assert team.tolist() == [expected["choices"][agent][head.name] for agent in spec.agents]
        assert outputs["state"]["data"] == [expected["state"]] * 2
        token, tokens["data"] = expected["state"], outputs["state"]["data"]


async def test_metadata_and_health(server: Server) -> None:
    get = server.client.get
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/games/ready"):
        assert (await get(path)).status_code == 200
    assert (await get("/v2")).json()["name"] == "edgeflock"
    described = (await get("/v2/models/games")).json()
    version = server.shelf.newest["games"].version
    assert described["versions"] == [version]
    assert described["inputs"][0] == {"name": "node", "datatype": "FP32", "shape": [-1, 2, 3]}
    assert [output["name"] for output in described["outputs"]] == ["choice", "state"]
    assert (await get(f"/v2/models/games/versions/{version}")).json() == described
    for path in ("/v2/models/nobody", "/v2/models/games/versions/1", "/v2/models/nobody/ready"):
        assert (await get(path)).status_code == 404


async def test_only_the_outputs_that_are_wanted(server: Server) -> None:
    inputs = tensors(server, "games")
    answer = (await infer(server, "games", inputs, outputs=[{"name": "choice"}])).json()
    assert [output["name"] for output in answer["outputs"]] == ["choice"]
    assert (await infer(server, "games", inputs, outputs=[{"name": "luck"}])).status_code == 422


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"shape": [2, 2, 4]}, "inputs.node: is of shape [2, 2, 4]: expected [2, 2, 3]"),
        ({"shape": [-1, 2, 3]}, "inputs: of -1 teams: expected 1 to 1024"),
        ({"data": [0.0]}, "inputs.node.data: 1 values: expected 12"),
        ({"data": [[0.0], [0.0, 1.0]]}, "inputs.node.data: has lists of different lengths"),
        ({"data": ["a"] * 12}, "inputs.node.data: holds other values than FP32"),
        ({"data": [2.0] * 12}, "observation.node[0][0] of team 0 = 2: expected a number in [0, 1]"),
        ({"datatype": "BYTES"}, "inputs.node: is of BYTES"),
        ({"datatype": "FP8"}, "inputs.0.datatype: input should be"),
        ({"datatype": "BOOL", "data": [True] * 12}, "inputs.node: expected numbers"),
        ({"name": "luck"}, "inputs.luck: there is no such input"),
        ({"name": "mask.choice"}, "inputs: a name occurs twice"),
    ],
)
async def test_tensors_that_cannot_be(change: dict[str, Any], complaint: str, server: Server) -> None:
    first, *others = tensors(server, "games")
    answer = await infer(server, "games", [{**first, **change}, *others])
    assert answer.status_code == 422
    assert complaint in answer.json()["error"]


async def test_a_state_that_is_no_token(server: Server) -> None:
    for tokens in (["x", "y"], ["", 3], [""]):
        state = {"name": "state", "datatype": "BYTES", "shape": [len(tokens)], "data": tokens}
        assert (await infer(server, "games", [*tensors(server, "games"), state])).status_code == 422
