"""The OpenAPI document says what is, and nothing that follows from it makes the server fail."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from serve.documentation import PAGES
from tests.serve.serving import Server

pytestmark = pytest.mark.anyio


def references(value: Any) -> set[str]:
    """All `$ref`s of a document."""
    if isinstance(value, dict):
        return {value["$ref"]} if "$ref" in value else set().union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def inlined(value: Any, document: dict[str, Any]) -> Any:
    """A schema that validates on its own."""
    return {**value, "components": document["components"]}


async def test_every_reference_leads_somewhere_and_examples_suit(server: Server) -> None:
    document = (await server.client.get("/openapi.json")).json()
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"], reference
    for path, operations in document["paths"].items():
        for operation in operations.values():
            content = operation.get("requestBody", {"content": {"application/json": {}}})["content"]["application/json"]
            for example in content.get("examples", {}).values():
                jsonschema.Draft202012Validator(inlined(content["schema"], document)).validate(example["value"])
                if "{" not in path:
                    answer = await server.client.post(path, json=example["value"])
                    assert answer.status_code == 200
                    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
                    jsonschema.Draft202012Validator(inlined(schema, document)).validate(answer.json())


async def test_bounds_and_shapes_are_the_manifests(server: Server) -> None:
    document = (await server.client.get("/openapi.json")).json()
    field = document["components"]["schemas"]["vehicular_Observation"]["properties"]["size_mb"]
    described = server.shelf.newest["vehicular"].manifest["spec"]["observation"]["size_mb"]
    assert (field["minItems"], field["items"]["maxItems"]) == (6, described["shape"][0])
    assert field["items"]["items"] == {"type": "number", "minimum": 0.0, "maximum": described["high"]}
    assert field["description"] == "request size [MB]"
    assert "security" not in document


async def test_a_token_is_documented_where_one_is_wanted(bundles: dict[str, Path]) -> None:
    document = (await Server({"games": bundles["games"]}, bearer="x").client.get("/openapi.json")).json()
    assert document["security"] == [{"bearer": []}]


def test_pages_load_nothing_from_elsewhere() -> None:
    for page in PAGES.glob("*.html"):
        assert "http://" not in page.read_text()
        assert "https://" not in page.read_text()


def test_nothing_generated_from_the_document_makes_the_server_fail(bundles: dict[str, Path]) -> None:
    """Schemathesis: right and wrong requests to every operation; whatever comes, it is not a 5xx."""
    server = Server(bundles, sessions=10_000)
    schema = schemathesis.openapi.from_asgi("/openapi.json", server.application)
    answered = []

    def check(case: Any) -> None:
        answer = case.call()
        answered.append(answer.status_code)
        case.validate_response(answer, checks=[not_a_server_error])

    few = settings(
        max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], database=None
    )
    for operation in schema.get_all_operations():
        few(given(case=operation.ok().as_strategy())(check))()
    assert {200, 404, 422} <= set(answered)
