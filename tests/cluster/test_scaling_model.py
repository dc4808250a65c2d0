"""The model of sampling over a cluster, by hand."""

import pytest

from cluster.scaling import Assumed, Measured, asynchronous, saturation, stages, synchronous

ASSUMED = Assumed(bandwidth=1e6, cores_per_node=4)
PARTS = Measured(
    name="by hand",
    cores=1,
    episodes=10,
    steps=5.0,
    updates=2,
    play_s=1.0,
    spread=0.0,
    ask_s=0.001,
    take_s=0.009,
    publish_s=0.01,
    fetch_s=0.25,
    update_s=0.02,
    episode_bytes=1e3,
    weights_bytes=2e4,
    store_bytes_per_s=1e9,
    points=[],
)


def test_a_round_that_waits_for_all() -> None:
    # 8 runners on 2 nodes: 1 + 0.25 + 0.01 + 8 * 0.01 + 2 * 0.02 + (8 * 10 * 1000 + 2 * 20000) / 1e6 = 1.5 s for 8 * 50 steps
    assert synchronous(PARTS, 8, False, ASSUMED) == pytest.approx(400 / 1.5)
    # with two updates for every answer there are 16: 0.28 s more
    assert synchronous(PARTS, 8, True, ASSUMED) == pytest.approx(400 / 1.78)


def test_stages_that_work_at_the_same_time() -> None:
    rates = stages(PARTS, 10, True, ASSUMED)
    assert rates == pytest.approx({"runners": 50 * 10 / 1.25, "trainer": 50 / (0.01 + 0.01 + 0.04), "network": 50 * 1e6 / 2e4})
    assert asynchronous(PARTS, 10, True, ASSUMED) == pytest.approx(400.0)
    assert asynchronous(PARTS, 1000, True, ASSUMED) == pytest.approx(50 / 0.06)


def test_where_more_runners_are_no_gain() -> None:
    # 40 R reaches 0.8 * 833 at R = 17
    assert saturation(PARTS, True, ASSUMED) == (17, "runners")
