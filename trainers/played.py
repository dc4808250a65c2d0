"""Episodes that an interrupted report has played already, so that the next one goes on from them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import Tensor

from envs.registry import Scenario
from envs.team import Metric
from trainers.comparison import write_whole
from trainers.evaluate import EpisodeResults

FOLDER = ".played"


class Played:
    """A file for each policy and scenario, in a folder that is there only until the report is whole.

    A report that is made again plays everything again: the simulators may have changed since.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out / FOLDER

    def or_play(self, policy: str, scenario: Scenario, seeds: Tensor, play: Callable[[], EpisodeResults]) -> EpisodeResults:
        """The results that are kept of this policy (whatever identifies it), scenario and these seeds, or else new ones."""
        what = json.dumps([policy, scenario.model_dump(mode="json"), seeds.tolist()])
        file = self._folder / f"{hashlib.sha256(what.encode()).hexdigest()}.json"
        if file.exists():
            return _from_json(file.read_text(encoding="utf-8"))
        results = play()
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, _to_json(results))
        return results

    def forget(self) -> None:
        """Deletes what is kept."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _to_json(results: EpisodeResults) -> str:
    values = {name: getattr(results, name) for name in ("policy", "scenario", "scenario_fields", "env_steps", "run")}
    metrics = {name: asdict(metric) for name, metric in results.metrics.items()}
    sums = {name: array.tolist() for name, array in results.sums.items()}
    return json.dumps({**values, "seeds": results.seeds.tolist(), "metrics": metrics, "sums": sums})


def _from_json(text: str) -> EpisodeResults:
    values = json.loads(text)
    values["seeds"] = np.array(values["seeds"], dtype=np.int64)
    values["metrics"] = {name: Metric(**metric) for name, metric in values["metrics"].items()}
    values["sums"] = {name: np.array(sums, dtype=np.float64) for name, sums in values["sums"].items()}
    return EpisodeResults(**values)
