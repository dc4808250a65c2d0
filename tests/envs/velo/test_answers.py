"""Equations 2 to 6 and 12, and the LLM's answers, by hand and by property."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.velo import answers
from envs.velo.llm import PROFILES, LlmProfile


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_best_entry_by_hand():
    """Eq. 4: -0.3 + 0.05 * 3 / 4 = -0.2625 beats -0.28 of an entry that is nearer but unused."""
    score = answers.entry_score(f64(0.3, 0.28, torch.inf), f64(3, 0, 0), 1.0, 0.05)
    assert score.tolist() == pytest.approx([-0.2625, -0.28, -torch.inf])


def test_cache_value_by_hand():
    """Eq. 5: (-4 - 0.75 - 0.05) / 2 = -2.4."""
    assert answers.used_value(f64(-4.0), f64(-0.75), f64(0.05)).item() == pytest.approx(-2.4)


def test_rewards_by_hand():
    """Eq. 12, w = 0.1: direct 10 (-0.75 - 0.1 * 5 - 0.6), augmented 10 (-0.6 - 0.1 * 7), reused 10 (-0.8 - 0.003)."""
    reward = answers.reward(f64(-0.75, -0.6, -0.8), f64(5, 7, 0.03), f64(1, 0, 0), 1.0, 0.1, 0.6, 10.0)
    assert reward.tolist() == pytest.approx([-18.5, -13.0, -8.03])


def test_augmentation_by_hand():
    """
    Between 0.4 and 1.1, text at 0.75 has relevance 0.5: 0.8 * (1 - 0.6 * 0.5 + 0.4 * 0.5) = 0.72. Fully relevant text leaves
    0.8 * 0.4, irrelevant text makes 0.8 * 1.4, and nothing is worse than 1.8 or better than 0.05.
    """
    relevant = answers.relevance(f64(0.75, 0.2, 1.2), 0.4, 1.1)
    assert relevant.tolist() == pytest.approx([0.5, 1, 0])
    assert answers.augmented_distance(f64(0.8, 0.8, 0.8), relevant, 0.6, 0.4).tolist() == pytest.approx([0.72, 0.32, 1.12])
    assert answers.augmented_distance(f64(1.6, 0.06), f64(0, 1), 0.6, 0.4).tolist() == [1.8, 0.05]


def test_service_times_by_hand_and_of_the_tables():
    """30 prompt tokens at 0.001 s and 100 answer tokens at 0.02 s; Table I: Qwen-14B answers in 3.34 s."""
    llm = LlmProfile(prefill_s_per_token=0.001, decode_s_per_token=0.02)
    assert answers.service_s(llm, f64(30), f64(100)).item() == pytest.approx(2.03)
    qwen = PROFILES["qwen-14b"]
    assert answers.service_s(qwen, f64(30), f64(150)).item() + qwen.network_s == pytest.approx(3.34, abs=0.05)


def test_plain_answers_by_hand():
    """0.7 * 0.9 * e^(0.2 * 1) = 0.769; clipped to [0.05, 1.6]."""
    distance = answers.plain_distance(f64(0.7, 9, 0.01), 0.9, 0.2, f64(1, 0, 0))
    assert distance.tolist() == pytest.approx([0.63 * 1.2214028, 1.6, 0.05])


@given(st.floats(0.05, 1.8), st.floats(-0.9, 0.9))
def test_a_mixture_lies_on_the_sphere_at_its_distance(distance, cosine):
    """(1, 0) and (cosine, sqrt(1 - cosine^2)) are mixed."""
    first, second = answers.mix_at_distance(f64(distance), f64(cosine))
    x, y = (first + second * cosine).item(), (second * (1 - cosine**2) ** 0.5).item()
    assert x**2 + y**2 == pytest.approx(1)
    assert ((x - 1) ** 2 + y**2) ** 0.5 == pytest.approx(distance)
