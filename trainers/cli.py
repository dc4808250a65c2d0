"""The command line: `edgeflock COMMAND …`."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from envs.errors import Failure, InputError
from envs.registry import PETTINGZOO_PREFIX, PROBLEMS, Scenario, make_scenario, make_simulator, scenario_names
from envs.team import episode_seeds
from trainers.algorithms import ALGORITHMS
from trainers.heuristics import heuristics, problem_report
from trainers.last_words import last_words
from trainers.policy import Policy
from trainers.progress_bar import progress_bar
from trainers.report_cli import report
from trainers.storage_cli import RESUME_OR_START, STORAGE, STORAGE_WAIT, keep_results
from trainers.sweep_cli import sweep

if TYPE_CHECKING:
    from trainers.storage import Mirror

COMPARISON_SEED = 20_270_000
"""Run seed of the episodes that `evaluate` and `compare` play; training-time evaluation uses others."""

LOG_S = 10.0
"""Seconds between two lines of progress in a file or in a job's log."""

OVERRIDE = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. --set algorithm.lr=5e-4. Repeatable."
)
SCENARIO = click.option("--scenario", help="PROBLEM/PRESET, see `edgeflock list`.")
ENV = click.option("--env", help=f"Another name for --scenario, for {PETTINGZOO_PREFIX}MODULE.")
TRACES = click.option("--traces", type=click.Path(), help="T-Drive folder or SUMO floating-car data for the vehicles.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print machine-readable lines instead of tables and bars.")
console = Console()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="edgeflock")
def cli() -> None:
    """Train and compare multi-agent schedulers for LLM services between devices, edges and cloud."""


cli.add_command(sweep)
cli.add_command(report)


@cli.command("list")
def list_command() -> None:
    """Scenarios, algorithms and heuristics."""
    for problem, entry in PROBLEMS.items():
        table = Table(title=f"{problem}: {entry.summary}", title_justify="left", show_header=False, box=None)
        table.add_row("scenarios", ", ".join(name for name in scenario_names() if name.startswith(f"{problem}/")))
        table.add_row("heuristics", ", ".join(heuristics(problem)))
        console.print(table)
    table = Table(title="algorithms", title_justify="left", show_header=False, box=None)
    for name, algorithm in ALGORITHMS.items():
        table.add_row(name, algorithm.summary)
    console.print(table)
    console.print(f"Any discrete-action PettingZoo parallel environment: {PETTINGZOO_PREFIX}MODULE")


