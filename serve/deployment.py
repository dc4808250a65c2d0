"""The Ray Serve application: replicas that decide, and one place for sessions.

`serve deploy` and `edgeflock serve` deploy the same description (`description`): which policies are served is the deployment's
`user_config`, until an update (`serve.exchange`) puts others in their place.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from typing import Any

import torch
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from envs.errors import InputError
from envs.registry import parse
from serve import exchange
from serve.app import Application
from serve.config import PolicySources, Scaling, ServerSettings, read_settings, read_token
from serve.metrics import FOLDER, Metrics
from serve.policies import Shelf
from serve.sessions import RemoteSessions, SessionService
from serve.tokens import StateTokens, read_key

APPLICATION = "edgeflock"
IMPORT_PATH = "serve.deployment:build"

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""Of a replica's process. What is slow is handed to a thread here (`serve.batching`), so Ray need not run all of it in one, and
requests need not go from Ray's event loop to another one and back."""

SWITCH_S = 0.0005
"""How soon the thread that answers gets its turn while another one loads a bundle; Python's own 5 ms are five requests."""

log = logging.getLogger("ray.serve")  # goes into the replica's log


@serve.deployment
@serve.ingress()
class Policies:
    """One replica: the application around a shelf."""

    def __init__(self, settings: dict[str, Any], sessions: DeploymentHandle) -> None:
        torch.set_num_threads(1)  # the networks are small
        sys.setswitchinterval(SWITCH_S)
        self._settings = read_settings(settings)
        self._update: exchange.Update | None = None
        self._loading = asyncio.Lock()
        os.makedirs(self._settings.metrics_folder, exist_ok=True)  # on each node of a cluster
        metrics = Metrics()
        self._shelf = Shelf(metrics, self._settings.limits.batch)
        self._application = Application(
            self._shelf,
            StateTokens(read_key(self._settings.key_file)),
            RemoteSessions(sessions),
            metrics,
            self._settings.limits,
            self._settings.sessions,
            read_token(self._settings.token_file),
        )

    def __serve_build_asgi_app__(self) -> Application:
        return self._application

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serves what was deployed, or what an update has put in its place."""
        self._deployed = parse(PolicySources, user_config, "policies")
        await asyncio.to_thread(exchange.end_of_others, self._deployed)
        await self.refresh()

    async def prepare(self, policies: dict[str, str]) -> None:
        """Loads what an update is going to serve. Episodes that another replica begins with it can go on here.

        Raises:
            InputError: A bundle is unusable.
        """
        sources = parse(PolicySources, {"policies": policies}, "policies")
        async with self._loading:
            with self._application.patience():
                await asyncio.to_thread(self._shelf.stage, sources.policies)

    async def refresh(self) -> None:
        """Loads what is new; who asks meanwhile is answered by what there was.

        Raises:
            InputError: A bundle is unusable; nothing has changed then.
        """
        async with self._loading:
            self._update = await asyncio.to_thread(exchange.of, self._deployed)
            sources = self._deployed if self._update is None else self._update.served
            with self._application.patience():
                await asyncio.to_thread(self._shelf.load, sources.policies)
        gc.collect()
        gc.freeze()  # requests are many small lists: without this the collector walks through torch and Ray again and again

    async def check_health(self) -> None:
        """Takes over an update that was made while this replica was starting, when nobody could tell it."""
        if not self._loading.locked():
            self._catching_up = asyncio.create_task(self._catch_up())  # in its own time: health has a limit

    async def _catch_up(self) -> None:
        try:
            if await asyncio.to_thread(exchange.of, self._deployed) != self._update:  # one that failed is not tried again
                await self.refresh()
        except (RuntimeError, RayError, InputError) as error:  # it can still decide
            log.warning("an update of the policies cannot be taken over: %s", error)


def build(args: dict[str, Any]) -> serve.Application:
    """The application of these `ServerSettings`; its policies come as `user_config`."""
    settings = read_settings(args)
    sessions = SessionService.bind(settings.sessions.ttl_s, settings.sessions.capacity)  # type: ignore[attr-defined]
    return Policies.bind(settings.model_dump(mode="json"), sessions)  # type: ignore[attr-defined]


def description(sources: PolicySources, settings: ServerSettings, scaling: Scaling, host: str, port: int) -> dict[str, Any]:
    """The whole application as Ray's `serve deploy` takes it (`ServeDeploySchema`)."""
    limits = settings.limits
    policies: dict[str, Any] = {
        "name": "Policies",
        "user_config": sources.model_dump(mode="json"),
        "max_ongoing_requests": limits.ongoing,
        "max_queued_requests": limits.queued,
        "backpressure_config": {"status_code": 503, "retry_after_s": limits.retry_after_s},
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_timeout_s": limits.time_s + 5.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "ray_actor_options": {
            "num_cpus": scaling.num_cpus,
            "runtime_env": {"env_vars": {FOLDER: str(settings.metrics_folder), **ENVIRONMENT}},
        },
    }
    if scaling.max_replicas is None:
        policies["num_replicas"] = scaling.replicas
    else:
        policies["autoscaling_config"] = {
            "min_replicas": scaling.replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing,
            "upscale_delay_s": scaling.upscale_s,
            "downscale_delay_s": scaling.downscale_s,
        }
    application = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "args": settings.model_dump(mode="json"),
        "deployments": [policies, {"name": "SessionService"}],
    }
    return {
        "proxy_location": "EveryNode",  # wherever replicas are: a cluster goes on answering without its head
        "http_options": {"host": host, "port": port, "request_timeout_s": limits.time_s + 5.0, "keep_alive_timeout_s": 60},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [application],
    }


def prepare(settings: ServerSettings, sources: PolicySources) -> None:
    """Makes what replicas need, and loads everything once, so that what is wrong is known before anything starts.

    Raises:
        InputError: A bundle, the token file or the key file is unusable.
    """
    read_token(settings.token_file)
    Shelf(Metrics(), settings.limits.batch).load(sources.policies)
    read_key(settings.key_file)
    os.makedirs(settings.metrics_folder, exist_ok=True)
