"""The files of cluster/: whole, consistent with the project, and what they start does start.

KubeRay's own schemas (its folder `ray-operator/config/crd/bases`) are not part of this project; where KUBERAY_CRDS names that
folder, the manifests are validated against them too (they were, against KubeRay 1.7.0).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from cluster.cli import check_command
from tests.cluster.head import BIN, ROOT, Head
from tests.cluster.nodes import wait_for
from tests.ports import free_port
from tests.serve.serving import LEARNED, make_bundle

CLUSTER = ROOT / "cluster"
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in (CLUSTER / "kuberay").glob("*.yaml")}
IMAGE = f"edgeflock:{version('edgeflock')}"


class Strict(BaseModel):
    """Part of a manifest, with the keys that this project uses and no others."""

    model_config = ConfigDict(extra="forbid")


class Amounts(Strict):
    cpu: str
    memory: str = Field(pattern=r"^\d+[GM]i$")
    gpu: str | None = Field(None, alias="nvidia.com/gpu")


class Resources(Strict):
    requests: Amounts
    limits: Amounts


class HttpGet(Strict):
    path: str
    port: int


class Probe(Strict):
    httpGet: HttpGet  # noqa: N815
    initialDelaySeconds: int  # noqa: N815
    periodSeconds: int  # noqa: N815
    timeoutSeconds: int  # noqa: N815
    failureThreshold: int  # noqa: N815


class Container(Strict):
    name: str
    image: str
    env: list[dict[str, str]] = []
    ports: list[dict[str, Any]] = []
    resources: Resources
    livenessProbe: Probe  # noqa: N815
    readinessProbe: Probe  # noqa: N815
    volumeMounts: list[dict[str, Any]]  # noqa: N815


class Pod(Strict):
    securityContext: dict[str, Any]  # noqa: N815
    containers: list[Container] = Field(min_length=1, max_length=1)
    volumes: list[dict[str, Any]]


class Template(Strict):
    spec: Pod


class HeadGroup(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: Template


class WorkerGroup(HeadGroup):
    groupName: str  # noqa: N815
    replicas: int
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815


class ClusterSpec(Strict):
    rayVersion: str  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    autoscalerOptions: dict[str, Any]  # noqa: N815
    authOptions: dict[str, str]  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup] = Field(min_length=1)  # noqa: N815


def cluster_of(name: str) -> ClusterSpec:
    spec = MANIFESTS[name]["spec"]
    return ClusterSpec.model_validate(spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec)


CLUSTERS = ("raycluster", "rayjob-train", "rayjob-sweep", "rayservice")
JOBS = ("rayjob-train", "rayjob-sweep")


def test_all_manifests_are_looked_at() -> None:
    assert set(MANIFESTS) == {*CLUSTERS, "storage"}
    assert {manifest["kind"] for manifest in MANIFESTS.values()} == {
        "RayCluster", "RayJob", "RayService", "PersistentVolumeClaim",
    }  # fmt: skip


@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_fit_the_project(name: str) -> None:
    spec = cluster_of(name)
    assert spec.rayVersion == version("ray")
    assert spec.enableInTreeAutoscaling
    assert spec.authOptions == {"mode": "token"}
    assert spec.headGroupSpec.rayStartParams == {"num-cpus": "0"}
    for group in spec.workerGroupSpecs:
        assert group.minReplicas <= group.replicas <= group.maxReplicas
    for template in [spec.headGroupSpec.template, *(group.template for group in spec.workerGroupSpecs)]:
        (container,) = template.spec.containers
        assert container.image == IMAGE
        assert container.resources.requests == container.resources.limits
        assert template.spec.securityContext["runAsNonRoot"]
        volumes = {volume["name"]: volume for volume in template.spec.volumes}
        assert {mount["name"] for mount in container.volumeMounts} == set(volumes)
        assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == MANIFESTS["storage"]["metadata"]["name"]


@pytest.mark.parametrize("name", JOBS)
def test_commands_of_jobs_are_commands_of_ours(name: str) -> None:
    spec = MANIFESTS[name]["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[:3] == ["python", "-m", "trainers"]
    check_command(tuple(words[3:]))
    assert "--resume-or-start" in words  # backoffLimit starts it again
    mounts = cluster_of(name).headGroupSpec.template.spec.containers[0].volumeMounts
    assert words[words.index("--storage") + 1].startswith(mounts[0]["mountPath"] + "/")
    assert spec["submitterPodTemplate"]["spec"]["containers"][0]["image"] == IMAGE


def test_the_service_is_what_serve_writes(tmp_path: Path) -> None:
    """Where this fails after a change of serve/: python -m cluster.service_manifest."""
    text = (CLUSTER / "kuberay" / "rayservice.yaml").read_text()
    (command,) = re.findall(r"XDG_STATE_HOME=/tmp (edgeflock serve .*?) --write-config", text.replace("\n#    ", ""), re.DOTALL)
    written = tmp_path / "serve.yaml"
    subprocess.run(
        [BIN / "edgeflock", *shlex.split(command)[1:], "--write-config", written],
        env={**os.environ, "XDG_STATE_HOME": "/tmp"},
        check=True,
    )
    assert MANIFESTS["rayservice"]["spec"]["serveConfigV2"] == written.read_text()
    ServeDeploySchema.model_validate(yaml.safe_load(written.read_text()))


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS does not name the folder with KubeRay's schemas")
@pytest.mark.parametrize("name", CLUSTERS)
def test_kuberays_schemas(name: str) -> None:
    manifest = MANIFESTS[name]
    kind = yaml.safe_load((Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{manifest['kind'].lower()}s.yaml").read_text())
    (schema,) = [
        one["schema"]["openAPIV3Schema"]
        for one in kind["spec"]["versions"]
        if f"ray.io/{one['name']}" == manifest["apiVersion"]
    ]
    _forbid_unknown(schema["properties"]["spec"])
    jsonschema.validate(manifest, schema)


def _forbid_unknown(schema: Any) -> None:
    """As Kubernetes does: keys that a schema does not name are none."""
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            _forbid_unknown(part)
    if isinstance(schema, dict) and isinstance(schema.get("properties"), dict):
        schema.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    if isinstance(schema, dict) and schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)


def test_the_launchers_file_is_rays_but_for_what_has_to_be_filled_in() -> None:
    config = yaml.safe_load((CLUSTER / "vms.yaml").read_text())
    validate_config(prepare_config(config))
    assert config["provider"]["head_ip"] == "FILL_IN"
    assert any("--dashboard-host=127.0.0.1" in line for line in config["head_start_ray_commands"])


def test_the_image_has_what_the_project_needs() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    assert lines[0].endswith(f"-t {IMAGE} .")
    assert "FROM python:3.11-slim" in lines
    installs = [line for line in lines if "pip install" in line]
    assert "torch==" in installs[0]
    assert lines.index("USER ray") > lines.index(installs[-1])
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert all((ROOT / word).exists() for word in copied)
    kept = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept


# -- on a cluster --------------------------------------------------------------------------------------------------------


def small(name: str, storage: Path, folder: Path) -> list[str]:
    """A job's command at a tiny size, with another storage."""
    words = shlex.split(MANIFESTS[name]["spec"]["entrypoint"].replace("/storage/runs", str(storage)))[3:]
    if words[0] == "train":
        tiny = ["scenario.num_vehicles=6", "scenario.horizon_slots=4", "training.evaluation_episodes=2"]
        sets = [word for assignment in tiny for word in ("--set", assignment)]
        return [*words, *sets, "--env-steps", "40", "--num-envs", "2", "--runners", "1"]
    values = {"name": "tiny", "about": "a test", "trial_minutes": 1, "algorithms": ["vdn"], "scenarios": ["games/two-step"]}
    budget = {"training.env_steps": 80, "training.num_envs": 4, "training.evaluation_episodes": 4}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**values, "seeds": 2, "set": budget}))
    return [words[0], "tiny.yaml", *words[2:]]


