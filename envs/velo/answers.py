"""What an answer is worth and how long it takes, as pure functions of tensors (any shape `[...]`)."""

from __future__ import annotations

from torch import Tensor

from envs.velo.llm import LlmProfile

LEAST_DISTANCE, MOST_DISTANCE = 0.05, 1.8
"""Of an answer of an LLM from the reference."""


def plain_distance(difficulty: Tensor, noise: float, deviation: float, normal: Tensor) -> Tensor:
    """Distance of an LLM's plain answer from the reference: `difficulty * noise`, lognormally spread."""
    return (difficulty * noise * (deviation * normal).exp()).clamp(LEAST_DISTANCE, 1.6)


def relevance(distance: Tensor, near: float, far: float) -> Tensor:
    """How much retrieved text helps, by its distance from the reference: 1 up to `near`, falling to 0 at `far`."""
    return ((far - distance) / (far - near)).clamp(0.0, 1.0)


def augmented_distance(plain: Tensor, relevant: Tensor, gain: float, harm: float) -> Tensor:
    """Distance of an LLM's answer with retrieved text (Action C) from the reference."""
    return (plain * (1.0 - gain * relevant + harm * (1.0 - relevant))).clamp(LEAST_DISTANCE, MOST_DISTANCE)


def service_s(llm: LlmProfile, prompt_tokens: Tensor, answer_tokens: Tensor) -> Tensor:
    """For how long a request occupies a slot of the LLM."""
    return llm.prefill_s_per_token * prompt_tokens + llm.decode_s_per_token * answer_tokens


def entry_score(distance: Tensor, uses: Tensor, phi_distance: float, phi_uses: float) -> Tensor:
    """Eq. 4. Its similarity is read as minus the distance, and use counts, which have no bound, as `uses / (1 + uses)`.

    Entries at distance inf (none) have score -inf.
    """
    return phi_uses * (uses / (1.0 + uses)) - phi_distance * distance


def used_value(value: Tensor, satisfaction: Tensor, delay_s: Tensor) -> Tensor:
    """Eq. 5: the cache value of an entry after it has been used."""
    return (value + satisfaction - delay_s) / 2.0


def reward(
    satisfaction: Tensor,
    delay_s: Tensor,
    direct: Tensor,
    phi_satisfaction: float,
    ratio: float,
    phi_direct: float,
    scale: float,
) -> Tensor:
    """Eqs. 6 and 12 of one server: `scale * (phi_1 q - phi_1 w d - phi_3 a)`, `direct` being 1 for Action B."""
    return scale * (phi_satisfaction * (satisfaction - ratio * delay_s) - phi_direct * direct)


def mix_at_distance(distance: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """How to mix a unit vector with another one, at `cosine` to it, into a unit vector at this distance from the first.

    With the angle `theta = 2 asin(d / 2)`, the mixture is `cos theta` of the first and `sin theta` of the second's part that is
    perpendicular to it.

    Returns:
        The factors of the first and of the second.
    """
    cos, sin = 1.0 - distance.square() / 2.0, distance * (1.0 - distance.square() / 4.0).sqrt()
    second = sin / (1.0 - cosine.square()).sqrt()
    return cos - second * cosine, second
