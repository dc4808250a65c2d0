"""Everything that the velo problem assumes: one strict model, each number with its unit, bounds and source.

"Paper" is the one on VELO and DLRS; its equations and tables are cited by number. Numbers without a source are ours; README.md
says why.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from envs.registry import Scenario
from envs.tables import read_table
from envs.velo.corpus import CorpusConfig, Share
from envs.velo.llm import PROFILES, LlmProfile

Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Distance = Annotated[float, Field(ge=0, le=2)]

PARTS: dict[str, tuple[str, ...]] = {"none": (), "similar": ("similar",), "new": ("new",), "both": ("similar", "new")}
"""The parts of each test, in their order."""


class VeloScenario(Scenario):
    """Edge servers with vector stores in front of a cloud LLM that they share (see README.md)."""

    problem: Literal["velo"] = "velo"

    # Requests
    num_servers: int = Field(3, ge=1, le=1_000, description="N; the paper has 1 to 5")
    corpus: CorpusConfig = Field(CorpusConfig(), description="what is asked")
    build_requests: int = Field(100, ge=1, le=10_000, description="of each server while its store fills")
    test: Literal["none", "similar", "new", "both"] = Field("none", description="what is asked then, the stores being frozen")
    test_requests: int = Field(50, ge=1, le=10_000, description="of each server in each part of the test")
    offloading: Literal["nearest", "all"] = Field(
        "nearest", description="all: in the test every server gets the same request, and the fastest answer counts (Sec. V-B)"
    )
    interval_s: Positive = Field(10.0, description="every server has one request in it, at a uniformly drawn moment")
    locality: Positive = Field(3.0, description="factor on the popularity of a server's home topics")

    # Stores
    query_results: int = Field(10, ge=1, le=1_000, description="P (Table II)")
    initial_exchanges: int = Field(60, ge=0, le=100_000, description="in each store at the beginning")
    initial_unrelated: Share = Field(0.3, description="share of them that is drawn without regard to popularity")
    eviction_period: int = Field(
        300, ge=1, le=1_000_000, description="xi of Algorithm 2, in requests of a server; starts anywhere"
    )
    reuse_distance: Distance = Field(0.45, description="to a stored question, up to which its answer is returned (Action A)")
    phi_distance: NonNegative = Field(1.0, description="phi_1 of eq. 4, on minus the distance")
    phi_uses: NonNegative = Field(0.05, description="phi_2 of eq. 4, on uses / (1 + uses)")

    # Answers
    llm: LlmProfile = Field(PROFILES["qwen-7b-int8"], description="the name of a profile, a YAML file with one, or its fields")
    edge_s: NonNegative = Field(0.03, description="to query the store; Table III: 0.02 to 0.1")
    answer_deviation: NonNegative = Field(0.2, description="of the logarithm of a plain answer's distance from the reference")
    token_deviation: NonNegative = Field(0.4, description="of the logarithm of an answer's length")
    relevance_near: Distance = Field(
        0.4, description="distance of retrieved text from the reference up to which it fully helps"
    )
    relevance_far: Distance = Field(1.1, description="distance from which it does not help at all")
    augmentation_gain: Share = Field(0.6, description="share of the distance that fully relevant text removes (Table III)")
    augmentation_harm: NonNegative = Field(0.4, description="share of the distance that irrelevant text adds")
    augmented_length: Positive = Field(1.5, description="of an answer with retrieved text; Table III: 11.5 s instead of 7.7 s")
    retrieved_tokens: int = Field(180, ge=0, le=100_000, description="that retrieved text adds to the prompt")

    # Reward (eqs. 6 and 12)
    phi_satisfaction: NonNegative = Field(1.0, description="phi_1 of eq. 6")
    weight_ratio: NonNegative = Field(0.1, description="w = phi_2 / phi_1 of eq. 6, per second (Sec. V-C)")
    phi_direct: NonNegative = Field(0.6, description="phi_3 of eq. 12; solves Table V")
    reward_scale: Positive = Field(10.0, description="Sec. V-C")

    # Decisions and faults
    action_space: Literal["binary", "ternary"] = Field("binary", description="binary: store or cloud, as in the paper")
    mask_invalid: bool = Field(True, description="False: the store can be chosen where it has nothing; the cloud answers then")
    expert_foresight: bool = Field(
        True, description="the simulator's expert counts what an answer brings later requests; False: this request alone"
    )
    server_outage_probability: Share = Field(0.0, description="per request that the server's store cannot be reached")
    link_degradation_probability: Share = Field(0.0, description="per request that the link to the cloud is slow")
    link_degradation: Positive = Field(20.0, description="factor on the network's time where it is")

    @field_validator("llm", mode="before")
    @classmethod
    def _read_llm(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value in PROFILES:
            return PROFILES[value]
        if not value.endswith((".yaml", ".yml")):
            raise ValueError(f"expected a YAML file or one of {', '.join(PROFILES)}")
        return read_table(value, LlmProfile)

    @model_validator(mode="after")
    def _consistent(self) -> VeloScenario:
        if self.relevance_near >= self.relevance_far:
            raise ValueError(
                f"relevance_near = {self.relevance_near:g}, expected less than relevance_far = {self.relevance_far:g}"
            )
        if self.entries < self.query_results:
            raise ValueError(
                f"query_results = {self.query_results}, expected at most {self.entries}, the entries that a store can hold"
            )
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the test."""
        return PARTS[self.test]

    @property
    def steps(self) -> int:
        """T."""
        return self.build_requests + self.test_requests * len(self.parts)

    @property
    def measured_steps(self) -> int:
        """Those that metrics count: the test's where there is one."""
        return self.steps - self.build_requests if self.parts else self.steps

    @property
    def exchanges(self) -> int:
        """J, that a store can come to hold: initial ones, and one for each request before the test."""
        return self.initial_exchanges + self.build_requests

    @property
    def entries(self) -> int:
        """V: a question and an answer for each exchange."""
        return 2 * self.exchanges
