"""Policy bundles: what training exports, and evaluation and serving load.

A bundle is a folder with `policy.safetensors` (weights) and `manifest.json` (everything else). Nothing in it is unpickled, and
the weights are read only after their checksum has been verified.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.errors import InputError
from envs.team import ActionHead, Field, Metric, TeamSpec

FORMAT = 1
WEIGHTS = "policy.safetensors"
MANIFEST = "manifest.json"
EXAMPLE = "example.json"
"""Optional: a request body that a server of the policy answers."""
PACKAGES = ("torch", "ray", "numpy")


def spec_to_json(spec: TeamSpec) -> dict[str, Any]:
    """The spec as JSON values, with the fields' dtypes; infinite bounds become null."""
    values = asdict(spec)
    for field in values["observation"].values():
        field.update({bound: value if math.isfinite(value := field[bound]) else None for bound in ("low", "high")})
        field["dtype"] = "int64" if field["scale"] == "category" else "float32"
    return json.loads(json.dumps(values))


def spec_from_json(values: dict[str, Any]) -> TeamSpec:
    """What `spec_to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: The values are no spec.
    """
    observation = {}
    for name, field in values["observation"].items():
        low = -math.inf if field["low"] is None else field["low"]
        high = math.inf if field["high"] is None else field["high"]
        described = {key: value for key, value in field.items() if key != "dtype"}
        observation[name] = Field(**{**described, "shape": tuple(field["shape"]), "low": low, "high": high})
    return TeamSpec(
        **{
            **values,
            "agents": tuple(values["agents"]),
            "observation": observation,
            "heads": tuple(ActionHead(**{**head, "labels": tuple(head["labels"])}) for head in values["heads"]),
            "metrics": {name: Metric(**metric) for name, metric in values["metrics"].items()},
            "positions": tuple((x, y) for x, y in values["positions"]),
        }
    )


def save_bundle(folder: Path, weights: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    """Writes a bundle; a reader sees the old one or the new one.

    Args:
        manifest: What the exporter knows; format, versions and checksum are added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{WEIGHTS}.tmp"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)
    checksum = hashlib.sha256(temporary.read_bytes()).hexdigest()
    complete = {"format": FORMAT, **manifest, "packages": {p: version(p) for p in PACKAGES}, "sha256": checksum}
    (folder / f"{MANIFEST}.tmp").write_text(json.dumps(complete, indent=2))
    os.replace(temporary, folder / WEIGHTS)
    os.replace(folder / f"{MANIFEST}.tmp", folder / MANIFEST)


def load_bundle(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and manifest.

    Raises:
        InputError: A file is missing, the manifest is broken or of another format, or the checksum does not match.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        data = (folder / WEIGHTS).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not a policy bundle: {str(error).splitlines()[0]}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{folder / MANIFEST}: expected a bundle of format {FORMAT}")
    if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
        raise InputError(f"{folder / WEIGHTS}: the checksum is not the manifest's: the file is damaged or was exchanged")
    return load_file(folder / WEIGHTS), manifest
