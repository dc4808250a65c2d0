"""Decisions over HTTP against a bare Ray Serve echo of the same payload, by the same client, in one run. One replica each.

Ray runs the echo in two event loops, as it does unless told otherwise; "in one event loop" is the echo as replicas run here.

python -m tests.benchmarks.serve_speed bundles/idmac --proxy haproxy --out speed.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.load import Outcome, closed_loop, several_teams

PORT = 8765


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--proxy", choices=["default", "haproxy"], default="default")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--teams", type=int, default=64)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    from serve.cli import keep_to_loopback, use_haproxy

    if asked.proxy == "haproxy":
        use_haproxy()
    else:
        keep_to_loopback()
    rows = measure(asked)
    for row in rows:
        print(" | ".join(str(value) for value in row.values()))
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=2))


def measure(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Echo and decisions in turns, so that a busy machine disturbs both alike."""
    from ray import serve

    from serve.cli import make_settings, parse_sources
    from serve.config import PolicySources, Scaling
    from serve.deployment import ENVIRONMENT, description, prepare
    from serve.running import server

    sources = PolicySources(policies=parse_sources([str(bundle) for bundle in asked.bundles]))
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(
            None, Path(folder) / "key", Path(folder) / "metrics", ["limits.ongoing=64", "limits.queued=64"]
        )
        prepare(settings, sources)
        whole = description(
            sources, settings, Scaling(num_cpus=0.5), "0.0.0.0" if asked.proxy == "haproxy" else "127.0.0.1", PORT
        )
        with server(whole, cores=len(sources.policies) * 2 + 1):
            rows = []
            for name, bundle in sources.policies.items():
                example = json.loads((bundle / "example.json").read_text())
                for prefix, environment in {"echo": {}, "one-loop": ENVIRONMENT}.items():
                    serve.run(echo_of(example, environment), name=f"{prefix}-{name}", route_prefix=f"/{prefix}-{name}")
                rows += measure_policy(asked, name, example)
            return rows


def echo_of(example: dict[str, Any], environment: dict[str, str]) -> Any:
    """A deployment that answers with what it was sent, as one writes it first: FastAPI, and a typed pydantic body.

    Args:
        environment: Of its process; with `serve.deployment.ENVIRONMENT` Ray handles it as it does a replica that decides.
    """
    from fastapi import FastAPI
    from pydantic import create_model
    from ray import serve

    app = FastAPI()

    def kind(value: Any, leaf: type) -> Any:
        return list[kind(value[0], leaf)] if isinstance(value, list) else leaf  # type: ignore[misc]

    parts = {
        part: (create_model(part, **{key: (kind(value, leaf), ...) for key, value in example[part].items()}), ...)  # type: ignore[call-overload]
        for part, leaf in (("observation", float), ("action_mask", bool))
    }
    body = create_model("Body", **parts)  # type: ignore[call-overload]

    async def echo(value: Any) -> Any:
        return value

    echo.__annotations__ = {"value": body, "return": body}
    app.post("/")(echo)
    options = {"num_cpus": 0.5, "runtime_env": {"env_vars": environment}}
    deployment: Any = serve.deployment(max_ongoing_requests=64, ray_actor_options=options)(serve.ingress(app)())
    return deployment.bind()


def measure_policy(asked: argparse.Namespace, name: str, example: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for the echo, one for decisions, one for several teams in a request."""
    one = json.dumps(example).encode()
    many = several_teams(one, asked.teams)
    base = f"http://127.0.0.1:{PORT}"
    decide = f"{base}/v1/policies/{name}/decide"
    subjects = {
        ("echo", 1): (f"{base}/echo-{name}/", one, 1),
        ("echo in one event loop", 1): (f"{base}/one-loop-{name}/", one, 1),
        ("decide", 1): (decide, one, 1),
        ("echo", 16): (f"{base}/echo-{name}/", one, 16),
        ("echo in one event loop", 16): (f"{base}/one-loop-{name}/", one, 16),
        ("decide", 16): (decide, one, 16),
        (f"decide for {asked.teams} teams", 1): (decide, many, 1),
        (f"decide for {asked.teams} teams", 4): (decide, many, 4),
    }
    results: dict[Any, list[Outcome]] = {key: [] for key in subjects}
    for url, body, clients in subjects.values():
        asyncio.run(closed_loop(url, body, clients, 1.0))
    for _ in range(asked.repetitions):
        for key, (url, body, clients) in subjects.items():
            results[key].append(asyncio.run(closed_loop(url, body, clients, asked.seconds)))
    return [row(asked, name, what, clients, outcomes) for (what, clients), outcomes in results.items()]


def row(asked: argparse.Namespace, name: str, what: str, clients: int, outcomes: list[Outcome]) -> dict[str, Any]:
    """The median of the repetitions."""
    middle = sorted(outcomes, key=lambda outcome: outcome.rate)[len(outcomes) // 2]
    teams = asked.teams if "teams" in what else 1
    return {
        "proxy": asked.proxy,
        "policy": name,
        "what": what,
        "clients": clients,
        "p50_ms": round(middle.latency_ms(50), 2),
        "p99_ms": round(middle.latency_ms(99), 2),
        "requests_per_s": round(middle.rate, 1),
        "decisions_per_s": round(middle.rate * teams, 1),
        "statuses": dict(middle.statuses),
    }


if __name__ == "__main__":
    main()
