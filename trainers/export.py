"""Bundles for others: of a training run with everything that is known of it, and of heuristics."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from envs.errors import InputError
from envs.registry import Scenario, make_simulator, scenario_from_dict
from envs.team import episode_seeds
from trainers.bundle import EXAMPLE, MANIFEST, WEIGHTS, load_bundle, save_bundle, spec_to_json
from trainers.figures import read_metrics
from trainers.heuristics import heuristics
from trainers.learned_policy import bundle_folder, load_policy

AGENT = "agent.onnx"
EXAMPLE_SEED = 20_280_000
"""Run seed of the episode that a bundle's example begins."""


def export_bundle(source: Path, out: Path, onnx: bool = False) -> None:
    """Copies the bundle of a run (or a bundle) after checking that it loads; adds the last figures of the run's training.

    Args:
        onnx: Also write `agent.onnx`, a single agent's step (see `trainers.onnx_export`).

    Raises:
        InputError: `source` has no sound bundle, `out` is taken by something else or cannot be written, or the policy cannot be
            written as ONNX.
    """
    policy = load_policy(source)
    weights, manifest = load_bundle(bundle_folder(source))
    metrics: dict[str, Any] = dict(manifest["metrics"])
    records = read_metrics(source) if (source / "metrics.jsonl").exists() else []
    if records:
        metrics["training"] = records[-1]
    _check_free(out)
    graph = None
    if onnx:
        from trainers.onnx_export import agent_graph

        graph = agent_graph(policy)
    _write(out, weights, {**manifest, "metrics": metrics}, graph)


def export_heuristic(name: str, scenario: Scenario, out: Path) -> None:
    """Writes a bundle without weights, from which `load_policy` makes the heuristic again.

    Raises:
        InputError: The problem has no such heuristic, or `out` is taken by something else or cannot be written.
    """
    known = heuristics(scenario.problem)
    if name not in known:
        raise InputError(f"unknown heuristic {name!r}: {scenario.problem} has {', '.join(known)}")
    _check_free(out)
    manifest = {
        "problem": scenario.problem,
        "scenario": scenario.model_dump(mode="json"),
        "spec": spec_to_json(make_simulator(scenario).spec),
        "heuristic": name,
        "metrics": {},
    }
    _write(out, {}, manifest)


def _write(out: Path, weights: dict[str, Tensor], manifest: dict[str, Any], graph: bytes | None = None) -> None:
    """The bundle, with the graph or without one: that of another policy does not stay behind."""
    request = json.dumps(example(scenario_from_dict(manifest["scenario"])))
    try:
        (out / AGENT).unlink(missing_ok=True)
        save_bundle(out, weights, manifest)
        (out / EXAMPLE).write_text(request)
        if graph is not None:
            temporary = out / f"{AGENT}.tmp"
            temporary.write_bytes(graph)
            os.replace(temporary, out / AGENT)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from None


def example(scenario: Scenario) -> dict[str, Any]:
    """What the team sees at the start of an episode, as a request to the server: observation and action mask, by name."""
    simulator = make_simulator(scenario)
    try:
        start, spec = simulator.reset(episode_seeds(EXAMPLE_SEED, 0, 1)), simulator.spec
    finally:
        simulator.close()
    masks, first = {}, 0
    for head in spec.heads:
        mask = start.action_mask[0, :, first : first + head.count, : head.choices]
        masks[head.name] = (mask if head.count > 1 else mask[:, 0]).tolist()
        first += head.count
    return {"observation": {name: _numbers(value[0]) for name, value in start.observation.items()}, "action_mask": masks}


def _numbers(values: Tensor) -> list[Any]:
    """Nested lists of the shortest numbers that are these float32."""
    return values.numpy().astype(str).astype(float).tolist() if values.is_floating_point() else values.tolist()


def _check_free(out: Path) -> None:
    """A bundle may be replaced; a folder of other things may not."""
    if out.is_file() or (out.is_dir() and {path.name for path in out.iterdir()} - {MANIFEST, WEIGHTS, EXAMPLE, AGENT}):
        raise InputError(f"{out}: exists and is no bundle: choose another --out")
