"""`python -m cluster.service_manifest`: `serveConfigV2` of kuberay/rayservice.yaml anew, with the settings that serve/ has."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import yaml

from serve.cli import make_settings
from serve.config import PolicySources, Scaling
from serve.deployment import description

MANIFEST = Path(__file__).parent / "kuberay" / "rayservice.yaml"
SECRETS = Path("/etc/edgeflock")


def service_config() -> str:
    """The application of the manifest, as `serve deploy` takes it."""
    settings = make_settings(SECRETS / "token", SECRETS / "state.key", Path("/tmp/edgeflock/metrics-8000"), [])
    sources = PolicySources(policies={"idmac": Path("/storage/bundles/idmac")})
    return yaml.safe_dump(description(sources, settings, Scaling(replicas=2, max_replicas=8), "0.0.0.0", 8000), sort_keys=False)


def with_config(manifest: str, config: str) -> str:
    """The manifest's text with another `serveConfigV2`."""
    block = "  serveConfigV2: |\n" + textwrap.indent(config, "    ")
    return re.sub(r"  serveConfigV2: \|\n(    .*\n)+", lambda _: block, manifest, count=1)


if __name__ == "__main__":
    MANIFEST.write_text(with_config(MANIFEST.read_text(), service_config()))
