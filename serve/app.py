"""The HTTP application: what is answered to whom.

A request to decide is read (`schemas`), checked (`codec`), computed with others (`batching`) and written down by name.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from envs.team import UNBOUNDED_CLIP
from serve import documentation
from serve.admission import Admission, Overloaded
from serve.answers import Handler, Refusal, json_response, read_json, validated
from serve.config import Limits, SessionSettings
from serve.metrics import Metrics
from serve.open_inference import OpenInference
from serve.policies import Decided, HostedAgent, HostedPolicy, Job, Shelf
from serve.sessions import Session, Sessions
from serve.tokens import StateLayout, StateTokens

log = logging.getLogger("ray.serve")  # goes into the replica's log
LARGE = 2**15
"""Bytes beyond which requests are answered one after the other. Little is won by doing them together, and whoever came first
would wait for those who came later as well."""

OPEN = ("/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready")
"""What needs no bearer token: pages without data, and health."""


class Application:
    """An ASGI application around a shelf of policies. The shelf may change between two requests."""

    def __init__(
        self,
        shelf: Shelf,
        tokens: StateTokens,
        sessions: Sessions,
        metrics: Metrics,
        limits: Limits,
        session_settings: SessionSettings,
        bearer: str | None = None,
    ) -> None:
        self.shelf, self.tokens, self.sessions, self.metrics, self.limits = shelf, tokens, sessions, metrics, limits
        self._session_settings = session_settings
        self._admission = Admission(limits.wait_s)
        self._turns = asyncio.Lock()  # fair: whoever came first is next
        self._bearer = None if bearer is None else f"Bearer {bearer}".encode()
        routes = [
            Route("/v1/policies/{name}/decide", self._guarded(self.decide), methods=["POST"]),
            Route("/v1/policies/{name}/agents/{agent}/decide", self._guarded(self.agent_decide), methods=["POST"]),
            Route("/v1/policies/{name}/agents/{agent}/intend", self._guarded(self.agent_intend), methods=["POST"]),
            Route("/v1/policies/{name}/sessions", self._guarded(self.open_session), methods=["POST"]),
            Route("/v1/sessions/{session}", self._guarded(self.close_session), methods=["DELETE"]),
            Route("/v1/policies", self._guarded(self.list_policies)),
            Route("/v1/policies/{name}", self._guarded(self.show_policy)),
            *OpenInference(self).routes(self._guarded),
            Route("/metrics", self._guarded(self.show_metrics)),
            Route("/openapi.json", self._guarded(self.openapi)),
            Route("/docs", documentation.docs_page),
            Route("/", documentation.front_page),
            Mount("/static", documentation.static_files()),
        ]
        self._routes = Starlette(routes=routes, exception_handlers={404: _no_such_path, 405: _no_such_path})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._may(scope):
            refusal = Refusal(401, "authorization: expected the header 'Authorization: Bearer TOKEN' with this server's token")
            await refusal.response({"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        await self._routes(scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        if self._bearer is None or scope["path"] in OPEN or scope["path"].startswith("/static/"):
            return True
        shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(shown, self._bearer)

    def patience(self) -> AbstractContextManager[None]:
        """While the server keeps itself busy, see `Admission.patience`."""
        return self._admission.patience()

    def _guarded(self, handler: Handler) -> Handler:
        """The handler within the time limit, with refusals and failures as answers of one line."""

        async def answer(request: Request) -> Response:
            name = request.path_params.get("name", "")
            try:
                async with asyncio.timeout(self.limits.time_s):
                    if request.method != "POST":
                        return await handler(request)
                    if self._admission.is_full:  # before it is read, which is most of the work of a refusal
                        raise Overloaded
                    request.state.body = await self._body(request)
                    length = len(request.state.body)
                    with self._admission.admitted(length):
                        async with self._turns if length > LARGE else nullcontext():
                            return await handler(request)
            except Overloaded:
                self.metrics.turned_away()
                return self._full("requests: too many are waiting").response()
            except Refusal as refusal:
                if refusal.status < 500:
                    self.metrics.invalid(name if name in self.shelf.newest else "")
                return refusal.response()
            except TimeoutError:
                return Refusal(504, f"no answer within {self.limits.time_s:g} s").response()
            except Exception:
                log.exception("%s %s failed", request.method, request.url.path)
                return Refusal(500, "the server failed; its log says why").response()

        return answer

    # -- the team decides --

    async def decide(self, request: Request) -> Response:
        """`POST /v1/policies/{name}/decide`."""
        started = time.perf_counter()
        policy = self.policy(request)
        values = read_json(request)
        several = isinstance(values, dict) and "observations" in values
        schema = policy.schema
        asked: Any = validated(schema.batch_request if several else schema.request, values)
        if several:
            answer, teams = await self._decide_for_teams(policy, asked)
        else:
            answer, teams = await self._decide_for_team(policy, asked), 1
        self.metrics.decided(policy.name, teams, time.perf_counter() - started)
        return json_response(answer)

    async def _decide_for_team(self, policy: HostedPolicy, asked: Any) -> dict[str, Any]:
        if asked.session is not None and asked.state is not None:
            raise Refusal(422, "session: expected either a session or a state, not both")
        session = None if asked.session is None else await self._session(policy, asked.session)
        if session is not None and session.version:
            policy, states = self.held(policy, session.version), np.frombuffer(bytearray(session.state), np.uint8)[None]
        else:
            policy, states = self.opened(policy, policy.name, [asked.state])
        job = self._job(policy, asked, asked.observation, asked.action_mask, states)
        decided = await policy.decide(job)
        if session is not None:
            after = Session(policy.name, policy.version, decided.states.tobytes(), session.revision + 1)
            if not await self.sessions.put(asked.session, after):
                raise Refusal(409, f"session {asked.session!r}: another decision was quicker, or it expired")
        (told,) = self.told(policy, decided, keep=session is None)
        return {"policy": policy.name, "version": policy.version, **told}

    async def _decide_for_teams(self, policy: HostedPolicy, asked: Any) -> tuple[dict[str, Any], int]:
        teams = self._teams(asked.observations)
        tokens = asked.states or [None] * teams
        if len(tokens) != teams:
            raise Refusal(422, f"states: expected {teams}, one for each team, got {len(tokens)}")
        policy, states = self.opened(policy, policy.name, tokens)
        decided = await policy.decide(self._job(policy, asked, asked.observations, asked.action_masks, states))
        decisions = self.told(policy, decided)
        return {"policy": policy.name, "version": policy.version, "decisions": decisions}, teams

    def _teams(self, observations: BaseModel) -> int:
        lengths = {name: len(value) for name, value in observations.__dict__.items()}
        name, teams = next(iter(lengths.items()))
        for other, length in lengths.items():
            if length != teams:
                raise Refusal(422, f"observations.{other}: is of {length} teams, but observations.{name} of {teams}")
        if teams > self.limits.teams:
            raise Refusal(413, f"observations: {teams} teams: expected at most {self.limits.teams}")
        return teams

    def _job(self, policy: HostedPolicy, asked: Any, observation: BaseModel, mask: BaseModel | None, states: np.ndarray) -> Job:
        return checked_job(
            policy.codec,
            observation,
            mask,
            states,
            sampled=asked.mode == "sampled",
            seed=getattr(asked, "seed", None),
            scores=getattr(asked, "scores", False),
        )

    def told(self, policy: HostedPolicy, decided: Decided, keep: bool = True) -> list[dict[str, Any]]:
        """What is answered to each team; `keep` gives it its state to keep."""
        answers: list[dict[str, Any]] = []
        for place, (labels, numbers) in enumerate(policy.codec.named(decided.actions)):
            token = None
            if keep and policy.layout.size:
                token = self.tokens.seal(policy.name, policy.version, decided.states[place].tobytes())
            answers.append({"actions": labels, "choices": numbers, "state": token})
        if decided.scores is not None:
            for answer, scores in zip(answers, policy.codec.scores(decided.scores), strict=True):
                answer[policy.policy.scores_are or ""] = scores
        return answers

    # -- one agent decides --

    async def agent_decide(self, request: Request) -> Response:
        """`POST /v1/policies/{name}/agents/{agent}/decide`."""
        started = time.perf_counter()
        policy, agent = self._agent(request)
        asked: Any = validated(policy.agent_schema.request, read_json(request))
        policy, agent, states = self._remembered(policy, agent, asked.state)
        job = checked_job(agent.codec, asked.observation, asked.action_mask, states)
        messages = checked_messages(asked.messages)
        decided, message = agent.decide(job, messages)
        ((labels, numbers),) = agent.codec.named(decided.actions)
        token = self.tokens.seal(_owner(policy, agent), policy.version, decided.states[0].tobytes())
        self.metrics.decided(policy.name, 1, time.perf_counter() - started)
        answer = {"actions": _only(labels), "choices": _only(numbers), "state": token}
        return json_response({**self._said(policy, agent, message), **answer})

    async def agent_intend(self, request: Request) -> Response:
        """`POST /v1/policies/{name}/agents/{agent}/intend`."""
        policy, agent = self._agent(request)
        asked: Any = validated(policy.agent_schema.intend_request, read_json(request))
        policy, agent, states = self._remembered(policy, agent, asked.state)
        message = agent.intend(checked_job(agent.codec, asked.observation, None, states))
        return json_response(self._said(policy, agent, message))

    def _agent(self, request: Request) -> tuple[HostedPolicy, HostedAgent]:
        policy, name = self.policy(request), request.path_params["agent"]
        if not policy.decentralised:
            raise Refusal(404, f"policy {policy.name!r} decides for the team as a whole only")
        if name not in policy.spec.agents:
            raise Refusal(404, f"agent {name!r}: expected one of {', '.join(policy.spec.agents)}")
        return policy, policy.agent(name)

    def _remembered(
        self, policy: HostedPolicy, agent: HostedAgent, token: str | None
    ) -> tuple[HostedPolicy, HostedAgent, np.ndarray]:
        policy, states = self.opened(policy, _owner(policy, agent), [token], lambda held: held.agent(agent.name).layout)
        return policy, policy.agent(agent.name), states

    @staticmethod
    def _said(policy: HostedPolicy, agent: HostedAgent, message: np.ndarray | None) -> dict[str, Any]:
        which = {"policy": policy.name, "version": policy.version, "agent": agent.name}
        if message is None:
            return {**which, "message": None, "listeners": []}
        return {**which, "message": message[0].tolist(), "listeners": list(agent.agent.listeners)}

    # -- sessions --

    async def open_session(self, request: Request) -> Response:
        """`POST /v1/policies/{name}/sessions`."""
        name = await self.sessions.create(self.policy(request).name)
        if name is None:
            raise self._full("sessions: all places are taken")
        return json_response({"session": name, "expires_in_s": self._session_settings.ttl_s}, 201)

    async def close_session(self, request: Request) -> Response:
        """`DELETE /v1/sessions/{session}`."""
        if not await self.sessions.delete(request.path_params["session"]):
            raise Refusal(404, "session: there is none of this name, or it has expired")
        return Response(status_code=204)

    async def _session(self, policy: HostedPolicy, name: str) -> Session:
        session = await self.sessions.get(name)
        if session is None or session.policy != policy.name:
            raise Refusal(404, f"session {name!r}: policy {policy.name!r} has none of this name, or it has expired")
        return session

    # -- what there is --

    async def list_policies(self, request: Request) -> Response:
        """`GET /v1/policies`."""
        return json_response({"policies": [self._card(policy) for policy in self.shelf.newest.values()]})

    async def show_policy(self, request: Request) -> Response:
        """`GET /v1/policies/{name}`."""
        return json_response(self._card(self.policy(request)))

    def _card(self, policy: HostedPolicy) -> dict[str, Any]:
        return {
            "name": policy.name,
            "version": policy.version,
            "versions": [held.version for held in self.shelf.versions(policy.name)],
            "decentralised": policy.decentralised,
            "scores": policy.policy.scores_are,
            "manifest": policy.manifest,
            "example": policy.example,
        }

    async def show_metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        policies = list(self.shelf.newest.values())
        schemas = {policy: policy.schema for policy in policies}
        agents = {policy: policy.agent_schema for policy in policies if policy.decentralised}
        return json_response(documentation.openapi(schemas, agents, bearer=self._bearer is not None))

    # -- what the handlers share --

    def policy(self, request: Request) -> HostedPolicy:
        """The newest version of the policy in the path."""
        name = request.path_params["name"]
        policy = self.shelf.newest.get(name)
        if policy is None:
            raise Refusal(404, f"policy {name!r}: expected one of {', '.join(self.shelf.newest)}")
        return policy

    def held(self, policy: HostedPolicy, version: str) -> HostedPolicy:
        """The version of a policy with which an episode began."""
        found = self.shelf.find(policy.name, version)
        if found is None or found.spec != policy.spec:
            raise Refusal(409, f"state: of version {version} of {policy.name!r}, which is gone: begin a new episode")
        return found

    def opened(
        self,
        policy: HostedPolicy,
        owner: str,
        tokens: Sequence[str | None],
        layout: Callable[[HostedPolicy], StateLayout] = lambda policy: policy.layout,
    ) -> tuple[HostedPolicy, np.ndarray]:
        """The version that the tokens are of (the newest without any), and the states `[B, bytes]`, initial for None.

        Args:
            owner: Whose tokens are expected, see `StateTokens`.
            layout: From a version to its states' layout.
        """
        found = [None if token is None else self._open(owner, token) for token in tokens]
        versions = {version for version, _ in filter(None, found)}
        if not versions:
            return policy, np.repeat(layout(policy).initial, len(tokens), axis=0)
        if len(versions) > 1:
            raise Refusal(422, f"states: they are of several versions of {policy.name!r}: {', '.join(sorted(versions))}")
        policy = self.held(policy, versions.pop())
        initial = layout(policy).initial.tobytes()
        data = bytearray().join(initial if one is None else one[1] for one in found)
        return policy, np.frombuffer(data, np.uint8).reshape(len(tokens), -1)

    def _open(self, owner: str, token: str) -> tuple[str, bytes]:
        try:
            return self.tokens.open(owner, token)
        except ValueError as error:
            raise Refusal(422, str(error)) from None

    async def _body(self, request: Request) -> bytes:
        most = self.limits.body_bytes
        length = request.headers.get("content-length", "")
        parts, size = [], int(length) if length.isdigit() else 0
        if size <= most:
            size = 0
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > most:
                    break
        if size > most:
            raise Refusal(413, f"request: expected at most {most} bytes", {"Connection": "close"})
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _full(self, text: str) -> Refusal:
        return Refusal(503, text, {"Retry-After": str(math.ceil(self.limits.retry_after_s))})


def checked_job(codec: Any, observation: BaseModel, mask: BaseModel | None, states: np.ndarray, **options: Any) -> Job:
    """A job of what was asked; everything that is wrong with its numbers is refused."""
    teams = len(states)
    try:
        return Job(codec.rows(observation.__dict__, teams), codec.masks(given(mask), teams), states, **options)
    except ValueError as error:
        raise Refusal(422, str(error)) from None


def checked_messages(messages: BaseModel | None) -> dict[str, np.ndarray]:
    """What peers said, `[1, G]` float32 by their names."""
    for name, numbers in given(messages).items():
        if not (np.abs(numbers) <= UNBOUNDED_CLIP).all():
            raise Refusal(422, f"messages.{name}: expected numbers of a magnitude up to {UNBOUNDED_CLIP:g}")
    return {name: numbers.astype(np.float32)[None] for name, numbers in given(messages).items()}


def given(model: BaseModel | None) -> dict[str, np.ndarray]:
    """The fields of a model of optional arrays that are there."""
    return {} if model is None else {name: value for name, value in model.__dict__.items() if value is not None}


def _owner(policy: HostedPolicy, agent: HostedAgent) -> str:
    """Policy names hold no slash, so no two owners are called the same."""
    return f"{policy.name}/{agent.name}"


def _only(by_agent: dict[str, Any]) -> Any:
    (value,) = by_agent.values()
    return value


async def _no_such_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    text = "there is no such path" if status == 404 else f"{request.method} is not possible here"
    return Refusal(status, f"{request.url.path}: {text}: see /docs").response(getattr(error, "headers", None))
