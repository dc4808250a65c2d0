"""Who is taken on, and who would have to wait too long."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.admission import EVERY, FEW, RECOVERY_S, Admission, Overloaded
from serve.app import LARGE
from serve.policies import Decided, Job
from tests.serve.serving import Server


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_expected_wait_by_hand() -> None:
    clock = Clock()
    admission = Admission(1.0, clock)
    with admission.admitted(EVERY):  # 2 EVERY bytes of work, which take 4 s
        clock.now = 4.0
    assert admission.expected_wait_s == 0.0
    waiting = [admission.admitted(0) for _ in range(FEW)]
    for place, one in enumerate(waiting):
        assert admission.expected_wait_s == pytest.approx(2.0 * place)  # half of the work before
        one.__enter__()
    with pytest.raises(Overloaded), admission.admitted(0):
        pass
    clock.now = 5.0
    waiting[0].__exit__(None, None, None)
    # (4 * 255/256 + 1) s for (2 * 255/256 + 1) EVERY bytes, and FEW - 1 requests of one EVERY
    each = (4 * 255 / 256 + 1) / (2 * 255 / 256 + 1)
    assert admission.expected_wait_s == pytest.approx((FEW - 1) * each)
    with admission.admitted(0):
        pass


def test_time_without_requests_is_nobodys() -> None:
    clock = Clock()
    admission = Admission(1.0, clock)
    for arrival in (0.0, 100.0):
        clock.now = arrival
        with admission.admitted(0):
            clock.now += 0.5
    with admission.admitted(0):
        assert admission.expected_wait_s == pytest.approx(0.5)


def test_requests_that_were_waiting_together_share_their_time() -> None:
    clock = Clock()
    admission = Admission(10.0, clock)
    waiting = [admission.admitted(0) for _ in range(4)]
    for one in waiting:
        one.__enter__()
    clock.now = 2.0  # one batch
    for one in waiting:
        one.__exit__(None, None, None)
    with admission.admitted(0):
        assert admission.expected_wait_s == pytest.approx(0.5, rel=0.01)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 10)), max_size=30))
def test_work_that_is_done_is_off_the_books(requests: list[tuple[int, float]]) -> None:
    clock = Clock()
    admission = Admission(float("inf"), clock)
    for length, seconds in requests:
        with admission.admitted(length):
            clock.now += seconds
            assert admission.expected_wait_s >= 0
    assert admission.expected_wait_s == 0.0


@pytest.mark.anyio
async def test_the_server_refuses_what_would_wait_too_long(bundles) -> None:  # type: ignore[no-untyped-def]
    server = Server({"dialogue": bundles["dialogue"]}, wait_s=0.0)
    body = server.example("dialogue")
    assert (await server.decide("dialogue", body)).status_code == 200
    answers = await asyncio.gather(*(server.decide("dialogue", body) for _ in range(FEW + 4)))
    assert sorted(answer.status_code for answer in answers) == [200] * FEW + [503] * 4
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["retry-after"] == "1"
    assert refused.json() == {"error": "requests: too many are waiting"}
    assert "edgeflock_turned_away_requests_total 4.0" in (await server.client.get("/metrics")).text
    assert (await server.decide("dialogue", body)).status_code == 200


def test_nobody_is_refused_while_the_server_keeps_itself_busy_and_shortly_after() -> None:
    clock = Clock()
    admission = Admission(0.5, clock)
    with admission.admitted(0):
        clock.now = 1.0
    waiting = [admission.admitted(0) for _ in range(FEW)]
    for one in waiting:
        one.__enter__()
    assert admission.is_full
    with admission.patience(), admission.patience(), admission.admitted(0):
        clock.now = 5.0
        assert not admission.is_full
    clock.now += RECOVERY_S / 2
    assert not admission.is_full
    clock.now += RECOVERY_S / 2
    assert admission.is_full


@pytest.mark.anyio
async def test_large_requests_are_decided_one_after_the_other(bundles, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    server = Server({"dialogue": bundles["dialogue"]}, wait_s=60.0)
    hosted = server.shelf.newest["dialogue"]
    decide, together, most = hosted.decide, 0, 0

    async def counted(job: Job) -> Decided:
        nonlocal together, most
        together += 1
        most = max(most, together)
        try:
            return await decide(job)
        finally:
            together -= 1

    monkeypatch.setattr(hosted, "decide", counted)
    one = server.example("dialogue")["observation"]
    for teams, expected in ((2, 6), (300, 1)):
        body = {"observations": {name: [value] * teams for name, value in one.items()}}
        assert (len(json.dumps(body)) > LARGE) == (expected == 1)
        most = 0
        answers = await asyncio.gather(*(server.decide("dialogue", body) for _ in range(6)))
        assert {answer.status_code for answer in answers} == {200}
        assert most == expected
