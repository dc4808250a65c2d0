"""Prometheus metrics of all replicas of a machine, by policy."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder where the replicas of a machine put their figures together."""

LATENCY_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
TEAMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of = {"labelnames": ["policy"], "registry": self.registry}
        self._decisions = Counter("edgeflock_decisions", "Decisions made, one for each team", **of)  # type: ignore[arg-type]
        self._latency = Histogram(
            "edgeflock_latency_seconds",
            "From a request's arrival to its answer",
            buckets=LATENCY_S,
            **of,  # type: ignore[arg-type]
        )
        self._batch = Histogram("edgeflock_batch_teams", "Teams decided for together", buckets=TEAMS, **of)  # type: ignore[arg-type]
        self._invalid = Counter("edgeflock_invalid_requests", "Requests refused with a 4xx status", **of)  # type: ignore[arg-type]
        self._turned_away = Counter(
            "edgeflock_turned_away_requests", "Requests that would have had to wait too long", registry=self.registry
        )

    def decided(self, policy: str, teams: int, seconds: float) -> None:
        """One request was answered."""
        self._decisions.labels(policy).inc(teams)
        self._latency.labels(policy).observe(seconds)

    def batch(self, policy: str, teams: int) -> None:
        """One batch was computed."""
        self._batch.labels(policy).observe(teams)

    def invalid(self, policy: str) -> None:
        """One request was refused."""
        self._invalid.labels(policy).inc()

    def turned_away(self) -> None:
        """One request met an overloaded replica."""
        self._turned_away.inc()

    def text(self) -> bytes:
        """Everything in Prometheus' text format; of all replicas of the machine where they share a folder."""
        if FOLDER not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together, path=str(Path(os.environ[FOLDER])))
        return generate_latest(together)
