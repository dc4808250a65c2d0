"""A load generator: keep-alive connections that send one request again and again.

python -m tests.benchmarks.load http://127.0.0.1:8000/v1/policies/idmac/decide bundles/idmac/example.json --clients 16
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

FAILED = 0  # in place of a status: the connection broke


@dataclass
class Outcome:
    """What became of the requests.

    Attributes:
        finished: Of each request: when it was sent, in seconds since the start, its latency in seconds, and its status.
        seconds: How long it took altogether.
        late_s: By how much requests were sent later than they were due, since the generator had too much to do.
    """

    finished: list[tuple[float, float, int]] = field(default_factory=list)
    seconds: float = 0.0
    late_s: list[float] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        """Number of answers by status, `FAILED` among them."""
        return Counter(status for _, _, status in self.finished)

    def latency_ms(self, percentile: float, status: int = 200) -> float:
        """Of the answers with this status; NaN if there was none."""
        latencies = [latency for _, latency, of in self.finished if of == status]
        return float(np.percentile(latencies, percentile)) * 1e3 if latencies else float("nan")

    @property
    def rate(self) -> float:
        """Successful answers per second."""
        return self.statuses[200] / self.seconds

    def __str__(self) -> str:
        statuses = ", ".join(f"{count} x {status or 'failed'}" for status, count in sorted(self.statuses.items()))
        latency = " / ".join(f"{self.latency_ms(p):.2f}" for p in (50, 95, 99))
        late = f", sent {np.percentile(self.late_s, 99) * 1e3:.2f} ms late (p99)" if self.late_s else ""
        return f"{self.rate:.0f} req/s, p50/p95/p99 {latency} ms, {statuses}{late}"


class Connection:
    """One connection to the server, opened again whenever it breaks."""

    def __init__(self, url: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items()]
        self._request = "\r\n".join([*lines, "", ""]).encode() + body
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self) -> int:
        """The status of one request, `FAILED` where there was no answer."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._address, limit=2**22)
            reader, writer = self._streams
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"transfer-encoding: chunked" in head:
                while (size := int(await reader.readline(), 16)) or await reader.readline() != b"\r\n":
                    await reader.readexactly(size + 2)
            else:
                await reader.readexactly(int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]))
            if b"connection: close" in head:
                self.close()
            return int(head.split(b" ", 2)[1])
        except (OSError, asyncio.IncompleteReadError, IndexError, ValueError):
            self.close()
            return FAILED

    def close(self) -> None:
        """Ends the connection, if it is open."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def several_teams(body: bytes, teams: int) -> bytes:
    """A request to decide for one team, as one for `teams` of them."""
    plural = {"observation": "observations", "action_mask": "action_masks"}
    parts = json.loads(body)
    return json.dumps(
        {plural[part]: {key: [v] * teams for key, v in values.items()} for part, values in parts.items()}
    ).encode()


async def closed_loop(url: str, body: bytes, clients: int, seconds: float, headers: dict[str, str] | None = None) -> Outcome:
    """As many requests as `clients` get done who wait for each answer before they send the next request."""
    outcome, start = Outcome(), time.perf_counter()

    async def client() -> None:
        connection = Connection(url, body, headers)
        while (sent := time.perf_counter() - start) < seconds:
            status = await connection.post()
            outcome.finished.append((sent, time.perf_counter() - start - sent, status))
            if status == FAILED:
                await asyncio.sleep(0.01)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    outcome.seconds = time.perf_counter() - start
    return outcome


async def open_loop(url: str, body: bytes, rate: float, seconds: float, headers: dict[str, str] | None = None) -> Outcome:
    """`rate` requests per second, whatever becomes of them; the latency counts from when a request was due."""
    outcome, start = Outcome(), time.perf_counter()
    idle: list[Connection] = []

    async def request(due: float) -> None:
        connection = idle.pop() if idle else Connection(url, body, headers)
        outcome.late_s.append(time.perf_counter() - start - due)
        status = await connection.post()
        outcome.finished.append((due, time.perf_counter() - start - due, status))
        idle.append(connection)

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            due = number / rate
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(max(due - (time.perf_counter() - start), 0))
            tasks.create_task(request(due))
    outcome.seconds = time.perf_counter() - start
    for connection in idle:
        connection.close()
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("body", type=Path, help="file with the request")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rate", type=float, help="requests per second, instead of clients who wait for their answers")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--token", help="bearer token")
    asked = parser.parse_args()
    headers = {"Authorization": f"Bearer {asked.token}"} if asked.token else {}
    body = asked.body.read_bytes()
    if asked.rate:
        print(asyncio.run(open_loop(asked.url, body, asked.rate, asked.seconds, headers)))
    else:
        print(asyncio.run(closed_loop(asked.url, body, asked.clients, asked.seconds, headers)))


if __name__ == "__main__":
    main()
