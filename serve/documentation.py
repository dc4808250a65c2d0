"""The OpenAPI document, and the pages for people."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from serve.open_inference import TENSOR_REQUEST, TENSOR_RESPONSE
from serve.policies import HostedPolicy
from serve.schemas import AgentSchema, NewSession, PolicyCard, PolicyList, PolicySchema, Problem

PAGES = Path(__file__).parent / "pages"
DESCRIPTION = """Decisions of trained policies and heuristics for teams of edge agents.

Observations are physical quantities (units in brackets); the actions come back by name. What a policy remembers between
the steps of an episode is either in the signed text `state`, which the client sends with its next request, or in a session on
the server."""
CODES = {
    401: "no bearer token, or a wrong one",
    404: "there is no such policy, agent or session",
    409: "the state's version is no longer held, or two decisions met in one session",
    413: "the request is too large",
    422: "something in the request cannot be used",
    503: "all places are taken: try again after `Retry-After` seconds",
    504: "no answer within the time limit",
}


async def front_page(request: Request) -> Response:
    """`GET /`: the policies, and a form that sends an example to each."""
    return FileResponse(PAGES / "index.html")


async def docs_page(request: Request) -> Response:
    """`GET /docs`: Swagger UI, with nothing from elsewhere."""
    return FileResponse(PAGES / "docs.html")


def static_files() -> StaticFiles:
    """Swagger UI's script and style."""
    return StaticFiles(directory=str(files("fastapi_offline") / "static"))