@pytest.mark.parametrize("name", JOBS)
def test_commands_of_jobs_run(name: str, head: Head, tmp_path: Path) -> None:
    command = small(name, tmp_path / "storage", tmp_path)
    include = ["--include", "tiny.yaml"] if name == "rayjob-sweep" else []
    for _ in range(2 if name == "rayjob-sweep" else 1):  # the second time everything is there already
        done = head.edgeflock("submit", *include, "--", *command, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "storage").iterdir()
    if name == "rayjob-sweep":
        trials = json.loads((folder / "trials.json").read_text())["trials"]
        assert [trial["state"] for trial in trials] == ["finished"] * 2
        assert not (folder / ".tune").exists()
        folder = folder / trials[0]["name"]
    assert (folder / "bundle" / "manifest.json").exists()


@pytest.fixture
def service(head: Head, tmp_path: Path) -> Iterator[str]:
    """The manifest's application, deployed on the cluster with places and a port of this test's; the URL."""
    (tmp_path / "token").write_text("clients-show-this")
    (tmp_path / "state.key").write_bytes(secrets.token_bytes(32))
    bundle = make_bundle(tmp_path / "idmac", *LEARNED["vehicular"])
    port = free_port()
    text = MANIFESTS["rayservice"]["spec"]["serveConfigV2"]
    for old, new in {
        "/etc/edgeflock": str(tmp_path),
        "/storage/bundles/idmac": str(bundle),
        "/tmp/edgeflock/metrics-8000": str(tmp_path / "metrics"),
        "0.0.0.0": "127.0.0.1",
        "8000": str(port),
        "num_cpus: 1.0": "num_cpus: 0.5",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "serve.yaml").write_text(text)
    environment = {
        **head.environment,
        "RAY_AUTH_TOKEN_PATH": str(head.token_file),
        "PYTHONPATH": str(ROOT),
    }

    def serve(*arguments: str) -> None:
        command = [str(BIN / "serve"), *arguments, "-a", head.address]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)

    serve("deploy", str(tmp_path / "serve.yaml"))
    yield f"http://127.0.0.1:{port}"
    serve("shutdown", "-y")


def test_the_service_decides(service: str) -> None:
    headers = {"Authorization": "Bearer clients-show-this"}

    def ready() -> bool:
        """What the workers' readiness probe sees, and a client. Each node has a proxy, and both listen at this port here."""
        try:
            healthy = httpx.get(f"{service}/-/healthz", timeout=10).text == "success"
            return healthy and httpx.get(f"{service}/v1/policies/idmac", headers=headers, timeout=15).status_code == 200
        except httpx.TransportError:
            return False

    wait_for(lambda: all(ready() for _ in range(4)))
    answer = httpx.get(f"{service}/v1/policies/idmac", headers=headers, timeout=15)
    decided = httpx.post(f"{service}/v1/policies/idmac/decide", json=answer.json()["example"], headers=headers, timeout=30)
    assert decided.status_code == 200, decided.text
    assert decided.json()["policy"] == "idmac"
    assert httpx.get(f"{service}/v1/policies").status_code == 401
