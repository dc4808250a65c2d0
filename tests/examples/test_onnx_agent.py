"""The agent in the field: without torch and Ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.running import ENVIRONMENT, ROOT
from trainers.bundle import MANIFEST
from trainers.export import AGENT, export_bundle

pytest.importorskip("onnx")
BARE = """
import runpy, sys
sys.modules.update(torch=None, ray=None)  # importing them fails
runpy.run_path("examples/onnx_agent.py")
"""


@pytest.mark.parametrize(("name", "agent"), [("talking", "edge_4"), ("talker", "device-0")])
def test_an_agent_decides_with_numpy_and_onnxruntime_alone(name: str, agent: str, bundles: Path, tmp_path: Path) -> None:
    export_bundle(bundles / name, tmp_path, onnx=True)
    command = [sys.executable, "-c", BARE, str(tmp_path / AGENT), agent]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    heads = json.loads((tmp_path / MANIFEST).read_text())["spec"]["heads"]
    branches = [head["labels"] for head in heads for _ in range(head["count"])]
    lines = result.stdout.splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == ["0", "1", "2"]
    for line in lines:
        labels = line.split(" ")[1:]
        assert len(labels) == len(branches)
        assert all(label in known for label, known in zip(labels, branches, strict=True)), line
