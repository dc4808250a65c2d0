"""Task mixes and price tables: what users may replace by a YAML file of their own.

"TMO" is the work that the paper's case study stands on (its reference 13); "paper" is the survey on collaborative
intelligence, Sec. V.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

View = Literal["first-person", "overhead", "side"]
VIEWS: tuple[View, ...] = ("first-person", "overhead", "side")
"""The image modalities (paper, Sec. V), in the order of the bits of an action."""

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=3_600)]
Dollars = Annotated[float, Field(ge=0, le=1_000)]
Quality = Annotated[float, Field(ge=-10, le=10)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Category(_Strict):
    """One kind of request. Qualities are on TMO's scale: local 0.7, cloud 1 plus 0.1 for each view, on average."""

    share: Share = Field(description="of the turns")
    local_quality: Quality = Field(description="mean of the local model's answers")
    cloud_quality: Quality = Field(description="mean of the cloud model's answers without views")
    visual_gain: Annotated[float, Field(ge=0, le=10)] = Field(description="what the whole scene would add to it")
    views: dict[View, Share] = Field(default_factory=dict, description="mean relevance of each view; 0 where not named")
    prompt_tokens: tuple[Tokens, Tokens] = Field((20, 60), description="uniform")
    answer_tokens: tuple[Tokens, Tokens] = Field((40, 120), description="uniform")

    @field_validator("prompt_tokens", "answer_tokens")
    @classmethod
    def _ordered(cls, limits: tuple[int, int]) -> tuple[int, int]:
        if limits[0] > limits[1]:
            raise ValueError(f"begins at {limits[0]} and ends at {limits[1]}, expected an end above the beginning")
        return limits


class TaskMix(_Strict):
    """What conversations are about: name of a category to its description."""

    categories: dict[str, Category] = Field(min_length=1, max_length=64)

    @field_validator("categories")
    @classmethod
    def _whole(cls, categories: dict[str, Category]) -> dict[str, Category]:
        total = sum(category.share for category in categories.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares of {', '.join(categories)} sum to {total:g}, expected 1")
        return categories


class LocalEndpoint(_Strict):
    """The text model on the device."""

    latency_s: Seconds = Field(description="mean time of an answer")
    history_s_per_token: Seconds = Field(description="of dialogue that the device's model has not seen (prefill)")


class CloudEndpoint(_Strict):
    """The multimodal model behind the provider's interface. Four numbers each: for 0, 1, 2 and 3 views."""

    usd: tuple[Dollars, Dollars, Dollars, Dollars] = Field(description="price of an answer")
    latency_s: dict[str, tuple[Seconds, Seconds, Seconds, Seconds]] = Field(
        min_length=1, max_length=16, description="mean time of an answer over each network, best network first"
    )
    hold_s: tuple[Seconds, Seconds, Seconds, Seconds] = Field(
        (0.5, 1.0, 1.5, 2.0), description="part of it for which the request occupies the provider's model; our choice"
    )
    history_s_per_token: Seconds = Field(0.0005, description="of dialogue that the cloud has not seen (upload and prefill)")
    history_usd_per_token: Dollars = Field(5e-6, description="of the same: GPT-4o's 5 $ per million input tokens in 2024")
    view_tokens: Tokens = Field(900, description="of one view: TMO's price of a view at 5 $ per million tokens")


class Endpoints(_Strict):
    """Latency and price of both endpoints."""

    local: LocalEndpoint
    cloud: CloudEndpoint


TMO_CLOUD = CloudEndpoint(
    usd=(0.00049, 0.005, 0.00945, 0.01368),
    latency_s={
        "wired": (6.46, 4.76, 6.25, 6.98),
        "wifi": (0.5, 1.9, 2.0, 2.2),
        "5g": (0.5, 6.0, 6.4, 7.1),
        "4g": (0.5, 16.6, 17.6, 19.6),
    },
)
"""As published. (The wired row was measured, the others computed from link rates: hence its slow text.)"""

REALISTIC = Endpoints(local=LocalEndpoint(latency_s=0.8, history_s_per_token=1 / 300), cloud=TMO_CLOUD)
"""Local: 30 tokens at 40 tokens/s, history at 300 tokens/s, which a phone's accelerator does with a 3.8 B model in 4 bits."""

PAPER = Endpoints(local=LocalEndpoint(latency_s=0.011, history_s_per_token=0.0), cloud=TMO_CLOUD)
"""TMO's own local latency, measured on a Jetson TX2; implausible for a model that writes an answer."""

KITCHEN = TaskMix(
    categories={
        "message-editing": Category(
            share=0.25,
            local_quality=0.95,
            cloud_quality=1.05,
            visual_gain=0.0,
            prompt_tokens=(40, 120),
            answer_tokens=(40, 120),
        ),
        "recommendation": Category(
            share=0.25,
            local_quality=0.75,
            cloud_quality=1.05,
            visual_gain=0.3,
            views={"first-person": 0.2, "overhead": 0.6, "side": 0.4},
        ),
        "assistance": Category(
            share=0.25,
            local_quality=0.65,
            cloud_quality=1.0,
            visual_gain=0.5,
            views={"first-person": 0.7, "overhead": 0.5, "side": 0.3},
        ),
        "scene-query": Category(
            share=0.25,
            local_quality=0.45,
            cloud_quality=0.9,
            visual_gain=0.8,
            views={"first-person": 0.6, "overhead": 0.7, "side": 0.5},
        ),
    }
)
"""Four categories of varying difficulty (paper, Sec. V). The paper gives no numbers: see README.md for how these were set."""