def openapi(
    schemas: Mapping[HostedPolicy, PolicySchema], agents: Mapping[HostedPolicy, AgentSchema], bearer: bool
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of exactly these policies.

    Args:
        agents: Those whose agents can be asked one by one.
        bearer: Whether a token is wanted.
    """
    models: list[type[BaseModel]] = [Problem, NewSession, PolicyCard, PolicyList]
    paths: dict[str, Any] = {"/v1/policies": {"get": _operation("All policies", "policies", PolicyList)}}
    names = [policy.name for policy in schemas]
    named = [_parameter("name", {"type": "string", "enum": names})]
    paths["/v1/policies/{name}"] = {"get": _operation("One policy", "policies", PolicyCard, parameters=named, codes=[404])}
    for policy, schema in schemas.items():
        models += [schema.request, schema.batch_request, schema.answer, schema.batch_answer]
        paths[f"/v1/policies/{policy.name}/decide"] = {"post": _decide(policy, schema)}
        if policy in agents:
            of = agents[policy]
            models += [of.request, of.intend_request, of.answer, of.intend_answer]
            paths |= _agent_paths(policy, of)
    paths["/v1/policies/{name}/sessions"] = {
        "post": _operation("Open a session", "sessions", NewSession, parameters=named, codes=[404, 503], status=201)
    }
    closing = _operation(
        "Close a session", "sessions", None, parameters=[_parameter("session", {"type": "string"})], codes=[404]
    )
    paths["/v1/sessions/{session}"] = {"delete": closing}
    paths |= _open_inference_paths(names) | _plain_paths()
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    components: dict[str, Any] = {
        "schemas": {**definitions["$defs"], "TensorRequest": TENSOR_REQUEST, "TensorResponse": TENSOR_RESPONSE}
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Edgeflock", "version": "1", "description": DESCRIPTION},
        "paths": paths,
        "components": components,
    }
    if bearer:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
    return document


def _decide(policy: HostedPolicy, schema: PolicySchema) -> dict[str, Any]:
    body = {"anyOf": [_ref(schema.request), _ref(schema.batch_request)]}
    example = policy.example
    several = {
        "observations": {name: [value, value] for name, value in example["observation"].items()},
        **({"action_masks": {n: [m, m] for n, m in example["action_mask"].items()}} if "action_mask" in example else {}),
    }
    examples = {
        "team": {"summary": "one team, at the start of an episode", "value": example},
        "teams": {"summary": "two teams", "value": several},
    }
    operation = _operation(
        f"{policy.name}: decide for one team or several",
        "decisions",
        {"anyOf": [_ref(schema.answer), _ref(schema.batch_answer)]},
        body=body,
        examples=examples,
        codes=[404, 409, 413, 422, 503, 504],
    )
    operation["description"] = (
        f"{policy.spec.problem}, {policy.spec.scenario}: {policy.spec.num_agents} agents, in this order: "
        f"{', '.join(policy.spec.agents)}. Version {policy.version}."
    )
    return operation


def _agent_paths(policy: HostedPolicy, schema: AgentSchema) -> dict[str, Any]:
    parameters = [_parameter("agent", {"type": "string", "enum": list(policy.spec.agents)})]
    own = {name: value[0] for name, value in policy.example["observation"].items()}
    codes = [404, 409, 413, 422, 503, 504]
    base = f"/v1/policies/{policy.name}/agents/{{agent}}"
    intend = _operation(
        f"{policy.name}: what an agent tells its peers in this step",
        "single agents",
        schema.intend_answer,
        body=_ref(schema.intend_request),
        examples={"agent": {"value": {"observation": own}}},
        parameters=parameters,
        codes=codes,
    )
    decide = _operation(
        f"{policy.name}: one agent decides, from its own observation and what its peers told it",
        "single agents",
        schema.answer,
        body=_ref(schema.request),
        examples={"agent": {"value": {"observation": own}}},
        parameters=parameters,
        codes=codes,
    )
    return {f"{base}/intend": {"post": intend}, f"{base}/decide": {"post": decide}}


def _open_inference_paths(names: list[str]) -> dict[str, Any]:
    which = [_parameter("model", {"type": "string", "enum": names})]
    anything = {"type": "object"}
    tag = "Open Inference Protocol V2"
    paths: dict[str, Any] = {
        "/v2/health/live": {"get": _operation("The server runs", tag, anything)},
        "/v2/health/ready": {"get": _operation("All policies are loaded", tag, anything)},
        "/v2": {"get": _operation("The server", tag, anything)},
    }
    for prefix, parameters in (
        ("/v2/models/{model}", which),
        ("/v2/models/{model}/versions/{version}", [*which, _parameter("version", {"type": "string"})]),
    ):
        paths[prefix] = {"get": _operation("Tensors of a policy", tag, anything, parameters=parameters, codes=[404])}
        paths[f"{prefix}/ready"] = {"get": _operation("A policy is loaded", tag, anything, parameters=parameters, codes=[404])}
        paths[f"{prefix}/infer"] = {
            "post": _operation(
                "Decide for several teams",
                tag,
                {"$ref": "#/components/schemas/TensorResponse"},
                body={"$ref": "#/components/schemas/TensorRequest"},
                parameters=parameters,
                codes=[404, 409, 413, 422, 503, 504],
            )
        }
    return paths


def _plain_paths() -> dict[str, Any]:
    metrics = _operation("Prometheus metrics", "operation", None)
    metrics["responses"]["200"] = {"description": "in text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    del metrics["responses"]["204"]
    return {"/metrics": {"get": metrics}}


def _operation(
    summary: str,
    tag: str,
    answer: type[BaseModel] | dict[str, Any] | None,
    body: dict[str, Any] | None = None,
    examples: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    codes: list[int] | None = None,
    status: int = 200,
) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if answer is None:
        responses["204"] = {"description": "done"}
    else:
        responses[str(status)] = {
            "description": "the answer",
            "content": _json(answer if isinstance(answer, dict) else _ref(answer)),
        }
    for code in [401, *(codes or [])]:
        responses[str(code)] = {"description": CODES[code], "content": _json(_ref(Problem))}
    operation: dict[str, Any] = {"summary": summary, "tags": [tag], "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        content = _json(body)
        if examples:
            content["application/json"]["examples"] = examples
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}
