"""Sampling over processes: rates with 0, 1 and 2 remote runners, and what each part of it costs.

python -m tests.benchmarks.scaling --out cluster/scaling     # writes .json, and the model of cluster.scaling as .svg and .png

The parts are the inputs of the model in `cluster/scaling.py`. On a machine with two cores, two runners and the trainer share
these: rates of one machine say what a machine does, and only the parts say anything about a cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from cluster.scaling import Assumed, Measured, Point, asynchronous, draw, saturation, synchronous
from envs.registry import make_simulator
from trainers.algorithms.replay_algorithm import ReplayAlgorithm
from trainers.algorithms.team_algorithm import EpisodesRequest, initialise_ray
from trainers.config import make_run_config
from trainers.figures import save
from trainers.train import build_algorithm

CASES = (("qmix", "vehicular/v50-e6"), ("qmix", "dag/paper"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cluster/scaling"), help="files without their ending")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each rate")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    initialise_ray(2)
    measured = [measure(algorithm, scenario, asked.seconds) for algorithm, scenario in CASES]
    asked.out.with_suffix(".json").write_text(json.dumps([one.model_dump() for one in measured], indent=1))
    save(draw(measured, Assumed()), asked.out)
    for one in measured:
        print(table(one))


def built(algorithm: str, scenario: str, *settings: str) -> ReplayAlgorithm:
    config = make_run_config(algorithm, scenario, 1, ["training.evaluation_interval=100000", *settings])
    return build_algorithm(config, make_simulator(config.scenario).spec)


def rate(algorithm: ReplayAlgorithm, seconds: float) -> float:
    """Environment steps per second of training, after the first two iterations."""
    for _ in range(2):
        algorithm.train()
    started, before = time.perf_counter(), algorithm.env_steps
    while time.perf_counter() - started < seconds:
        algorithm.train()
    return (algorithm.env_steps - before) / (time.perf_counter() - started)


def measure(algorithm: str, scenario: str, seconds: float) -> Measured:
    """Everything about one algorithm on one problem."""
    points, parts = [], {}
    for runners, together in ((0, False), (1, False), (2, False), (1, True), (2, True)):
        built_one = built(algorithm, scenario, f"training.runners={runners}", f"training.asynchronous={str(together).lower()}")
        try:
            points.append(Point(runners=runners, asynchronous=together, env_steps_per_s=rate(built_one, seconds)))
            print(points[-1], flush=True)
            if runners == 0:
                parts = parts_of(built_one)
            elif runners == 1 and not together:
                parts["ask_s"] = asking(built_one)
        finally:
            built_one.stop()
    return Measured(name=f"{algorithm}, {scenario}", cores=os.cpu_count() or 1, points=points, **parts)


def parts_of(algorithm: ReplayAlgorithm) -> dict[str, Any]:
    """What a trainer with a local runner does, part by part."""
    runner = algorithm.env_runner_group.local_env_runner
    answers = []
    play = timed(lambda: answers.append(EpisodesRequest(algorithm.env_steps + len(answers), 0, None)(runner)), 6)
    answer = answers[-1]
    episodes = len(answer.figures["steps"])
    size = len(pickle.dumps(answer, protocol=5))
    references: list[ray.ObjectRef] = []
    put = statistics.median(timed(lambda: references.append(ray.put(answer)), 6))
    got: list[Any] = []
    get = statistics.median(timed(lambda: got.append(ray.get(references.pop())), 6))

    def take() -> None:
        algorithm.replay.add(got[-1].rows, algorithm.config.spec.max_steps)
        algorithm.rewards.add(got[-1].rows)
        algorithm.metrics.aggregate([answer.metrics], key="scratch")

    published = timed(lambda: algorithm._publish(), 6)
    weights = algorithm._learned_weights()
    version = iter(range(10_000, 20_000))
    fetched = timed(lambda: runner.take_weights(algorithm.weights.reference, next(version)), 6)
    settings = algorithm.config.settings
    updates = timed(lambda: algorithm.learn(algorithm._treated(algorithm.replay.sample(settings.batch_episodes, 0))), 10)
    return {
        "episodes": episodes,
        "steps": float(answer.figures["steps"].mean()),
        "updates": settings.updates,
        "play_s": statistics.median(play),
        "spread": statistics.stdev(play[1:]) / statistics.mean(play[1:]),
        "take_s": get + statistics.median(timed(take, 6)),
        "publish_s": statistics.median(published),
        "fetch_s": statistics.median(fetched),
        "update_s": statistics.median(updates),
        "episode_bytes": size / episodes,
        "weights_bytes": len(pickle.dumps(weights, protocol=5)),
        "store_bytes_per_s": size / (put + get),
    }


def asking(algorithm: ReplayAlgorithm, count: int = 200) -> float:
    """Seconds of the trainer for sending one request."""
    manager = algorithm.env_runner_group._worker_manager
    started = time.perf_counter()
    for index in range(count):
        manager._call_actors(Nothing(algorithm._request()), remote_actor_ids=[1])
        if index == count - 1:
            took = time.perf_counter() - started
    ray.get(manager._call_actors(Nothing(algorithm._request()), remote_actor_ids=[1]))
    return took / count


class Nothing:
    """A request like those for episodes, which comes to nothing."""

    def __init__(self, request: EpisodesRequest) -> None:
        self.request = request

    def __call__(self, runner: Any) -> None:
        return None


def timed(work: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each of a number of calls."""
    took = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return took


def table(one: Measured) -> str:
    """Markdown: what was measured, and what the model makes of it."""
    lines = [f"\n### {one.name}\n", "| part | |", "|---|---|"]
    for name in ("play_s", "update_s", "take_s", "ask_s", "publish_s", "fetch_s"):
        lines.append(f"| {name} | {getattr(one, name) * 1e3:.2f} ms |")
    lines.append(f"| episodes of an answer, steps, updates | {one.episodes}, {one.steps:.1f}, {one.updates} |")
    lines.append(f"| spread of play_s | {one.spread:.1%} |")
    lines.append(f"| episode_bytes | {one.episode_bytes / 1e3:.1f} kB, {one.episode_bytes / one.steps:.0f} B a step |")
    lines.append(f"| weights_bytes | {one.weights_bytes / 1e3:.1f} kB |")
    lines.append(f"| object store, put and get | {one.store_bytes_per_s / 1e6:.0f} MB/s |")
    lines += ["\n| runners | sync measured | async measured | sync model | async model |", "|---|---|---|---|---|"]
    found = {(point.runners, point.asynchronous): f"{point.env_steps_per_s:,.0f}" for point in one.points}
    for count in (0, 1, 2, 10, 100, 1000):
        model = [rate(one, count, False, Assumed()) for rate in (synchronous, asynchronous)] if count else []
        cells = [str(count), found.get((count, False), ""), found.get((count, True), ""), *(f"{rate:,.0f}" for rate in model)]
        lines.append("| " + " | ".join([*cells, *[""] * (5 - len(cells))]) + " |")
    for share, words in ((True, "updates for every answer"), (False, "updates a round")):
        count, stage = saturation(one, share, Assumed())
        lines.append(f"\n{words}: {count} runners have 80 % of what 1,000 have, limited by: {stage}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
