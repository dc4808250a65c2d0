"""Starts the application on a Ray of its own, and changes what a running one serves."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve._private.api import serve_start
from ray.serve._private.client import ServeControllerClient
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeDeploySchema

from envs.errors import InputError
from serve import exchange
from serve.config import PolicySources
from serve.deployment import APPLICATION
from trainers.remote import first_line

START_S = 180.0
"""Longest time until replicas are ready: importing torch and Ray on a busy machine takes its time."""


@contextmanager
def server(description: dict[str, Any], cores: int) -> Iterator[str]:
    """The application of `deployment.description`, ready to answer; it ends with the context. Yields the address of its Ray.

    Args:
        cores: That the replicas need on Ray's books, whatever the machine has.

    Raises:
        InputError: The port is taken, or the application does not start; the message is Ray's then.
    """
    check_free(description["http_options"]["host"], description["http_options"]["port"])
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        num_cpus=max(os.cpu_count() or 1, cores),
        _system_config={"worker_niceness": 0},
    )
    try:
        schema = ServeDeploySchema.model_validate(description)
        client = serve_start(
            http_options=schema.http_options.model_dump(),
            proxy_location=schema.proxy_location,
            global_logging_config=schema.logging_config,
        )
        client.deploy_apps(schema)
        wait_until_running(client)
        yield ray.get_runtime_context().gcs_address
    finally:
        serve.shutdown()
        ray.shutdown()


def check_free(host: str, port: int) -> None:
    """Raises InputError where nobody can listen."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise InputError(f"cannot listen at {host}, port {port}: {error.strerror}") from None


def check_reachable(address: str) -> None:
    """Raises InputError where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except (OSError, ValueError) as error:
        raise InputError(f"--address {address}: {error}: expected HOST:PORT of a Ray, as `edgeflock serve` prints it") from None


def wait_until_running(client: ServeControllerClient) -> None:
    """Raises InputError when the application cannot start, with the last line of the reason."""
    ends = time.monotonic() + START_S
    while time.monotonic() < ends:
        status = serve.status().applications.get(APPLICATION)
        if status is not None and status.status == "RUNNING":
            client.wait_for_proxies_serving(wait_for_applications_running=True)
            return
        if status is not None and status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            messages = [status.message, *(deployment.message for deployment in status.deployments.values())]
            lines = [line for message in messages for line in message.strip().splitlines()]
            raise InputError(f"the server does not start: {lines[-1] if lines else status.status}")
        time.sleep(0.1)
    raise InputError(f"the server did not start within {START_S:g} s")


def update(sources: dict[str, Path], address: str) -> list[str]:
    """Serves these policies besides (or instead of) those of the same names; returns all names.

    Raises:
        InputError: No such application runs at the address of this Ray cluster, or a replica cannot load a bundle.
    """
    if address != "auto":
        check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except ConnectionError:
        raise InputError(
            f"no Ray cluster runs at {address!r}, or it wants another token than ~/.ray/auth_token: start the server with "
            "`edgeflock serve`, and update it as the same user"
        ) from None
    try:
        return exchange_policies(sources)
    finally:
        ray.shutdown()


def exchange_policies(sources: dict[str, Path]) -> list[str]:
    """`update` on the cluster to which this process is connected. All replicas have loaded it before one of them serves it."""
    try:
        client = _get_global_client()
    except RayServeException:
        raise InputError("that Ray cluster serves nothing") from None
    found = client.get_serve_details()["applications"].get(APPLICATION)
    if found is None or not found["deployed_app_config"]:
        raise InputError(f"Ray Serve runs there without the application {APPLICATION!r}")
    (policies,) = [one for one in found["deployed_app_config"]["deployments"] if one["name"] == "Policies"]
    deployed = PolicySources.model_validate(policies["user_config"])
    before = exchange.of(deployed)
    together = PolicySources(policies=(deployed if before is None else before.served).policies | sources)
    try:
        tell_replicas("prepare", {name: str(folder) for name, folder in together.policies.items()})
    except Exception as error:
        reason = first_line(getattr(error, "cause", None) or error)  # of a replica's error Ray keeps what it was
        raise InputError(f"nothing has changed, as a replica cannot take this over: {reason}") from None
    exchange.write(exchange.Update(deployed=deployed, served=together))
    with suppress(RayActorError):  # one that dies now finds it when it starts again
        tell_replicas("refresh")
    return list(together.policies)


def tell_replicas(what: str, *arguments: Any) -> None:
    """Calls a method of all replicas that run, again where one of them dies meanwhile."""
    policies = serve.get_deployment_handle("Policies", APPLICATION)
    for last in (False, False, True):
        try:
            policies.broadcast(what, *arguments).results(timeout_s=START_S)
            return
        except RayActorError:
            if last:
                raise
