"""The command `edgeflock sweep`: what it shows while trials run, and what it says at the end."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from trainers.last_words import last_words
from trainers.storage_cli import RESUME_OR_START, STORAGE, STORAGE_WAIT

if TYPE_CHECKING:
    from trainers.sweep import Standing, State
    from trainers.sweep_config import SweepConfig

console = Console()


@click.command()
@click.argument("file")
@click.option("--quick", is_flag=True, help="The file's small size, to see that it works.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run folders. Default: runs/NAME.")
@click.option("--resume", is_flag=True, help="Finish a sweep that was interrupted.")
@click.option("--track", metavar="NAME", help="Log to wandb or mlflow too, where that package is installed.")
@RESUME_OR_START
@STORAGE
@STORAGE_WAIT
@click.option("--dry-run", is_flag=True, help="Print the trials and what they cost, and start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable lines instead of tables and bars.")
def sweep(
    file: str,
    quick: bool,
    out: Path | None,
    resume: bool,
    resume_or_start: bool,
    track: str | None,
    storage: str | None,
    storage_wait: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train every combination of a sweep file, or of a ready sweep (trainers/sweeps), on Ray Tune.

    \b
    edgeflock sweep vehicular-comparison --quick
    edgeflock sweep my-sweep.yaml --out runs/mine --resume
    edgeflock report runs/mine
    """
    from trainers.sweep_config import cost, find_sweep, load_sweep, make_trials

    config = load_sweep(find_sweep(file), quick)
    trials = make_trials(config)
    out = out or Path("runs") / config.name
    _say(as_json, f"{config.name}: {cost(config, trials)}", {"sweep": config.name, "cost": cost(config, trials)})
    if dry_run:
        for trial in trials:
            _say(as_json, f"  {trial.name}", {"trial": trial.name, "set": trial.overrides})
        return
    import ray

    from trainers.storage import Storage
    from trainers.sweep import SWEEP, run_sweep

    place = None if storage is None else Storage(storage) / out.absolute().name
    resume = resume or (resume_or_start and ((out / SWEEP).exists() or (place is not None and place.exists(SWEEP))))
    kept = [] if storage is None else ["--storage", storage]
    again = shlex.join(["edgeflock", "sweep", file, *["--quick"] * quick, "--out", str(out), "--resume", *kept])
    died = last_words(f"edgeflock: the sweep died with its node or was killed; to go on: {again}")
    with _shown(config, as_json) as report, died:
        standings = run_sweep(config, out, report, resume, track, place, storage_wait)
        ray.shutdown()  # what it prints last is not for stdout either
    _summarise(config, standings, as_json)
    states = Counter(standing.state for standing in standings)
    if states["waiting"]:
        _say(as_json, f"interrupted; to go on: {again}", {"interrupted": str(out), "resume": again})
        raise SystemExit(130)
    hint = f"edgeflock report {place.where if place else out} --out {out}/report"
    _say(as_json, f"{_counts(states)}; report: {hint}", {"sweep": str(out), "states": dict(states)})
    if states["failed"]:
        raise SystemExit(1)


@contextmanager
def _shown(config: SweepConfig, as_json: bool) -> Iterator[Any]:
    """A reporter of events: a bar over all trials' budgets, or a JSON line for each event."""
    if as_json:
        lines = sys.stdout
        with redirect_stdout(sys.stderr):  # Ray prints to stdout what it has to say of processes that died
            yield lambda event, of, standings: click.echo(json.dumps(_event(event, of)), file=lines)
        return
    words = TextColumn("{task.fields[words]}")
    if not console.is_terminal:  # a file, or a job's log
        yield lambda event, of, standings: None if event == "result" else click.echo(f"{of.trial.name}: {event}")
        return
    progress = Progress(TextColumn(config.name), BarColumn(), words, TimeRemainingColumn(), console=console)
    task = progress.add_task(config.name, total=1.0, words="starting")

    def report(event: str, of: Standing, standings: Mapping[str, Standing]) -> None:
        progress.start()  # not before the first event: a complaint about bad input stands alone
        shares = [100.0 if standing.state in ("stopped", "failed") else standing.share for standing in standings.values()]
        states = Counter(standing.state for standing in standings.values())
        words = " · ".join(filter(None, (_counts(states), _best_words(config, list(standings.values())))))
        progress.update(task, completed=sum(shares), total=100.0 * len(shares), words=words)
        if event in ("retried", "failed"):
            progress.console.print(f"{of.trial.name}: {event}")

    try:
        yield report
    finally:
        progress.stop()


def _event(event: str, of: Standing) -> dict[str, Any]:
    return {"event": event, "trial": of.trial.name, "share": round(of.share, 1), "metric": of.metric}


def _counts(states: Counter[State]) -> str:
    shown: tuple[State, ...] = ("finished", "running", "stopped", "failed")
    words = [f"{states[state]} {state}" for state in shown if states[state]]
    return f"{', '.join(words) or 'none finished'} of {sum(states.values())}"


def _ranked(config: SweepConfig, standings: list[Standing]) -> dict[str, list[Standing]]:
    """Scenario to the trials that have a metric, the best first."""
    ranked: dict[str, list[Standing]] = {}
    for standing in sorted(
        (standing for standing in standings if standing.metric is not None),
        key=lambda standing: standing.metric or 0.0,
        reverse=config.mode == "max",
    ):
        ranked.setdefault(standing.trial.place, []).append(standing)
    return ranked


def _best_words(config: SweepConfig, standings: list[Standing]) -> str:
    ranked = _ranked(config, standings)
    return "" if not ranked else "best " + ", ".join(f"{of[0].trial.name} {of[0].metric:.4g}" for of in ranked.values())


def _summarise(config: SweepConfig, standings: list[Standing], as_json: bool) -> None:
    """The trials of each scenario, by their last metric."""
    for scenario, ranked in _ranked(config, standings).items():
        if as_json:
            for place, standing in enumerate(ranked, start=1):
                click.echo(json.dumps({"place": place, **standing.record()}))
            continue
        table = Table(title=f"{scenario}: {config.metric}", title_justify="left", box=None)
        table.add_column("trial")
        table.add_column(config.metric, justify="right")
        table.add_column("state")
        for standing in ranked:
            table.add_row(standing.trial.name, f"{standing.metric:.4f}", standing.state)
        console.print(table)


def _say(as_json: bool, text: str, record: dict[str, Any]) -> None:
    if as_json:
        click.echo(json.dumps(record))
    else:
        console.print(text, highlight=False, soft_wrap=True)
