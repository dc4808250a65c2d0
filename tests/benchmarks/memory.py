"""Peak memory of a training until its replay is full: `python -m tests.benchmarks.memory`.

Counts everything: this process, Ray's daemons and remote runners; sampling, updates, an evaluation and a checkpoint. The sum of
resident sizes counts what processes share as often as they share it, the sum of proportional sizes (PSS) once: the target of
2 GB is for the latter, which is what the machine has to have.
"""

from __future__ import annotations

import resource
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from envs.registry import make_simulator
from tests.benchmarks import measure
from trainers.algorithms.team_algorithm import initialise_ray
from trainers.config import make_run_config
from trainers.train import build_algorithm

GB = 1e9
TARGET = 2.0
INTERVAL_S = 0.25


class Peaks:
    """Largest sums over this process and all that it started, in bytes."""

    def __init__(self) -> None:
        self.resident = 0
        self.proportional = 0
        self.processes = 0

    def look(self) -> None:
        this = psutil.Process()
        sizes = []
        for process in (this, *this.children(recursive=True)):
            try:
                info = process.memory_full_info()
            except psutil.Error:  # ended meanwhile
                continue
            sizes.append((info.rss, info.pss))
        resident, proportional = (sum(column) for column in zip(*sizes, strict=True))
        self.resident = max(self.resident, resident)
        self.proportional = max(self.proportional, proportional)
        self.processes = max(self.processes, len(sizes))


@contextmanager
def watched() -> Iterator[Peaks]:
    """Looks every `INTERVAL_S`."""
    peaks, over = Peaks(), threading.Event()

    def watch() -> None:
        while not over.wait(INTERVAL_S):
            peaks.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def main() -> None:
    parser = measure.arguments("Peak memory of a training, processes that it starts included.")
    parser.add_argument("--scenario", default="vehicular/v200-e12")
    parser.add_argument("--algorithm", default="idmac", help="one of those with a replay")
    parser.add_argument("--num-envs", type=int, default=64, help="parallel episodes of each runner")
    parser.add_argument("--runners", type=int, default=0, help="remote runners")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, SECTION.KEY=VALUE")
    options = parser.parse_args()
    given = [f"training.num_envs={options.num_envs}", f"training.runners={options.runners}", *options.set]
    config = make_run_config(options.algorithm, options.scenario, overrides=given)
    torch.set_num_threads(options.threads)
    with watched() as peaks, tempfile.TemporaryDirectory() as checkpoint:
        initialise_ray(options.runners)
        algorithm = build_algorithm(config, make_simulator(config.scenario, 1).spec)
        while algorithm.replay.size < algorithm.replay.capacity:
            algorithm.train()
        algorithm.evaluate()
        algorithm.train()
        algorithm.save_checkpoint(checkpoint)
        peaks.look()

    replay = algorithm.replay
    episode = replay.nbytes / replay.capacity
    rest = peaks.proportional - replay.nbytes
    results = {
        "peak_rss_gb": peaks.resident / GB,
        "peak_pss_gb": peaks.proportional / GB,
        "peak_rss_of_the_trainer_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB,
        "processes": peaks.processes,
        "replay_gb": replay.nbytes / GB,
        "replay_episodes": replay.capacity,
        "replay_mb_per_episode": episode / 1e6,
        "replay_episodes_that_fit": int((TARGET * GB - rest) / episode),
        "env_steps": algorithm.env_steps,
    }
    lines = ["| | |", "|---|---|"]
    lines += [
        f"| {name.replace('_', ' ')} | {value:,.2f} |"
        if isinstance(value, float)
        else f"| {name.replace('_', ' ')} | {value:,} |"
        for name, value in results.items()
    ]
    met = "met" if results["peak_pss_gb"] < TARGET else "MISSED"
    lines += ["", f"target under {TARGET:g} GB in all: {results['peak_pss_gb']:.2f} GB: {met}"]
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "threads")}
    measure.show(options.json, "memory of training", settings, results, "\n".join(lines))


if __name__ == "__main__":
    main()
