"""Decisions that arrive together are computed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Batcher(Generic[Job, Result]):
    """Gathers what arrives while the last batch is computed: nobody waits for a batch to fill up.

    Quick batches are computed in the event loop's own thread, where handing over would cost more than the computation; slow
    ones in a thread of their own, so that the server goes on answering meanwhile.
    """

    def __init__(
        self, compute: Callable[[Sequence[Job]], list[Result]], is_slow: Callable[[Sequence[Job]], bool], largest: int
    ) -> None:
        """
        Args:
            compute: Jobs of one kind to their results, in order.
            is_slow: Whether that takes so long that others should not wait for it.
            largest: Most jobs of one batch.
        """
        self._compute, self._is_slow = compute, is_slow
        self._largest = largest
        self._thread = ThreadPoolExecutor(1, "policy")
        self._waiting: dict[Hashable, list[tuple[Job, asyncio.Future[Result]]]] = {}
        self._busy = False

    async def submit(self, kind: Hashable, job: Job) -> Result:
        """The job's result. Jobs of the same kind may share a batch."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.setdefault(kind, []).append((job, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._next, loop)
        return await future

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._take()
        if not batch:
            self._busy = False
            return
        jobs = [job for job, _ in batch]
        if not self._is_slow(jobs):
            try:
                results: list[Result] | Exception = self._compute(jobs)
            except Exception as error:
                results = error
            self._deliver(batch, results)
            loop.call_soon(self._next, loop)
        else:
            computed = loop.run_in_executor(self._thread, self._compute, jobs)
            computed.add_done_callback(lambda done: self._finish(loop, batch, done))

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[Job, asyncio.Future[Result]]],
        done: asyncio.Future[list[Result]],
    ) -> None:
        error = done.exception()
        self._deliver(batch, error if isinstance(error, Exception) else done.result())
        self._next(loop)

    def _take(self) -> list[tuple[Job, asyncio.Future[Result]]]:
        """The kind that has waited longest; jobs whose client has gone are left out."""
        while self._waiting:
            kind = next(iter(self._waiting))
            waiting = self._waiting.pop(kind)
            if len(waiting) > self._largest:
                self._waiting[kind] = waiting[self._largest :]
            batch = [(job, future) for job, future in waiting[: self._largest] if not future.done()]
            if batch:
                return batch
        return []

    @staticmethod
    def _deliver(batch: list[tuple[Job, asyncio.Future[Result]]], results: list[Result] | Exception) -> None:
        for place, (_, future) in enumerate(batch):
            if future.done():
                continue
            if isinstance(results, Exception):
                future.set_exception(results)
            else:
                future.set_result(results[place])
