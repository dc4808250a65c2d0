"""State that the server keeps for clients who do not want to carry it: one place for all replicas, in memory, for a while."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ray import serve
from ray.serve.handle import DeploymentHandle


@dataclass(frozen=True)
class Session:
    """What a session remembers.

    Attributes:
        policy: Whom it belongs to.
        version: Of the policy that made `state`; empty before the first decision.
        state: See `serve.tokens.StateLayout`.
        revision: How many decisions it has seen.
    """

    policy: str
    version: str = ""
    state: bytes = b""
    revision: int = 0


class SessionStore:
    """Sessions by id, each until it has not been used for `ttl_s` seconds."""

    def __init__(self, ttl_s: float, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s, self._capacity, self._clock = ttl_s, capacity, clock
        self._sessions: OrderedDict[str, tuple[float, Session]] = OrderedDict()  # the least recently used first

    def create(self, policy: str) -> str | None:
        """A new session's id, or None while all places are taken."""
        self._drop_expired()
        if len(self._sessions) >= self._capacity:
            return None
        name = secrets.token_urlsafe(18)
        self._keep(name, Session(policy))
        return name

    def get(self, name: str) -> Session | None:
        """The session, if it is there and has not expired."""
        self._drop_expired()
        found = self._sessions.get(name)
        return found[1] if found else None

    def put(self, name: str, session: Session) -> bool:
        """Replaces a session by its next revision; False if it is gone or another decision was quicker."""
        before = self.get(name)
        if before is None or before.revision + 1 != session.revision:
            return False
        self._keep(name, session)
        return True

    def delete(self, name: str) -> bool:
        """Whether there was such a session."""
        return self._sessions.pop(name, None) is not None

    def _keep(self, name: str, session: Session) -> None:
        self._sessions[name] = (self._clock() + self._ttl_s, session)
        self._sessions.move_to_end(name)

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._sessions and next(iter(self._sessions.values()))[0] <= now:
            self._sessions.popitem(last=False)


class Sessions(Protocol):
    """The store as the server calls it, wherever it is."""

    async def create(self, policy: str) -> str | None: ...

    async def get(self, name: str) -> Session | None: ...

    async def put(self, name: str, session: Session) -> bool: ...

    async def delete(self, name: str) -> bool: ...


@serve.deployment(num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class SessionService(SessionStore):
    """The store in a process of its own."""


class RemoteSessions:
    """The store behind its deployment's handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def create(self, policy: str) -> str | None:
        return await self._handle.create.remote(policy)

    async def get(self, name: str) -> Session | None:
        return await self._handle.get.remote(name)

    async def put(self, name: str, session: Session) -> bool:
        return await self._handle.put.remote(name, session)

    async def delete(self, name: str) -> bool:
        return await self._handle.delete.remote(name)
