"""The Open Inference Protocol V2 (KServe, Triton) over the same policies.

Inputs are the observation's fields by name (`[B, N, *shape]`), and, where wanted, `mask.HEAD` (BOOL) and `state` (BYTES, `[B]`,
an empty text where an episode begins). Outputs are the heads by name (INT64 numbers of the choices) and `state`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.answers import Handler, Refusal, json_response, read_json, validated
from serve.codec import mask_shape
from serve.policies import HostedPolicy, Job

if TYPE_CHECKING:
    from serve.app import Application

KINDS = {"FP64": "iuf", "FP32": "iuf", "FP16": "iuf", "INT64": "iu", "INT32": "iu", "INT16": "iu", "INT8": "iu", "BOOL": "b"}
STATE = "state"
MASK = "mask."


class InputTensor(BaseModel):
    """One tensor; `data` is flat or nested."""

    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[int] = Field(min_length=1, max_length=16)
    datatype: Literal["FP64", "FP32", "FP16", "INT64", "INT32", "INT16", "INT8", "BOOL", "BYTES"]
    parameters: dict[str, Any] = {}
    data: list[Any]


class OutputChoice(BaseModel):
    """An output that is wanted."""

    model_config = ConfigDict(extra="ignore")

    name: str


class TensorRequest(BaseModel):
    """What a client of the protocol sends."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[OutputChoice] | None = None


class OutputTensor(BaseModel):
    """One tensor of the answer, flat."""

    name: str
    shape: list[int]
    datatype: Literal["INT64", "BYTES"]
    data: list[int] | list[str]


class TensorResponse(BaseModel):
    """What a client of the protocol gets."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


def _flat_schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema without definitions beside it."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return inlined(definitions[value["$ref"].rsplit("/", 1)[1]])
            return {key: inlined(of) for key, of in value.items()}
        return [inlined(of) for of in value] if isinstance(value, list) else value

    return inlined(schema)


TENSOR_REQUEST, TENSOR_RESPONSE = _flat_schema(TensorRequest), _flat_schema(TensorResponse)


class OpenInference:
    """The protocol's handlers."""

    def __init__(self, application: Application) -> None:
        self._application = application

    def routes(self, guarded: Callable[[Handler], Handler]) -> list[Route]:
        """All paths of the protocol."""
        routes = [
            Route("/v2/health/live", guarded(self.health)),
            Route("/v2/health/ready", guarded(self.health)),
            Route("/v2", guarded(self.server)),
        ]
        for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(prefix, guarded(self.metadata)),
                Route(f"{prefix}/ready", guarded(self.ready)),
                Route(f"{prefix}/infer", guarded(self.infer), methods=["POST"]),
            ]
        return routes

    async def health(self, request: Request) -> Response:
        """`/v2/health/live`, `/v2/health/ready`: a replica answers only once its policies are loaded."""
        return json_response({})

    async def server(self, request: Request) -> Response:
        """`/v2`."""
        return json_response({"name": "edgeflock", "version": version("edgeflock"), "extensions": []})

    async def ready(self, request: Request) -> Response:
        """`/v2/models/{m}/ready`."""
        self._policy(request)
        return json_response({})

    async def metadata(self, request: Request) -> Response:
        """`/v2/models/{m}`."""
        policy = self._policy(request)
        names = [held.version for held in self._application.shelf.versions(policy.name)]
        kinds = {True: "INT64", False: "FP32"}
        inputs = [_described(part.name, kinds[part.category], part.shape) for part in policy.codec.parts]
        agents = policy.spec.num_agents
        outputs = []
        for head in policy.spec.heads:
            inputs.append(_described(MASK + head.name, "BOOL", (agents, *mask_shape(head))))
            outputs.append(_described(head.name, "INT64", (agents, head.count) if head.count > 1 else (agents,)))
        if policy.layout.size:
            inputs.append(_described(STATE, "BYTES", ()))
            outputs.append(_described(STATE, "BYTES", ()))
        return json_response(
            {"name": policy.name, "versions": names, "platform": "edgeflock", "inputs": inputs, "outputs": outputs}
        )

    async def infer(self, request: Request) -> Response:
        """`/v2/models/{m}/infer`."""
        started = time.perf_counter()
        policy = self._policy(request)
        asked = validated(TensorRequest, read_json(request))
        policy, job = self._job(policy, {tensor.name: tensor for tensor in asked.inputs}, len(asked.inputs))
        decided = await policy.decide(job)
        outputs = self._outputs(policy, decided.actions, decided.states)
        if asked.outputs is not None:
            known = {output["name"]: output for output in outputs}
            outputs = [known[_known(chosen.name, known)] for chosen in asked.outputs]
        self._application.metrics.decided(policy.name, len(job.rows), time.perf_counter() - started)
        answer = {"model_name": policy.name, "model_version": policy.version, "outputs": outputs}
        return json_response(answer if asked.id is None else {**answer, "id": asked.id})

    def _policy(self, request: Request) -> HostedPolicy:
        policy = self._application.policy(request)
        wanted = request.path_params.get("version")
        found = policy if wanted is None else self._application.shelf.find(policy.name, wanted)
        if found is None:
            raise Refusal(404, f"version {wanted!r} of {policy.name!r} is not held")
        return found

    def _job(self, policy: HostedPolicy, inputs: dict[str, InputTensor], count: int) -> tuple[HostedPolicy, Job]:
        if len(inputs) != count:
            raise Refusal(422, "inputs: a name occurs twice")
        agents, heads = policy.spec.num_agents, {MASK + head.name: head for head in policy.spec.heads}
        parts = {part.name: part for part in policy.codec.parts}
        for name in inputs:
            if name not in {*parts, *heads, STATE}:
                raise Refusal(422, f"inputs.{name}: there is no such input, expected {', '.join([*parts, *heads, STATE])}")
        for name in parts:
            if name not in inputs:
                raise Refusal(422, f"inputs.{name}: is missing")
        teams = inputs[next(iter(parts))].shape[0]
        if not 1 <= teams <= self._application.limits.teams:
            raise Refusal(422, f"inputs: of {teams} teams: expected 1 to {self._application.limits.teams}")
        observation = {name: _array(inputs[name], (teams, *part.shape)) for name, part in parts.items()}
        given = {head: inputs[name] for name, head in heads.items() if name in inputs}
        masks = {head.name: _array(tensor, (teams, agents, *mask_shape(head))) for head, tensor in given.items()}
        tokens = _tokens(inputs[STATE], teams) if STATE in inputs else [None] * teams
        policy, states = self._application.opened(policy, policy.name, tokens)
        try:
            return policy, Job(policy.codec.rows(observation, teams), policy.codec.masks(masks, teams), states)
        except ValueError as error:
            raise Refusal(422, str(error)) from None

    def _outputs(self, policy: HostedPolicy, actions: np.ndarray, states: np.ndarray) -> list[dict[str, Any]]:
        outputs, first = [], 0
        for head in policy.spec.heads:
            chosen = actions[:, :, first : first + head.count]
            shape = chosen.shape if head.count > 1 else chosen.shape[:2]
            outputs.append({"name": head.name, "datatype": "INT64", "shape": list(shape), "data": chosen.ravel().tolist()})
            first += head.count
        if policy.layout.size:
            tokens = [self._application.tokens.seal(policy.name, policy.version, state.tobytes()) for state in states]
            outputs.append({"name": STATE, "datatype": "BYTES", "shape": [len(tokens)], "data": tokens})
        return outputs


