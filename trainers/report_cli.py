"""The command `edgeflock report`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click
import yaml
from rich.console import Console

from envs.team import episode_seeds
from trainers.progress_bar import progress_bar
from trainers.storage_cli import STORAGE, keep_results

REPORT_SEED = 20_270_000
"""Run seed of the episodes that are played: those of `edgeflock compare`."""

console = Console()


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for page, figures and marl_eval.json.")
@click.option("--episodes", type=click.IntRange(1), default=64, show_default=True, help="Of every policy, in every scenario.")
@click.option("--seed", type=click.IntRange(0), default=REPORT_SEED, show_default=True, help="Which episodes are played.")
@click.option("--claims", help="A paper's claims: a file, or a name in trainers/claims. Default: the sweep's, if RUNS is one.")
@click.option("--heuristics", help="Comma-separated, or `none`. Default: the sweep's, else all of the problem's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Evaluate with scenario.KEY=VALUE. Repeatable.")
@STORAGE
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable lines instead of a bar.")
def report(
    runs: tuple[str, ...],
    out: Path,
    episodes: int,
    seed: int,
    claims: str | None,
    heuristics: str | None,
    overrides: tuple[str, ...],
    storage: str | None,
    as_json: bool,
) -> None:
    """Turn run folders and sweeps (or their URIs) into one HTML page: figures, tables, statistics, and a paper's claims.

    \b
    edgeflock report runs/vehicular-comparison --out reports/vehicular
    edgeflock report runs/idmac-* runs/qmix-* --claims idmac --out reports/mine

    Interrupted, the same command goes on with what has not been played yet.
    """
    from trainers.played import Played
    from trainers.report import MARL_EVAL, play, read_hints, read_runs, write_marl_eval
    from trainers.report_claims import find_claims
    from trainers.report_page import write_report
    from trainers.storage import local_copy

    folders = [local_copy(run) for run in runs]
    hints = read_hints(folders)
    if overrides:
        parts = [assignment.partition("=") for assignment in overrides]
        given = {key: yaml.safe_load(value) for key, _, value in parts}
        hints = hints.model_copy(update={"evaluation": {**hints.evaluation, **given}})
    if heuristics is not None:
        hints = hints.model_copy(update={"heuristics": [] if heuristics == "none" else heuristics.split(",")})
    chosen = claims or hints.claims
    paper = find_claims(chosen) if chosen else None
    skipped: list[str] = []

    def warn(line: str) -> None:
        skipped.append(line)
        click.echo(f"edgeflock: {line}", err=True)

    finished = read_runs(folders, warn)
    played = Played(out)
    with progress_bar("playing", 1.0, console, as_json) as advance:

        def progress(done: float, total: int, what: str) -> None:
            advance(done / total, what)
            if as_json and done == int(done):
                click.echo(json.dumps({"playing": what, "done": int(done), "of": total}))

        groups = play(finished, episode_seeds(seed, 0, episodes), hints, progress, played=played)
    command = shlex.join(["edgeflock", *sys.argv[1:]])
    page = write_report(out, groups, paper, skipped, command, hints.evaluation)
    write_marl_eval(groups, out / MARL_EVAL)
    played.forget()
    keep_results(out, storage)
    if as_json:
        click.echo(json.dumps({"page": str(page), "runs": len(finished), "skipped": len(skipped)}))
    else:
        for group in groups:
            console.print(group.comparison)
        console.print(f"written: {page}, figures and {MARL_EVAL} beside it", highlight=False, soft_wrap=True)
