"""Bundles with fresh weights, and the application without Ray Serve around it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil
import torch
from ray import serve

from envs.registry import make_simulator
from serve.app import Application
from serve.config import Limits, SessionSettings
from serve.deployment import APPLICATION
from serve.metrics import Metrics
from serve.policies import HostedPolicy, Shelf, bundle_version
from serve.sessions import SessionStore
from serve.tokens import StateTokens
from trainers.config import make_run_config
from trainers.export import export_bundle
from trainers.learned_policy import build_module, export_policy

LEARNED = {
    "dialogue": ("mappo", "dialogue/d8", []),
    "vehicular": ("idmac", "vehicular/v50-e6", ["scenario.num_vehicles=8", "scenario.horizon_slots=6"]),
    "dag": ("coma", "dag/t5", []),
    "velo": ("dlrs", "velo/n3", []),
    "games": ("vdn", "games/two-step", []),
    "spread": ("mappo", "pettingzoo:mpe2.simple_spread_v3", ["scenario.kwargs.max_cycles=5"]),
}
HEURISTICS = {"greedy": "vehicular/v50-e6", "random": "games/two-step"}


def make_bundle(folder: Path, algorithm: str, scenario: str, overrides: list[str], seed: int = 0) -> Path:
    """A policy with fresh weights, exported twice: as a training does, and as `edgeflock export` does."""
    config = make_run_config(algorithm, scenario, overrides=overrides)
    simulator = make_simulator(config.scenario)
    spec = simulator.spec
    simulator.close()
    torch.manual_seed(seed)
    module = build_module(config.name, spec, config.network, config.algorithm)
    export_policy(config, spec, module, folder / "made", {"env_steps": 0})
    export_bundle(folder / "made", folder / "bundle")
    return folder / "bundle"


def replicas(server: int | None = None) -> list[psutil.Process]:
    """The processes that decide, of the server with this process number or in this process."""
    titles = {one: one.as_dict(["cmdline"])["cmdline"] or [] for one in psutil.Process(server).children(recursive=True)}
    return [one for one, title in titles.items() if "ServeReplica:edgeflock:Policies" in " ".join(title)]


def ready_replicas() -> int:
    """How many take requests, as far as Ray Serve knows."""
    return serve.status().applications[APPLICATION].deployments["Policies"].replica_states.get("RUNNING", 0)


class LocalSessions:
    """The store in the same process."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any) -> Any:
            return getattr(self._store, name)(*arguments)

        return call


class SharedShelf(Shelf):
    """Loads every bundle once for all tests."""

    loaded: ClassVar[dict[tuple[str, Path, str], HostedPolicy]] = {}

    def _hosted(self, name: str, folder: Path) -> HostedPolicy:
        key = name, folder, bundle_version(folder)
        if known := self.find(name, key[-1]):
            return known
        if key not in self.loaded:
            self.loaded[key] = super()._hosted(name, folder)
        hosted = copy.copy(self.loaded[key])
        hosted._metrics, hosted._agents = self._metrics, {}
        hosted._batcher = hosted._make_batcher(self._largest_batch)
        return hosted


class Server:
    """The application and what it is made of, asked as over HTTP."""

    def __init__(self, sources: dict[str, Path], bearer: str | None = None, sessions: int = 3, **limits: Any) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.limits = Limits(**{"wait_s": 60.0, **limits})  # however busy the machine is
        self.shelf = SharedShelf(self.metrics, self.limits.batch)
        self.shelf.load(sources)
        self.tokens = StateTokens(b"k" * 32)
        store = SessionStore(600.0, sessions, lambda: self.now)
        self.application = Application(
            self.shelf, self.tokens, LocalSessions(store), self.metrics, self.limits, SessionSettings(), bearer
        )
        transport = httpx.ASGITransport(self.application, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://edge")

    async def decide(self, name: str, body: Any) -> httpx.Response:
        return await self.client.post(f"/v1/policies/{name}/decide", json=body)

    def example(self, name: str) -> dict[str, Any]:
        return self.shelf.newest[name].example