def _array(tensor: InputTensor, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor's numbers in the shape that is expected of it, or a refusal."""
    where = f"inputs.{tensor.name}"
    if tensor.datatype not in KINDS:
        raise Refusal(422, f"{where}: is of {tensor.datatype}: expected numbers or truths")
    if tuple(tensor.shape) != shape:
        raise Refusal(422, f"{where}: is of shape {tensor.shape}: expected {list(shape)}")
    try:
        found = np.array(tensor.data)
    except ValueError:
        raise Refusal(422, f"{where}.data: has lists of different lengths") from None
    if found.size != math.prod(shape):
        raise Refusal(422, f"{where}.data: {found.size} values: expected {math.prod(shape)}")
    if found.dtype.kind not in KINDS[tensor.datatype] and found.size:
        raise Refusal(422, f"{where}.data: holds other values than {tensor.datatype}")
    wants_truth = where.startswith(f"inputs.{MASK}")
    if (found.dtype.kind == "b") != wants_truth:
        raise Refusal(422, f"{where}: expected {'BOOL' if wants_truth else 'numbers'}")
    return found.reshape(shape)


def _tokens(tensor: InputTensor, teams: int) -> list[str | None]:
    if tensor.datatype != "BYTES" or tensor.shape != [teams] or len(tensor.data) != teams:
        raise Refusal(422, f"inputs.{STATE}: expected BYTES of shape [{teams}]")
    if not all(isinstance(token, str) for token in tensor.data):
        raise Refusal(422, f"inputs.{STATE}.data: expected texts")
    return [token or None for token in tensor.data]


def _described(name: str, datatype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1, *shape]}


def _known(name: str, known: dict[str, Any]) -> str:
    if name not in known:
        raise Refusal(422, f"outputs: {name!r} is none of {', '.join(known)}")
    return name
