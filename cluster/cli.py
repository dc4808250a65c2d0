"""`edgeflock submit` and `edgeflock jobs`."""

from __future__ import annotations

import os
import shlex
import tempfile
import uuid
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from envs.errors import InputError
from envs.registry import make_scenario
from trainers.storage_cli import JOB_STORAGE

if TYPE_CHECKING:
    from cluster.jobs import Client

COMMANDS = ("train", "sweep", "compare", "evaluate", "report", "export")

console = Console()


def connection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options `--address` and `--token-file`."""
    address = click.option(
        "--address",
        envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
        default="http://127.0.0.1:8265",
        show_default=True,
        help="Of the cluster's dashboard.",
    )
    token_file = click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        help="File with the cluster's token. Default: as Ray finds it (RAY_AUTH_TOKEN, ~/.ray/auth_token).",
    )
    return address(token_file(command))


@click.command()
@connection
@click.option("--name", help="Of the job, once in a cluster. Default: made from the command.")
@click.option("--include", multiple=True, type=click.Path(path_type=Path), help="A file or folder that the command reads.")
@click.option("--env", multiple=True, metavar="KEY=VALUE", help="Environment variable of the job. Repeatable.")
@click.option("--pip", multiple=True, metavar="PACKAGE", help="Install it for the job (wandb==1.2.3). Repeatable.")
@click.option("--no-wait", is_flag=True, help="Do not follow the job.")
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND…")
def submit(
    address: str,
    token_file: Path | None,
    name: str | None,
    include: tuple[Path, ...],
    env: tuple[str, ...],
    pip: tuple[str, ...],
    no_wait: bool,
    command: tuple[str, ...],
) -> None:
    """Run an edgeflock COMMAND (train, sweep, compare, evaluate, report, export) as a job of a Ray cluster.

    \b
    edgeflock submit -- train idmac --scenario vehicular/v50-e6 --runners 4
    edgeflock submit --address http://head:8265 -- sweep vehicular-v50 --storage s3://bucket/edgeflock
    edgeflock submit --include city.xml.gz -- train idmac --scenario vehicular/v50-e6 --traces city.xml.gz

    The job takes along the project's code, and files named by --include; what else it reads has to be on the cluster's
    storage. The command is checked before anything is sent. What it writes is kept where its --storage says (or
    EDGEFLOCK_STORAGE, here or on the cluster), else in ~/edgeflock on the cluster's head. Logs are shown as they come;
    the exit code is the job's. Ctrl-C stops following, not the job.
    """
    from cluster import jobs

    check_command(command)
    variables = _variables(env)
    name = name or f"{'-'.join(command[:2])}-{uuid.uuid4().hex[:6]}".replace("/", "-").replace(":", "-")
    with tempfile.TemporaryDirectory() as folder:
        _submit(jobs.connect(address, token_file), Path(folder) / "job.zip", name, include, variables, pip, command)
    again = [] if address == jobs.DEFAULT_ADDRESS else ["--address", address]
    click.echo(f"submitted: {name}", err=True)
    if no_wait:
        click.echo(_hints(name, again), err=True)
        return
    raise SystemExit(_follow(jobs.connect(address, token_file), name, again))


@click.group(invoke_without_command=True)
@connection
@click.pass_context
def jobs(context: click.Context, address: str, token_file: Path | None) -> None:
    """List the jobs of a Ray cluster; stop one, or show its logs."""
    from cluster.jobs import connect

    client = connect(address, token_file)
    context.obj = client, [] if address == "http://127.0.0.1:8265" else ["--address", address]
    if context.invoked_subcommand is not None:
        return
    table = Table(box=None)
    for column in ("job", "status", "started", "command"):
        table.add_column(column, overflow="fold")
    for info in sorted(client.list_jobs(), key=lambda info: info.start_time or 0):
        if info.submission_id is not None:
            table.add_row(info.submission_id, str(info.status.value), _clock(info.start_time), info.entrypoint)
    console.print(table)


@jobs.command("stop")
@click.argument("job")
@click.pass_obj
def stop_command(connected: tuple[Client, list[str]], job: str) -> None:
    """Tell JOB to stop; a training saves a checkpoint first."""
    client, _ = connected
    _check_known(client, job)
    click.echo(f"{job}: told to stop" if client.stop_job(job) else f"{job}: has ended already")


@jobs.command("logs")
@click.argument("job")
@click.option("--follow", is_flag=True, help="Until the job ends; the exit code is the job's.")
@click.pass_obj
def logs_command(connected: tuple[Client, list[str]], job: str, follow: bool) -> None:
    """Show what JOB has printed."""
    client, again = connected
    _check_known(client, job)
    if follow:
        raise SystemExit(_follow(client, job, again))
    click.echo(client.get_job_logs(job), nl=False)


def check_command(words: tuple[str, ...]) -> None:
    """Finds out here what can be wrong with a command, by its own parser and its `--dry-run`.

    Raises:
        InputError, click.ClickException: It cannot run.
    """
    from trainers.cli import cli

    if words[0] not in COMMANDS:
        raise InputError(f"submit -- {words[0]}: expected one of {', '.join(COMMANDS)}")
    command = cli.commands[words[0]]
    with command.make_context(words[0], list(words[1:])) as context:
        given = context.params
        if "dry_run" in given:
            if not given["resume"]:  # else the run folder says what there is
                with redirect_stdout(StringIO()):
                    context.invoke(command, **{**given, "dry_run": True})
        elif given.get("scenario"):
            make_scenario(given["scenario"])


def _submit(
    client: Client,
    package: Path,
    name: str,
    include: tuple[Path, ...],
    variables: dict[str, str],
    pip: tuple[str, ...],
    command: tuple[str, ...],
) -> None:
    from cluster.jobs import explained
    from cluster.packing import check_packed, pack

    if any(info.submission_id == name for info in client.list_jobs()):
        raise InputError(f"--name {name}: a job of this name is there already: choose another")
    check_packed(command, pack(package, name, include))
    environment: dict[str, Any] = {"working_dir": str(package), "env_vars": variables}
    if pip:
        environment["pip"] = list(pip)
    with explained(client.get_address()):
        client.submit_job(
            entrypoint=shlex.join(["python", "-m", "trainers", *command]), submission_id=name, runtime_env=environment
        )


def _variables(env: tuple[str, ...]) -> dict[str, str]:
    from cluster.jobs import STOP_S

    variables = {
        **{name: os.environ[name] for name in ["EDGEFLOCK_STORAGE"] if name in os.environ},
        JOB_STORAGE: "~/edgeflock",  # in the home of the head's user: the job's own folder goes with it
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S),
        "PYTHONUNBUFFERED": "1",
    }
    for assignment in env:
        key, equals, value = assignment.partition("=")
        if not key or not equals:
            raise InputError(f"--env {assignment!r}: expected KEY=VALUE")
        variables[key] = value
    return variables


def _follow(client: Client, name: str, again: list[str]) -> int:
    """Shows the logs until the job ends; its exit code."""
    from cluster.jobs import follow, last_line

    try:
        info = follow(client, name, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(f"\nthe job goes on. {_hints(name, again)}", err=True)
        return 130
    if info.status.value == "SUCCEEDED":
        return 0
    reason = last_line(info, client.get_job_logs(name))
    click.echo(f"edgeflock: {name} {info.status.value.lower()}: {reason.removeprefix('edgeflock: ')}", err=True)
    return info.driver_exit_code or 1


def _hints(name: str, again: list[str]) -> str:
    jobs = shlex.join(["edgeflock", "jobs", *again])
    return f"To follow it: {jobs} logs {name} --follow; to stop it: {jobs} stop {name}"


def _check_known(client: Client, job: str) -> None:
    if all(info.submission_id != job for info in client.list_jobs()):
        raise InputError(f"no job {job} in the cluster at {client.get_address()}: `edgeflock jobs` lists them")


def _clock(milliseconds: int | None) -> str:
    return "" if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S")
