"""What the trainer asks of other processes on a cluster, and for how long it waits for them.

A runner that died or does not answer is replaced, and nobody waits for it. A learner that died ends the training: its
optimiser is lost, and the last checkpoint is where to go on. No wait is longer than `training.timeout_s`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.actor_manager import FaultTolerantActorManager, RemoteCallResults

from envs.errors import Failure, InputError

SAMPLE, PING = "sample", "ping"
"""Kinds of requests to runners."""

POLL_S = 0.01
LOCAL_S = 20.0
"""Longest wait for what this machine has, to which no node will be added."""

PING_S = 2.0
"""Between two questions whether a lost runner is back."""

T = TypeVar("T")
Request = Callable[[Any], Any]
"""What a runner is asked to do with itself."""

log = logging.getLogger(__name__)
for noisy in ("ray.rllib.utils.actor_manager", "ray.rllib.env.env_runner_group"):
    logging.getLogger(noisy).setLevel(logging.CRITICAL)  # tracebacks of what is said here in a line


class Lost(Failure):
    """Something without which the training cannot go on is gone."""


class Stuck(Lost):
    """The same, while a thread of this process waits for it inside of Ray."""

    stuck = True

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Needs:
    """CPUs and GPUs of each of a number of processes."""

    what: str
    count: int
    gpus: float

    def __str__(self) -> str:
        return f"{self.count} {self.what} with 1 CPU" + (f" and {self.gpus:g} GPUs" if self.gpus else "") + " each"


def require_resources(needs: list[Needs], timeout_s: float) -> None:
    """Waits until the cluster has room for all of these processes at once: an autoscaler is asked for what is missing.

    Raises:
        InputError: It has not, after `timeout_s`; or after a moment where Ray is only this machine.
    """
    if ray.util.get_current_placement_group() is not None:  # a trial of a sweep, for which Tune has reserved everything
        return
    bundles = [{"CPU": 1.0, **({"GPU": need.gpus} if need.gpus else {})} for need in needs for _ in range(need.count)]
    if not bundles:
        return
    wait_s = timeout_s if os.environ.get("RAY_ADDRESS") else min(timeout_s, LOCAL_S)
    room = ray.util.placement_group(bundles)
    try:
        fits = room.wait(wait_s)
    finally:
        ray.util.remove_placement_group(room)
    if not fits:
        has = ray.cluster_resources()
        raise InputError(
            f"training needs {' and '.join(str(need) for need in needs if need.count)}, but Ray has {has.get('CPU', 0):g} CPUs "
            f"and {has.get('GPU', 0):g} GPUs, not all of them free, after {wait_s:g} s: add nodes, or ask for less"
        )


class RemoteRunners:
    """The remote runners of a training: which of them owe an answer, since when, and what they have delivered."""

    def __init__(self, group: EnvRunnerGroup, in_flight: int, timeout_s: float) -> None:
        self.delivered: Counter[int] = Counter()
        """Runner to answers so far."""
        self._manager: FaultTolerantActorManager = group._worker_manager
        self._in_flight, self._timeout_s = in_flight, timeout_s
        self._owed: Counter[int] = Counter()
        self._since: dict[int, float] = {}  # when a runner that owes an answer was asked, or last answered
        self._started: set[int] = set()  # have answered since their process began
        self._pinged = self._answered = time.monotonic()
        self._reason = "they are still starting, or wait for CPUs"

    def collect(self, make_request: Callable[[], Request], everyone: bool) -> list[Any]:
        """Asks all runners that have room for another request, and waits for answers to this or to earlier requests.

        Args:
            make_request: Makes what is sent to all runners that have room, once for each round of requests.
            everyone: Wait until no runner owes an answer; otherwise until there is one.

        Returns:
            The answers, ordered by runner.

        Raises:
            Lost: For `timeout_s` there was no runner that answered.
        """
        self._answered = time.monotonic()
        self._ask(make_request)
        answers = self._fetch()
        while not answers or (everyone and self._owed.total()):
            self._replace_late()
            self.restore()
            if not answers:
                self._ask(make_request)
            answers += self._fetch()
            if not answers and time.monotonic() - self._answered > self._timeout_s:
                raise Lost(f"no runner has delivered episodes for {self._timeout_s:g} s ({self._reason}): see to the nodes")
        return [answer for _, answer in sorted(answers, key=lambda pair: pair[0])]

    def restore(self) -> None:
        """Asks lost runners whether Ray has started them anew, without waiting for what they say."""
        for result in self._manager.fetch_ready_async_reqs(tags=PING, mark_healthy=True):
            if result.ok:
                self._started.add(result.actor_id)
                log.warning("runner %d is back", result.actor_id)
        lost = set(self._manager.actor_ids()) - set(self._manager.healthy_actor_ids())
        if lost and time.monotonic() - self._pinged > PING_S:
            self._pinged = time.monotonic()
            self._manager.foreach_actor_async("ping", tag=PING, healthy_only=False, remote_actor_ids=sorted(lost))

    def healthy(self) -> int:
        """Runners that are not lost."""
        return self._manager.num_healthy_actors()

    def stop(self) -> None:
        """Ends them without asking."""
        self._manager.clear()

    def _ask(self, make_request: Callable[[], Request]) -> None:
        while free := [runner for runner in self._manager.healthy_actor_ids() if self._owed[runner] < self._in_flight]:
            for runner in free:
                if not self._owed[runner]:
                    self._since[runner] = time.monotonic()
                self._owed[runner] += 1
            self._manager.foreach_actor_async(make_request(), tag=SAMPLE, remote_actor_ids=free)

    def _fetch(self) -> list[tuple[int, Any]]:
        answers = []
        for result in self._manager.fetch_ready_async_reqs(tags=SAMPLE, timeout_seconds=POLL_S):
            runner = result.actor_id
            if result.ok:
                self._owed[runner] -= 1
                self._since[runner] = self._answered = time.monotonic()
                self._started.add(runner)
                self.delivered[runner] += 1
                answers.append((runner, result.get()))
            elif self._owed.pop(runner, 0):
                self._started.discard(runner)
                self._reason = first_line(result.get())
                log.warning("runner %d is lost, and the training goes on without it: %s", runner, self._reason)
        return answers

    def _replace_late(self) -> None:
        """Runners that hang are killed, upon which Ray starts them anew; those that still wait for a node go on waiting."""
        now = time.monotonic()
        for runner in [runner for runner, owed in self._owed.items() if owed and now - self._since[runner] > self._timeout_s]:
            self._reason = f"did not answer within {self._timeout_s:g} s"
            log.warning("runner %d %s (training.timeout_s): the training goes on without it", runner, self._reason)
            del self._owed[runner]
            self._manager.set_actor_state(runner, healthy=False)
            if runner in self._started:
                self._started.remove(runner)
                ray.kill(self._manager.actors()[runner], no_restart=False)


class RemoteLearners(FaultTolerantActorManager):
    """RLlib's manager of remote learners, which waits for ever as it comes. Here a learner that fails ends the training."""

    def __init__(self, actors: list[Any], timeout_s: float) -> None:
        super().__init__(actors)
        self._timeout_s = timeout_s

    def foreach_actor(self, func: Any, *, timeout_seconds: float | None = None, **kwargs: Any) -> RemoteCallResults:
        """As RLlib's.

        Raises:
            Lost: A learner has died, or does not answer.
        """
        results = super().foreach_actor(func, timeout_seconds=timeout_seconds or self._timeout_s, **kwargs)
        asked = len(kwargs.get("remote_actor_ids") or self.actor_ids())
        errors = [result.get() for result in results if not result.ok]
        if errors:
            raise Lost(f"a learner is lost: {first_line(errors[0])}")
        if len(results) < asked:
            raise Lost(
                f"{asked - len(results)} of {asked} learners did not answer within {self._timeout_s:g} s (training.timeout_s)"
            )
        return results

    def healthy_actor_ids(self) -> list[int]:
        """All of them, or `Lost`: what one of them missed makes it useless."""
        healthy = super().healthy_actor_ids()
        if len(healthy) < self.num_actors():
            raise Lost("a learner is lost")
        return healthy


def within(limit_s: float, act: Callable[[], T], what: str) -> T:
    """What `act` returns. For waits inside of a library that have no limit of their own.

    Raises:
        Stuck: It takes longer.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(act())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        finished = wait([done], limit_s).done
    except KeyboardInterrupt:
        raise Stuck(f"interrupted: {what}", code=130) from None
    if not finished:
        raise Stuck(f"{what} within {limit_s:g} s: see to the nodes")
    return done.result()


def first_line(error: BaseException) -> str:
    """What an error of Ray's says, without its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