@cli.command()
@click.argument("algorithm")
@SCENARIO
@ENV
@TRACES
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random.")
@click.option("--env-steps", type=click.IntRange(1), help="Budget of environment steps (training.env_steps).")
@click.option("--runners", type=click.IntRange(0), help="Remote sampling processes (training.runners).")
@click.option("--num-envs", type=click.IntRange(1), help="Parallel episodes of each runner (training.num_envs).")
@click.option("--run", type=click.Path(path_type=Path), help="Run folder. Default: runs/ALGORITHM-SCENARIO-seedN.")
@click.option("--resume", is_flag=True, help="Continue the run folder from its last checkpoint.")
@RESUME_OR_START
@STORAGE
@STORAGE_WAIT
@click.option("--dry-run", is_flag=True, help="Print the complete configuration, and start nothing.")
@OVERRIDE
@JSON
def train(
    algorithm: str,
    scenario: str | None,
    env: str | None,
    traces: str | None,
    seed: int,
    env_steps: int | None,
    runners: int | None,
    num_envs: int | None,
    run: Path | None,
    resume: bool,
    resume_or_start: bool,
    storage: str | None,
    storage_wait: float,
    dry_run: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train ALGORITHM on a scenario; writes a run folder with config, metrics, checkpoints and the policy bundle.

    \b
    edgeflock train idmac --scenario vehicular/v50-e6 --seed 1
    edgeflock train qmix --env pettingzoo:mpe2.simple_spread_v3 --set scenario.kwargs.max_cycles=25
    edgeflock train idmac --run runs/idmac-vehicular-v50-e6-seed1 --resume
    """
    from trainers.config import RunConfig, make_run_config
    from trainers.storage import CONFIG

    options = {"env_steps": env_steps, "runners": runners, "num_envs": num_envs}
    assignments = [f"training.{key}={value}" for key, value in options.items() if value is not None] + list(overrides)
    if resume and run is not None:
        if assignments or scenario or env or traces:
            raise InputError("--resume takes everything from the run folder: give it --run alone (and its --storage)")
        mirror = None if storage is None or dry_run else _mirror(run, storage, storage_wait, resume)
        config = RunConfig.load(run / CONFIG)
        if config.name != algorithm:
            raise InputError(f"{run}: is a run of {config.name}, not of {algorithm}")
    else:
        name = _scenario_name(scenario, env)
        config = make_run_config(algorithm, name, seed, [*_trace_override(traces), *assignments])
        run = run or Path("runs") / f"{algorithm}-{name.replace('/', '-').replace(':', '-')}-seed{seed}"
        mirror = None if storage is None or dry_run else _mirror(run, storage, storage_wait, resume or resume_or_start)
        if resume_or_start and not dry_run:
            resume = _has_begun(run)
    if dry_run:
        click.echo(json.dumps(config.model_dump(mode="json")) if as_json else config.text(), nl=as_json)
        return
    from trainers.train import Interrupted
    from trainers.train import train as train_run

    _show_traces(config.scenario, as_json)
    again = shlex.join(["edgeflock", "train", algorithm, "--run", str(run), "--resume", *_with_storage(storage)])
    died = last_words(f"edgeflock: the training died with its node or was killed; to go on from its last checkpoint: {again}")
    with _training_progress(config.training.env_steps, as_json) as report, died:
        try:
            folder = train_run(config, run, report, resume, mirror)
        except Interrupted:
            report.close()
            _say(as_json, f"interrupted; a checkpoint is saved. To go on: {again}", {"interrupted": str(run), "resume": again})
            raise SystemExit(130) from None
    if mirror is not None:
        _say(as_json, f"kept: {mirror.storage.where}", {"kept": mirror.storage.where})
    _say(as_json, f"trained: {folder} (policy bundle: {folder / 'bundle'})", {"run": str(folder)})


@cli.command()
@click.argument("policy")
@SCENARIO
@ENV
@TRACES
@click.option("--episodes", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=COMPARISON_SEED, show_default=True, help="Which episodes are played.")
@click.option("--num-envs", type=click.IntRange(1), default=64, show_default=True, help="Parallel episodes.")
@OVERRIDE
@JSON
def evaluate(
    policy: str,
    scenario: str | None,
    env: str | None,
    traces: str | None,
    episodes: int,
    seed: int,
    num_envs: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Play greedy episodes with POLICY (a run folder, a bundle or a heuristic) and print its figures."""
    chosen = _scenario(scenario, env, traces, overrides)
    _show_traces(chosen, as_json)
    results = _play({policy: [policy]}, chosen, episodes, seed, num_envs, as_json)
    _print_comparison(results, as_json)


@cli.command()
@SCENARIO
@ENV
@TRACES
@click.option(
    "--policies", required=True, metavar="LIST", help="Comma-separated: HEURISTIC or LABEL=RUN (a folder, or a quoted glob)."
)
@click.option("--episodes", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=COMPARISON_SEED, show_default=True, help="Which episodes are played.")
@click.option("--num-envs", type=click.IntRange(1), default=64, show_default=True, help="Parallel episodes.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/comparison"), show_default=True)
@click.option(
    "--solver-s",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Problems with an exact optimum (dag): seconds to look for each episode's. 0 leaves it out.",
)
@STORAGE
@OVERRIDE
@JSON
def compare(
    scenario: str | None,
    env: str | None,
    traces: str | None,
    policies: str,
    episodes: int,
    seed: int,
    num_envs: int,
    out: Path,
    solver_s: float,
    storage: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Play the same episodes with several policies; prints a table, writes evaluation.json, figures and an HTML page.

    \b
    edgeflock compare --scenario vehicular/v50-e6 --policies "idmac=runs/idmac-*,qmix=runs/qmix-*,greedy,random"
    """
    chosen = _scenario(scenario, env, traces, overrides)
    sources = parse_policies(policies)
    _show_traces(chosen, as_json)
    results = _play(sources, chosen, episodes, seed, num_envs, as_json)
    report, remarks = problem_report(chosen), []
    if report is not None:
        with progress_bar("optimum", episodes, console, as_json) as advance:
            results, remarks = report.extend(results, chosen, episode_seeds(seed, 0, episodes), solver_s, advance)
    comparison = _print_comparison(results, as_json)
    for remark in remarks:
        _say(as_json, remark, {"remark": remark})
    from trainers.figures import comparison_bars, read_curves, save
    from trainers.page import write_page
    from trainers.storage import local_copy

    places = {label: [local_copy(source) for source in of] for label, of in sources.items()}
    runs = {label: [folder for folder in of if (folder / "metrics.jsonl").exists()] for label, of in places.items()}
    runs = {label: folders for label, folders in runs.items() if folders}
    comparison.write(out)
    curves = read_curves(runs) if runs else None
    save(comparison_bars(comparison), out / "comparison")
    if curves is not None:
        from trainers.figures import learning_curves

        save(learning_curves(curves), out / "learning_curves")
    extras: dict[str, Any] = {}
    if report is not None:
        first = int(episode_seeds(seed, 0, 1))
        extras = report.figures({label: make_policy(of[0], chosen) for label, of in sources.items()}, chosen, first)
        for name, (_, figure) in extras.items():
            save(figure, out / name)
    command = shlex.join(["edgeflock", *sys.argv[1:]])
    page = write_page(out / "index.html", comparison, command=command, curves=curves, extras=extras)
    keep_results(out, storage)
    _say(as_json, f"written: {page}, figures and evaluation.json beside it", {"page": str(page)})


@cli.command()
@click.argument("policy")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle.")
@click.option("--onnx", is_flag=True, help="Add agent.onnx: one agent's step for devices without torch (extra `onnx`).")
@SCENARIO
@ENV
@STORAGE
@OVERRIDE
@JSON
def export(
    policy: str,
    out: Path,
    onnx: bool,
    scenario: str | None,
    env: str | None,
    storage: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write POLICY (a run folder or bundle, or its URI, or a heuristic) as a bundle, which `edgeflock serve` takes.

    \b
    edgeflock export runs/idmac-vehicular-v50-e6-seed1 --out bundles/idmac
    edgeflock export greedy --scenario vehicular/v50-e6 --out bundles/greedy
    """
    from trainers.export import export_bundle, export_heuristic
    from trainers.storage import is_uri, local_copy

    if scenario or env:
        if onnx:
            raise InputError(f"--onnx: {policy!r} is a heuristic: expected a policy with a network")
        export_heuristic(policy, _scenario(scenario, env, None, overrides), out)
    elif overrides or not (is_uri(policy) or Path(policy).expanduser().exists()):
        raise InputError(f"{policy!r} is no run folder or bundle; a heuristic needs a --scenario")
    else:
        export_bundle(local_copy(policy), out, onnx)
    keep_results(out, storage)
    _say(as_json, f"written: {out}", {"bundle": str(out)})


@cli.group()
def traces() -> None:
    """Vehicle traces: look at a file, or make one with SUMO."""


@traces.command("show")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--crop/--no-crop", default=True, show_default=True, help="Keep only what lies in Xicheng (T-Drive files).")
def traces_show(path: Path, crop: bool) -> None:
    """What the loader keeps of PATH, what it drops, and why."""
    from envs.vehicular.traces import XICHENG, load_trace

    console.print(str(load_trace(path, bounding_box=XICHENG if crop else None)[1]), highlight=False)


@traces.command("sumo")
@click.option("--vehicles", type=click.IntRange(1), required=True)
@click.option("--minutes", type=click.IntRange(1), required=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="FILE.xml or FILE.xml.gz")
def traces_sumo(vehicles: int, minutes: int, seed: int, out: Path) -> None:
    """Make floating-car data with the SUMO simulator (needs the extra `sumo`)."""
    from envs.vehicular.sumo import generate_sumo_trace

    with console.status(f"SUMO drives {vehicles} vehicles for {minutes} minutes"):
        generate_sumo_trace(out, vehicles, minutes, seed)
    console.print(f"written: {out}")


# -- policies ------------------------------------------------------------------------------------------------------------


def parse_policies(text: str) -> dict[str, list[str]]:
    """`"idmac=runs/a*,greedy"` to label -> sources; a glob gives one label several runs.

    Raises:
        InputError: An empty or repeated label, or a glob that matches nothing.
    """
    sources: dict[str, list[str]] = {}
    for part in text.split(","):
        label, equals, where = part.strip().partition("=")
        found = sorted(glob(expanduser(where))) if any(c in where for c in "*?[") else [where if equals else label]
        if not label or not all(found) or label in sources:
            raise InputError(f"--policies {text!r}: expected HEURISTIC or LABEL=RUN, each label once, got {part.strip()!r}")
        if not found:
            raise InputError(f"--policies: no run matches {where!r}")
        sources[label] = found
    return sources


def make_policy(source: str, scenario: Scenario) -> Policy:
    """A heuristic of the scenario's problem, or the policy of a run folder or bundle."""
    known = heuristics(scenario.problem)
    if source in known:
        return known[source](make_simulator(scenario, 1).spec)
    from trainers.learned_policy import load_policy
    from trainers.storage import local_copy

    folder = local_copy(source)
    if not folder.exists():
        raise InputError(f"{source!r} is neither a run folder or bundle nor a heuristic ({', '.join(known)})")
    return load_policy(folder)


def _play(
    sources: dict[str, list[str]], scenario: Scenario, episodes: int, seed: int, num_envs: int, as_json: bool
) -> dict[str, list[Any]]:
    from dataclasses import replace

    from trainers.evaluate import check_fits
    from trainers.evaluate import evaluate as evaluate_policy

    spec = make_simulator(scenario, 1).spec
    policies = {label: [(source, make_policy(source, scenario)) for source in of] for label, of in sources.items()}
    for of_label in policies.values():
        for _, policy in of_label:
            check_fits(policy, spec)
    seeds = episode_seeds(seed, 0, episodes)
    results: dict[str, list[Any]] = {label: [] for label in policies}
    chosen = [(label, source, policy) for label, of_label in policies.items() for source, policy in of_label]
    with progress_bar("playing", len(chosen) * episodes, console, as_json) as advance:
        for index, (label, source, policy) in enumerate(chosen):

            def report(done: float, total: float, before: int = index * episodes, label: str = label) -> None:
                advance(before + done, label)

            result = evaluate_policy(policy, scenario, seeds, num_envs, progress=report)
            results[label].append(replace(result, run=source))
    return results


def _print_comparison(results: dict[str, list[Any]], as_json: bool) -> Any:
    from trainers.comparison import compare as compare_results

    comparison = compare_results(results)
    if as_json:
        for row in comparison.rows():
            click.echo(json.dumps(row))
    else:
        console.print(comparison)
        if len(results) > 1:
            console.print(comparison.headline)
    return comparison


def _mirror(run: Path, storage: str, wait_s: float, resume: bool) -> Mirror:
    """The run folder's copy in storage, from which a run that is to be resumed is brought here first."""
    from trainers.storage import Mirror, Storage

    mirror = Mirror(run, Storage(storage) / run.absolute().name, wait_s, replace=resume)
    if resume:
        mirror.fetch()
    return mirror


def _has_begun(run: Path) -> bool:
    """Whether the run folder has a checkpoint; what ended before its first one is removed."""
    from trainers.storage import CHECKPOINTS, CONFIG, UNWRITTEN

    begun = any(path.suffix != UNWRITTEN for path in (run / CHECKPOINTS).glob("*"))
    if not begun and (run / CONFIG).exists():
        shutil.rmtree(run)
    return begun


def _with_storage(storage: str | None) -> list[str]:
    return [] if storage is None else ["--storage", storage]


# -- options and output --------------------------------------------------------------------------------------------------


def _scenario_name(scenario: str | None, env: str | None) -> str:
    if bool(scenario) == bool(env):
        raise InputError("give the problem with --scenario PROBLEM/PRESET (or --env), once; `edgeflock list` names them")
    return str(scenario or env)


def _trace_override(traces: str | None) -> list[str]:
    return [] if traces is None else [f"scenario.traces={json.dumps(traces)}"]


def _scenario(scenario: str | None, env: str | None, traces: str | None, overrides: tuple[str, ...]) -> Scenario:
    from trainers.config import parse_overrides

    given = parse_overrides([*_trace_override(traces), *overrides])
    if set(given) - {"scenario"}:
        raise InputError(f"--set: only scenario.* can be set here, got {', '.join(sorted(set(given) - {'scenario'}))}")
    return make_scenario(_scenario_name(scenario, env), given.get("scenario"))


def _show_traces(scenario: Scenario, as_json: bool) -> None:
    """What was kept and dropped of the scenario's trace file, if it has one."""
    if as_json or not getattr(scenario, "traces", None):
        return
    from envs.vehicular.scenario import VehicularScenario
    from envs.vehicular.simulator import trace_report

    if isinstance(scenario, VehicularScenario):
        console.print(str(trace_report(scenario)), highlight=False)


def _say(as_json: bool, text: str, record: dict[str, Any]) -> None:
    if as_json:
        click.echo(json.dumps(record))
    else:
        console.print(text, highlight=False, soft_wrap=True)


class _TrainingReport:
    """Shows iterations on a bar, on a line now and then where there is no terminal, or as JSON lines."""

    def __init__(self, total: int, as_json: bool) -> None:
        self._total = total
        self._as_json = as_json
        self._progress: Progress | None = None
        self._printed = time.monotonic()
        if not as_json and console.is_terminal:
            words = TextColumn("{task.fields[words]}")
            self._progress = Progress(TextColumn("training"), BarColumn(), words, TimeRemainingColumn(), console=console)
            self._task = self._progress.add_task("training", total=total, words="starting")
            self._progress.start()
        self._evaluation = ""

    def __call__(self, record: dict[str, Any]) -> None:
        if self._as_json:
            click.echo(json.dumps(record))
            return
        if "evaluation_return_mean" in record:
            self._evaluation = f" · evaluated {record['evaluation_return_mean']:.3f}"
        words = (
            f"{record['env_steps']:,}/{self._total:,} steps · {record['env_steps_per_s']:,.0f}/s · "
            f"return {record.get('return_mean', float('nan')):.3f}{self._evaluation}"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=record["env_steps"], words=words)
        elif time.monotonic() - self._printed >= LOG_S or record["env_steps"] >= self._total:
            self._printed = time.monotonic()
            click.echo(words)

    def close(self, erase: bool = False) -> None:
        if self._progress is not None:
            self._progress.live.transient = erase
            self._progress.stop()
            self._progress = None


@contextmanager
def _training_progress(total: int, as_json: bool) -> Iterator[_TrainingReport]:
    report = _TrainingReport(total, as_json)
    try:
        yield report
    except InputError:  # nothing has begun: the complaint stands alone
        report.close(erase=True)
        raise
    finally:
        report.close()


def main() -> None:
    """Entry point: bad input ends with one line on stderr and exit code 2, any other failure with 1."""
    from cluster.cli import jobs, submit  # the command line is built on everything else
    from serve.cli import serve_command, update_command

    for command in (serve_command, update_command, submit, jobs):
        cli.add_command(command)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        cli(standalone_mode=False)
    except InputError as error:
        click.echo(f"edgeflock: {error}", err=True)
        raise SystemExit(2) from None
    except Failure as error:
        click.echo(f"edgeflock: {error}", err=True)
        if error.stuck:
            os._exit(error.code)
        raise SystemExit(error.code) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from None
    except click.exceptions.Exit as done:
        raise SystemExit(done.exit_code) from None
    except click.Abort:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
