"""Settings of the server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from envs.errors import InputError
from envs.registry import parse

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Limits(BaseModel):
    """How much one replica takes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    body_bytes: int = Field(16 * 2**20, ge=1024, description="largest request")
    time_s: float = Field(5.0, gt=0, description="longest time for a request, from its arrival to its answer")
    teams: int = Field(1024, ge=1, description="most teams of one request")
    batch: int = Field(256, ge=1, description="most requests that are decided together")
    wait_s: float = Field(0.1, ge=0, description="longest time to wait for requests before it; who would wait longer gets 503")
    ongoing: int = Field(256, ge=1, description="requests that a replica works on at once")
    queued: int = Field(64, ge=1, description="requests that may wait besides; more are refused with 503")
    retry_after_s: float = Field(1.0, ge=0, description="when whoever was refused should try again")


class SessionSettings(BaseModel):
    """State that the server keeps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttl_s: float = Field(600.0, gt=0, description="seconds after which an unused session is forgotten")
    capacity: int = Field(10_000, ge=1, description="sessions at one time; further ones are refused with 503")


class Scaling(BaseModel):
    """Replicas: as many as `replicas`, or by load between it and `max_replicas`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int = Field(1, ge=1, description="processes that decide")
    max_replicas: int | None = Field(None, ge=1, description="upper limit; null keeps their number fixed")
    target_ongoing: float = Field(8.0, gt=0, description="requests in each replica at which their number stays")
    upscale_s: float = Field(5.0, ge=0, description="seconds of a higher load after which replicas are added")
    downscale_s: float = Field(120.0, ge=0, description="seconds of a lower load after which replicas are taken away")
    num_cpus: float = Field(1.0, ge=0, description="CPU cores that Ray reserves for each")


class ServerSettings(BaseModel):
    """What a replica has to know besides its policies; a change of it restarts the replicas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token_file: Path | None = Field(None, description="file with the bearer token that clients have to show")
    key_file: Path = Field(description="file with the key that signs state tokens; made if there is none")
    metrics_folder: Path = Field(description="where the replicas of a machine put their figures together")
    limits: Limits = Limits()
    sessions: SessionSettings = SessionSettings()


def read_settings(values: dict[str, Any]) -> ServerSettings:
    """Raises InputError for anything that is no setting."""
    return parse(ServerSettings, values, "server settings")


class PolicySources(BaseModel):
    """Which policies are served: what an update changes while the server runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policies: dict[str, Path] = Field(min_length=1, description="name in the URL to bundle folder")

    @field_validator("policies")
    @classmethod
    def _names_fit_urls(cls, value: dict[str, Path]) -> dict[str, Path]:
        for name in value:
            if not NAME.fullmatch(name):
                raise ValueError(f"policy name {name!r}: expected letters, digits, - and _, at most 64")
        return value


def parse_sources(bundles: list[str]) -> dict[str, Path]:
    """`["a/idmac", "fast=b/greedy"]` to name -> folder; without a name it is the folder's.

    Raises:
        InputError: A name is unusable or given twice.
    """
    sources: dict[str, Path] = {}
    for text in bundles:
        name, equals, where = text.partition("=")
        folder = Path(where if equals else text).resolve()
        name = name if equals else folder.name
        if name in sources:
            raise InputError(f"{text!r}: the name {name!r} is taken: give another, NAME=BUNDLE")
        sources[name] = folder
    return parse(PolicySources, {"policies": sources}, "policies").policies


def read_token(path: Path | None) -> str | None:
    """The bearer token in a file; None without a file.

    Raises:
        InputError: The file cannot be read, or holds no token.
    """
    if path is None:
        return None
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a token file: {error}") from None
    if not token or not token.isascii() or any(c.isspace() for c in token):
        raise InputError(f"{path}: expected one token of ASCII characters without spaces")
    return token
