"""Profiles of cloud LLMs: how good their answers are and how long they take.

"Table" is one of the paper. Its figures are of requests under a learned policy, so that they fix a profile only together with
the lengths of answers, 150 tokens on average here; README.md says how each number follows.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)]


class LlmProfile(BaseModel):
    """One LLM in the cloud. The defaults are those of `qwen-7b-int8`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    noise: float = Field(1.0, gt=0, le=10, description="distance of its answers from the reference, in units of Qwen-7B's")
    slots: int = Field(2, ge=1, le=100_000, description="requests that it serves at once")
    network_s: Seconds = Field(0.05, description="to the cloud and back")
    prefill_s_per_token: Seconds = Field(0.0005, description="of the prompt")
    decode_s_per_token: Seconds = Field(0.025, description="of the answer")


PROFILES: dict[str, LlmProfile] = {
    "qwen-7b-int8": LlmProfile(),
    "qwen-14b": LlmProfile(noise=0.95, decode_s_per_token=0.022),
    "qwen-72b": LlmProfile(noise=0.9, slots=4, prefill_s_per_token=0.001, decode_s_per_token=0.025),
    "deepseek-r1-32b": LlmProfile(noise=0.8, slots=4, prefill_s_per_token=0.001, decode_s_per_token=0.06),
    "gpt-3.5": LlmProfile(noise=0.85, slots=16, network_s=0.2, prefill_s_per_token=0.0001, decode_s_per_token=0.01),
}
"""Name to profile, as `scenario.llm` takes it."""
