"""How many runners are worth having: a model of sampling over a cluster, from what `tests.benchmarks.scaling` measures.

A round is E episodes, what a runner plays at a time in `play_s`. With R runners on nodes of C cores, a round of all runners has
R answers. For every answer the trainer sends a request (`ask_s`) and takes the episodes in (`take_s`); for every version of
the weights it copies and stores them once (`publish_s`), and a runner fetches them (`fetch_s`). U updates of `update_s` belong
to every round of R answers, or to every answer, where the share of updates in episodes is to stay what it is with one runner.
Episodes (`episode_bytes` each) come into the trainer's node, weights (`weights_bytes`) leave it once for every node, both at
`bandwidth` bytes/s.

Synchronous, everything but playing comes after the slowest runner, so a round takes
    slowest(R) + fetch_s + publish_s + R (ask_s + take_s) + updates update_s
    + (R E episode_bytes + nodes weights_bytes) / bandwidth.
`slowest(R)` is the expected largest of R normally distributed times, play_s (1 + spread sqrt(2 ln R)) (its leading term).

Asynchronous, the stages work at the same time, so the answers per second are those of the slowest stage:
    runners    R / (play_s + fetch_s)
    trainer    1 / (ask_s + take_s + publish_s + updates_per_answer update_s)
    network    bandwidth / max(E episode_bytes, weights_bytes)     (answers in, weights out: a new version with every request)
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from trainers.figures import PALETTE, STYLE, WIDTH_INCHES

MOST = 1000
"""Runners up to which the model is drawn."""


class Point(BaseModel):
    """A training that was measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runners: int
    asynchronous: bool
    env_steps_per_s: float


class Measured(BaseModel):
    """The inputs of the model for one algorithm on one problem; seconds and bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    cores: int = Field(description="of the machine that was measured")
    episodes: int = Field(description="E")
    steps: float = Field(description="mean length of an episode")
    updates: int = Field(description="U")
    play_s: float
    spread: float = Field(description="standard deviation of play_s, as a share of it")
    ask_s: float
    take_s: float
    publish_s: float
    fetch_s: float
    update_s: float
    episode_bytes: float
    weights_bytes: float
    store_bytes_per_s: float = Field(description="object store, one episode batch put and got on one machine")
    points: list[Point]


class Assumed(BaseModel):
    """What could not be measured on one machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bandwidth: float = Field(1.25e9, description="of the trainer's network, bytes/s each way (10 Gbit/s)")
    cores_per_node: int = 16


def synchronous(measured: Measured, runners: int, constant_share: bool, assumed: Assumed) -> float:
    """Environment steps per second where every round waits for all runners.

    Args:
        constant_share: Updates grow with the runners, so that their share in episodes stays; else there are U a round.
    """
    slowest = measured.play_s * (1.0 + measured.spread * math.sqrt(2.0 * math.log(runners)))
    updates = measured.updates * (runners if constant_share else 1)
    nodes = math.ceil(runners / assumed.cores_per_node)
    travel = runners * measured.episodes * measured.episode_bytes + nodes * measured.weights_bytes
    trainer = measured.publish_s + runners * (measured.ask_s + measured.take_s) + updates * measured.update_s
    round_s = slowest + measured.fetch_s + trainer + travel / assumed.bandwidth
    return runners * measured.episodes * measured.steps / round_s


def stages(measured: Measured, runners: int, constant_share: bool, assumed: Assumed) -> dict[str, float]:
    """Environment steps per second that each stage of asynchronous sampling could sustain, see above."""
    updates = measured.updates / (1 if constant_share else runners)
    answer = measured.episodes * measured.steps
    trainer = measured.ask_s + measured.take_s + measured.publish_s + updates * measured.update_s
    return {
        "runners": answer * runners / (measured.play_s + measured.fetch_s),
        "trainer": answer / trainer,
        "network": answer * assumed.bandwidth / max(measured.episodes * measured.episode_bytes, measured.weights_bytes),
    }


def asynchronous(measured: Measured, runners: int, constant_share: bool, assumed: Assumed) -> float:
    """Environment steps per second where nobody is waited for."""
    return min(stages(measured, runners, constant_share, assumed).values())


def saturation(measured: Measured, constant_share: bool, assumed: Assumed) -> tuple[int, str]:
    """Runners with which asynchronous sampling reaches 80 % of what it does with `MOST`, and the stage that is full then."""
    rates = [asynchronous(measured, runners, constant_share, assumed) for runners in range(1, MOST + 1)]
    enough = next(runners for runners, rate in enumerate(rates, start=1) if rate >= 0.8 * rates[-1])
    full = stages(measured, enough, constant_share, assumed)
    return enough, min(full, key=lambda stage: full[stage])


def draw(all_measured: Sequence[Measured], assumed: Assumed) -> Figure:
    """Environment steps per second over the number of runners: the model's lines, and what was measured as points."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
        for axes, measured in zip(figure.subplots(1, len(all_measured), squeeze=False).flat, all_measured, strict=True):
            counts = np.unique(np.geomspace(1, MOST, 60).astype(int))
            for colour, share, words in (
                (PALETTE[0], True, "updates for every answer"),
                (PALETTE[1], False, "updates a round"),
            ):
                for style, rate, kind in (("--", synchronous, "synchronous"), ("-", asynchronous, "asynchronous")):
                    rates = [rate(measured, int(count), share, assumed) for count in counts]
                    axes.plot(counts, rates, style, color=colour, linewidth=1.5, label=f"{kind}, {words}")
            for word, marker in (("synchronous", "o"), ("asynchronous", "^")):
                together = word == "asynchronous"
                points = [point for point in measured.points if point.asynchronous == together and point.runners]
                places = [point.runners for point in points]
                rates = [point.env_steps_per_s for point in points]
                axes.plot(places, rates, marker, color="black", markersize=5, label=f"measured, {word}")
            axes.set(xscale="log", yscale="log", xlabel="runners", ylabel="environment steps / s")
            axes.set_title(measured.name, loc="left")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def read(path: Path) -> list[Measured]:
    """What the benchmark wrote."""
    return [Measured.model_validate(one) for one in json.loads(path.read_text())]
