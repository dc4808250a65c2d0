"""Worker processes that share the copies of a PettingZoo environment.

A worker imports neither torch nor the program that started it, so that it starts fast and stays small.
"""

from __future__ import annotations

import itertools
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any

from envs.pettingzoo_copies import Board, Layout, LocalCopies, Recipe


class WorkerCopies:
    """Copies of the environment shared out over worker processes; a reset or a step costs one message to each and back.

    The board lies in shared memory without a name, and a worker ends when its connection closes: nothing is left behind
    even if this process is killed. Any failure, and Ctrl-C during a step, closes the workers for good.
    """

    def __init__(self, recipe: Recipe, layout: Layout, rows: int, workers: int, timeout: float) -> None:
        """Starts the workers and waits until they have made their copies.

        Args:
            timeout: Longest wait for a worker's answer (start, reset or step), in seconds.

        Raises:
            RuntimeError: A worker could not start.
        """
        self._timeout, self._module = timeout, recipe.module
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _end, self._workers)
        size = Board.size(layout, rows)
        with (
            tempfile.TemporaryFile() if not hasattr(os, "memfd_create") else os.fdopen(os.memfd_create("board"), "w+b") as file
        ):
            file.truncate(size)
            self.board = Board.over(layout, rows, mmap.mmap(file.fileno(), size))
            shares = [rows * k // workers for k in range(workers + 1)]
            for first, end in itertools.pairwise(shares):
                self._workers.append(_Worker((recipe, layout, rows, first, end), file.fileno()))
        self._exchange(None)

    def reset(self) -> None:
        """As `LocalCopies.reset`."""
        self._exchange(b"reset")

    def step(self) -> None:
        """As `LocalCopies.step`."""
        self._exchange(b"step")

    def close(self) -> None:
        """Ends the workers."""
        self._finalizer()

    def _exchange(self, command: bytes | None) -> None:
        """Sends the command, if any, to every worker and waits for all answers.

        Raises:
            RuntimeError: A worker failed, died or did not answer in time.
        """
        if not self._workers:
            raise RuntimeError(f"the copies of {self._module} are closed")
        try:
            if command is not None:
                for worker in self._workers:
                    worker.send(command)
            deadline = time.monotonic() + self._timeout
            for worker in self._workers:
                if complaint := worker.answer(deadline):
                    raise RuntimeError(f"{self._module}, worker for the rows {worker.rows}: {complaint}")
        except BaseException:
            self.close()  # answers may still be on their way: the workers are out of step
            raise


class _Worker:
    """This side of a worker process."""

    def __init__(self, task: tuple[Recipe, Layout, int, int, int], memory: int) -> None:
        """Starts the process, with the file descriptor of the board's memory."""
        self.rows = f"{task[3]} to {task[4] - 1}"
        self.connection, far_end = Pipe()
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({far_end.fileno()}, {memory})"
        with far_end:
            # not multiprocessing.Process: that would import the main program (ray, torch, the command line) in each worker.
            # Standard output belongs to the main program, so prints go to standard error.
            self.process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(far_end.fileno(), memory), stdout=2)
        with suppress(OSError):  # it died already: `answer` will tell
            self.connection.send(task)

    def send(self, command: bytes) -> None:
        with suppress(OSError):
            self.connection.send_bytes(command)

    def answer(self, deadline: float) -> str:
        """Waits for the worker's answer; what is wrong, or an empty string."""
        try:
            if not self.connection.poll(max(0.0, deadline - time.monotonic())):
                return "no answer in time (a longer timeout_s may help)"
            return self.connection.recv_bytes().decode()
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
            return f"the process died with exit code {self.process.poll()}"


def _end(workers: list[_Worker]) -> None:
    """Closes the connections, at which workers end by themselves, and kills the process that does not."""
    for worker in workers:
        worker.connection.close()
    deadline = time.monotonic() + 2.0
    while workers:
        process = workers.pop().process
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve(connection_descriptor: int, memory_descriptor: int) -> None:
    """Runs in a worker: makes its copies and obeys until the connection closes. An answer is empty or says what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    connection = Connection(connection_descriptor)
    made: list[LocalCopies] = []
    with suppress(EOFError, OSError):  # the main process is gone
        recipe, layout, rows, first, end = connection.recv()
        board = Board.over(layout, rows, mmap.mmap(memory_descriptor, Board.size(layout, rows))).part(first, end)
        complaint = _attempt(lambda: made.append(LocalCopies(recipe, layout, board)))
        connection.send_bytes(complaint)
        while not complaint:
            command = connection.recv_bytes()
            complaint = _attempt(made[0].reset if command == b"reset" else made[0].step)
            connection.send_bytes(complaint)
    for copies in made:
        copies.close()


def _attempt(work: Callable[[], Any]) -> bytes:
    """Does the work; an empty answer, or the traceback."""
    try:
        work()
    except Exception:
        return traceback.format_exc().encode()
    return b""
