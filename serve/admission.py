"""Requests that would have to wait too long are refused at once, so that those that are taken on are answered in time.

A limit on their number alone cannot do this: a hundred decisions for one team take as long as two for fifty. What is counted
here is the length of what was received, with which the work grows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MEMORY = 256
"""Over about so many requests the time for a byte is averaged: a pause of the machine counts little, another load soon."""

FEW = 4
"""So many requests are always taken on, however long one takes: nobody who asks for little meets a refusal."""

RECOVERY_S = 1.0
"""So long after it did something else the server may still be working off what came meanwhile."""

EVERY = 1000
"""Bytes that are added to each request's length: the work that is the same for all."""


class Overloaded(Exception):
    """The request would have to wait too long."""


class Admission:
    """The work that one process has taken on, and how long it will take."""

    def __init__(self, longest_wait_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._longest_wait_s, self._clock = longest_wait_s, clock
        self._requests = self._waiting = 0  # taken on, and their bytes
        self._answered = clock()  # when the last request was
        self._busy_otherwise, self._patient_until = 0, -math.inf
        self._busy_s = self._done = 0.0  # with about the last `MEMORY` requests, and their bytes

    @property
    def expected_wait_s(self) -> float:
        """How long a request that came now would wait for those before it."""
        return self._waiting * self._busy_s / self._done if self._done else 0.0

    @property
    def is_full(self) -> bool:
        """Whether a request that came now would wait longer than the longest time, and has to."""
        late = self._requests >= FEW and self.expected_wait_s > self._longest_wait_s
        return late and not self._busy_otherwise and self._clock() >= self._patient_until

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Nobody is refused while the server does something else as well, such as loading a bundle, and shortly after."""
        self._busy_otherwise += 1
        try:
            yield
        finally:
            self._busy_otherwise -= 1
            self._patient_until = self._clock() + RECOVERY_S

    @contextmanager
    def admitted(self, length: int) -> Iterator[None]:
        """Lasts until a request whose body has `length` bytes is answered. The first `FEW` always are.

        Raises:
            Overloaded: It would wait longer than the longest time.
        """
        if self.is_full:
            raise Overloaded
        size, entered = length + EVERY, self._clock()
        self._requests += 1
        self._waiting += size
        try:
            yield
        finally:
            now = self._clock()
            self._requests -= 1
            self._waiting -= size
            keep = 1.0 - 1.0 / MEMORY
            self._busy_s = keep * self._busy_s + now - max(self._answered, entered)
            self._done = keep * self._done + size
            self._answered = now
