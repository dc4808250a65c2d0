"""Bundles of every problem, and the application around them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from envs.registry import make_scenario
from tests.serve.serving import HEURISTICS, LEARNED, Server, make_bundle
from trainers.export import export_heuristic

torch.set_num_threads(1)  # as in a replica


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name to folder, one of each problem and two heuristics."""
    folders = {name: make_bundle(tmp_path_factory.mktemp(name), *what) for name, what in LEARNED.items()}
    for name, scenario in HEURISTICS.items():
        folders[name] = tmp_path_factory.mktemp(name) / "bundle"
        export_heuristic(name, make_scenario(scenario), folders[name])
    return folders


@pytest.fixture
def server(bundles: dict[str, Path]) -> Server:
    return Server(bundles)
