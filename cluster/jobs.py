"""Jobs of a Ray cluster, through the HTTP interface of its head (Ray's dashboard)."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import ray
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from envs.errors import Failure, InputError
from serve.config import read_token

for notices in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):  # uploads and closed connections
    logging.getLogger(notices).setLevel(logging.ERROR)

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
REQUEST_S = 60.0
"""Longest time for one request; the head unpacks nothing and starts nothing in it."""

PATIENCE_S = 60.0
"""How long a cluster that no longer answers may take to come back."""

ALIVE_S = 15.0
"""How often a cluster is asked whether it is still there while a job is silent."""

STOP_S = 120
"""Seconds that a job has for its last checkpoint when it is told to stop."""


class Client(JobSubmissionClient):
    """Ray's client with a limit for every request."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=REQUEST_S, **options)


def connect(address: str, token_file: Path | None) -> Client:
    """A client of the cluster whose dashboard is at this address.

    Raises:
        InputError: No cluster is there, it wants another token, or it runs another version of Ray.
    """
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--address {address}: expected the address of the cluster's dashboard, like {DEFAULT_ADDRESS}")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would let them win over what it is told
        os.environ.pop(name, None)
    token = _token(token_file)
    with explained(address):
        client = Client(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    if client._server_ray_version != ray.__version__:
        raise InputError(
            f"the cluster at {address} runs Ray {client._server_ray_version}, expected {ray.__version__}: "
            "start it from cluster/Dockerfile or with requirements.txt"
        )
    with explained(address):
        client.list_jobs()  # the version is told to everybody, this is not
    return client


def _token(token_file: Path | None) -> str | None:
    """The token in the file, else the one that Ray itself would find."""
    if token_file is None:
        if token := os.environ.get("RAY_AUTH_TOKEN"):
            return token
        usual = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        token_file = usual if usual.exists() else None
    return read_token(token_file)


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turns what Ray's client raises into one line.

    Raises:
        InputError: Nobody answers, somebody else does, or the token is missing or wrong.
        Failure: The cluster refuses for another reason.
    """
    try:
        yield
    except AuthenticationError as error:
        missing = any(words in str(error) for words in ("required", "couldn't find"))  # of the cluster, of Ray here
        what = "wants a token" if missing else "does not take this token"
        raise InputError(
            f"the cluster at {address} {what}: give --token-file FILE with the one of its head (`ray get-auth-token` there)"
        ) from None
    except (ConnectionError, requests.ConnectionError, requests.Timeout):
        raise InputError(
            f"no Ray cluster answers at {address}: start one with `ray start --head`, or give --address http://HOST:8265"
        ) from None
    except (requests.RequestException, KeyError):
        raise InputError(_no_cluster(address)) from None
    except RuntimeError as error:
        if "404" in str(error) and "Version check" in str(error):
            raise InputError(_no_cluster(address)) from None
        if "No available agent" in str(error):
            raise Failure(
                f"the cluster at {address} cannot take jobs: no node's agent answers; it may still be starting, or another Ray "
                "has its port: start the head with --dashboard-agent-listen-port=PORT"
            ) from None
        lines = str(error).strip().splitlines()
        raise Failure(f"the cluster at {address} refuses: {lines[-1] if lines else type(error).__name__}") from None


def _no_cluster(address: str) -> str:
    return f"what answers at {address} is no Ray cluster: expected its dashboard, usually port 8265"


def follow(client: Client, job: str, write: Callable[[str], Any], patience_s: float = PATIENCE_S) -> JobDetails:
    """Passes on a job's logs as they come, until it ends; a lost connection is made anew.

    Raises:
        Failure: The cluster has not answered for the whole of `patience_s`.
    """
    logs = _Logs(client, job, write)
    answered = time.monotonic()
    while True:
        try:
            asyncio.run(logs.read())
            info = client.get_job_info(job)
            answered = time.monotonic()
            if info.status.is_terminal():
                return info
        except (RuntimeError, OSError, aiohttp.ClientError) as error:  # of requests' errors, all are OSErrors
            if time.monotonic() - answered > patience_s:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise Failure(
                    f"{job}: the cluster has not answered for {patience_s:g} s ({reason}); if its head is lost, so is the job: "
                    "submit it again with --resume"
                ) from None
        time.sleep(0.5)


class _Logs:
    """A job's logs, of which Ray begins at the start whenever somebody connects."""

    def __init__(self, client: Client, job: str, write: Callable[[str], Any]) -> None:
        self._client, self._job, self._write = client, job, write
        self._shown = 0

    async def read(self) -> None:
        """Passes on what is new, until the job or the connection ends, or the cluster no longer answers."""
        tail = asyncio.ensure_future(self._tail())
        try:
            while not tail.done():
                await asyncio.wait({tail}, timeout=ALIVE_S)
                if not tail.done():  # a job that has nothing to say, or a cluster that is gone without a word
                    await asyncio.to_thread(self._client.get_job_info, self._job)
            await tail
        finally:
            tail.cancel()

    async def _tail(self) -> None:
        before = 0
        async for text in self._client.tail_job_logs(self._job):
            new = text[max(0, self._shown - before) :]
            before += len(text)
            if new:
                self._write(new)
                self._shown = before


def last_line(info: JobDetails, logs: str) -> str:
    """Why a job failed: the last line that it wrote, or what Ray says of it."""
    lines = [line.strip() for line in (logs or info.message or "").splitlines() if line.strip()]
    return lines[-1] if lines else str(info.status)
