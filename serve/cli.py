"""`edgeflock serve` and `edgeflock serve-update`."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml

from envs.errors import InputError
from envs.registry import parse
from serve.config import Limits, PolicySources, Scaling, ServerSettings, SessionSettings, parse_sources

STATE = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "edgeflock"
ADDRESS = STATE / "address"
"""File with the address of the Ray that the last server started."""

ALL_INTERFACES = ("0.0.0.0", "::")


@click.command("serve")
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; others than this machine need 0.0.0.0."
)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="Processes that decide.")
@click.option("--max-replicas", type=click.IntRange(1), help="Scale by load, from --replicas up to this.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with the bearer token that clients have to show.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    help="File with the key for state tokens; made if missing. Default: one of yours.",
)
@click.option(
    "--proxy", type=click.Choice(["default", "haproxy"]), default="default", show_default=True, help="What is in front."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="limits.*, sessions.* or scaling.*, e.g. limits.time_s=2"
)
@click.option(
    "--write-config", type=click.Path(path_type=Path), help="Write a file for Ray's `serve deploy` instead of serving."
)
def serve_command(
    bundles: tuple[str, ...],
    host: str,
    port: int,
    replicas: int,
    max_replicas: int | None,
    token_file: Path | None,
    key_file: Path | None,
    proxy: str,
    overrides: tuple[str, ...],
    write_config: Path | None,
) -> None:
    """Decide over HTTP with the policies of BUNDLES (see `edgeflock export`).

    \b
    edgeflock serve bundles/idmac fallback=bundles/greedy --token-file token.txt
    curl localhost:8000/v1/policies
    """
    check_exposure(host, proxy, token_file)
    sources = PolicySources(policies=parse_sources(list(bundles)))
    scaling = make_scaling(replicas, max_replicas, list(overrides))
    if max_replicas is not None and max_replicas < replicas:
        raise InputError(f"--max-replicas {max_replicas}: expected at least --replicas, {replicas}")
    settings = make_settings(token_file, key_file or STATE / "state.key", STATE / f"metrics-{port}", list(overrides))
    if proxy == "haproxy":
        use_haproxy()
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")  # it goes to Ray's log files; has to be said before the import
    if host not in ALL_INTERFACES:
        keep_to_loopback()
    from serve import deployment, running

    whole = deployment.description(sources, settings, scaling, host, port)
    if write_config is not None:
        write_config.write_text(yaml.safe_dump(whole, sort_keys=False))
        click.echo(f"written: {write_config}")
        return
    shutil.rmtree(settings.metrics_folder, ignore_errors=True)  # of an earlier server
    deployment.prepare(settings, sources)
    cores = math.ceil(max(replicas, max_replicas or 0) * scaling.num_cpus)
    with running.server(whole, cores) as address, noted(address):
        names = ", ".join(sources.policies)
        click.echo(f"serving {names} at http://{host}:{port} (page /, API /docs, metrics /metrics); Ctrl-C ends it")
        click.echo(f"to change what is served: edgeflock serve-update --address {address} BUNDLE")
        wait_for_signal()


@click.command("serve-update")
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--address", help="Of the Ray that serves. Default: of the last server that you started here, or what Ray finds.")
def update_command(bundles: tuple[str, ...], address: str | None) -> None:
    """Replace or add policies of a running server, without a failed request.

    Episodes that began with the old version of a policy go on with it; new ones get the new version.
    """
    sources = parse_sources(list(bundles))
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    show_token()
    address = address or (ADDRESS.read_text() if ADDRESS.exists() else "auto")
    if address.startswith(("127.", "localhost:")):
        keep_to_loopback()
    from serve import running
    from serve.metrics import Metrics
    from serve.policies import Shelf

    Shelf(Metrics(), 1).load(sources)  # what is wrong is known before anything changes
    names = running.update(sources, address)
    click.echo(f"serving {', '.join(names)}")


def check_exposure(host: str, proxy: str, token_file: Path | None) -> None:
    """Raises InputError where the server would be open to others without a word about it."""
    if proxy == "haproxy" and host not in ALL_INTERFACES:
        raise InputError(
            f"--proxy haproxy --host {host}: Ray's HAProxy shows its statistics on all interfaces: expected --host 0.0.0.0, "
            "if that is meant"
        )
    if host in ALL_INTERFACES and token_file is None:
        click.echo("warning: everybody who reaches this machine can ask for decisions: consider --token-file", err=True)


def use_haproxy() -> None:
    """Has to come before Ray Serve is imported, which reads its environment then."""
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    os.environ.setdefault("RAY_SERVE_HAPROXY_NBTHREAD", "1")
    # HAProxy forgets a replica that ends within a second; Ray would keep it for 30.
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "3")
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response")  # a decision can be asked for again


@contextmanager
def noted(address: str) -> Iterator[None]:
    """The address is there for `serve-update` while the server runs."""
    STATE.mkdir(parents=True, exist_ok=True)
    ADDRESS.write_text(address)
    try:
        yield
    finally:
        if ADDRESS.exists() and ADDRESS.read_text() == address:
            ADDRESS.unlink()


def keep_to_loopback() -> None:
    """Has to come before Ray is imported, which listens on all interfaces otherwise."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def show_token() -> None:
    """Has to come before Ray is imported, which otherwise shows its user's token to no address that it is given."""
    kept = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_TOKEN" in os.environ or kept.exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def make_settings(token_file: Path | None, key_file: Path, metrics_folder: Path, overrides: list[str]) -> ServerSettings:
    """Settings of the command line.

    Raises:
        InputError: An override is none of limits.*, sessions.* and scaling.*, or has an impossible value.
    """
    values = sections(overrides)
    return ServerSettings(
        token_file=token_file and token_file.resolve(),
        key_file=key_file.resolve(),
        metrics_folder=metrics_folder.resolve(),
        limits=parse(Limits, values["limits"], "--set limits"),
        sessions=parse(SessionSettings, values["sessions"], "--set sessions"),
    )


def make_scaling(replicas: int, max_replicas: int | None, overrides: list[str]) -> Scaling:
    """Replicas of the command line; raises InputError as `make_settings` does."""
    values, options = sections(overrides)["scaling"], {"replicas": replicas, "max_replicas": max_replicas}
    for name in options.keys() & values.keys():
        raise InputError(f"--set scaling.{name}: expected --{name.replace('_', '-')} instead")
    return parse(Scaling, {**values, **options}, "--set scaling")


def sections(overrides: list[str]) -> dict[str, dict[str, Any]]:
    """`["limits.time_s=2"]` to nested values by section."""
    values: dict[str, dict[str, Any]] = {"limits": {}, "sessions": {}, "scaling": {}}
    for assignment in overrides:
        key, equals, text = assignment.partition("=")
        section, _, name = key.partition(".")
        if not equals or section not in values or not name:
            raise InputError(f"--set {assignment!r}: expected one of {', '.join(f'{name}.NAME=VALUE' for name in values)}")
        values[section][name] = yaml.safe_load(text)
    return values


def wait_for_signal() -> None:
    """Until SIGINT or SIGTERM."""
    came = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: came.set())
    came.wait()
