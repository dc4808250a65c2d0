"""Everything that the dialogue problem assumes: one strict model, each number with its unit, bounds and source.

"Paper" is the survey on collaborative intelligence, Sec. V; "TMO" the work that its case study stands on. Numbers without a
source are ours; README.md says why.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from envs.dialogue.tables import KITCHEN, REALISTIC, Endpoints, Share, TaskMix
from envs.registry import Scenario
from envs.tables import read_table

Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Range = tuple[Positive, Positive]
WALK = "walk"


class DialogueScenario(Scenario):
    """Budgeted routing of conversations between devices and a cloud model (paper, Sec. V; see README.md)."""

    problem: Literal["dialogue"] = "dialogue"

    # Conversations
    num_devices: int = Field(8, ge=1, le=1_000, description="D; the paper has 1")
    min_turns: int = Field(8, ge=1, le=200)
    max_turns: int = Field(14, ge=1, le=200, description="turns are uniform between the two; the devices do not know them")
    tasks: TaskMix = Field(KITCHEN, description="the mix of requests, or a YAML file with one")
    relevance_spread: Share = Field(0.3, description="a view's relevance is uniform around the category's, at most so far away")
    view_information: Share = Field(
        0.6, description="share of the scene that a fully relevant view shows; see physics.coverage"
    )
    local_difficulty: NonNegative = Field(0.2, description="quality that the hardest request costs the local model")
    cloud_difficulty: NonNegative = Field(0.05, description="the same of the cloud model")
    quality_noise: NonNegative = Field(0.2, description="deviation; with the rest TMO's 0.3")
    hint_noise: NonNegative = Field(0.15, description="deviation of what the device can tell of difficulty and relevance")

    # Endpoints and links
    endpoints: Endpoints = Field(REALISTIC, description="latency and price, or a YAML file with them")
    network: str = Field(WALK, description="one of the table's networks, or `walk`: a random walk between them")
    walk_probability: Share = Field(0.4, description="of a move to a neighbouring network in a turn")
    latency_jitter: NonNegative = Field(0.2, description="deviation of the logarithm of a turn's latency; the mean stays")
    history_turns: int = Field(5, ge=0, le=50, description="turns that are transferred at most (TMO's window)")

    # The provider, shared by all devices
    turn_interval_s: Positive = Field(20.0, description="every device has one turn in it, at a uniformly drawn moment")
    rate_limit_tokens_per_s: Positive = Field(500.0, description="30,000 tokens a minute, OpenAI's lowest paid tier for GPT-4o")
    rate_burst_tokens: Positive = Field(5_000.0, description="tokens that pass at once")
    cloud_slots: int = Field(2, ge=1, le=10_000, description="requests that the provider serves at once")

    # Budgets
    latency_budget_s: Positive = Field(30.0, description="cumulative, per conversation (paper)")
    usd_budget: Positive = Field(0.05, description="cumulative, per conversation (paper)")
    random_budgets: bool = Field(False, description="True: each conversation draws its budgets (TMO's training)")
    random_latency_budget_s: Range = Field((10.0, 50.0), description="uniform")
    random_usd_budget: Range = Field((0.015, 0.085), description="uniform")
    observe_budget: bool = Field(True, description="False: the devices do not see what remains (ablation)")
    hard_budget: bool = Field(False, description="True: the provider refuses a device that has exceeded a budget")

    # Reward (TMO): quality - latency / 3 - usage / 3 + association / 3, each divided by its scale and cut to [0, 1]
    quality_scale: Positive = Field(1.6, description="about the best cloud answer with all views")
    latency_scale_s: Positive = Field(20.0, description="TMO's slowest answer is 19.6 s")
    usd_scale: Positive = Field(0.014, description="TMO's dearest answer is 0.01368 $")
    weight_latency: NonNegative = 1 / 3
    weight_usd: NonNegative = 1 / 3
    weight_association: NonNegative = 1 / 3

    # Legality and faults
    mask_invalid: bool = Field(True, description="False: requests that will be refused can be chosen")
    timeout_s: NonNegative = Field(2.0, description="until a refused request is answered by the local model instead")
    outage_probability: Share = Field(0.0, description="per device and turn that the cloud cannot be reached")

    @field_validator("tasks", mode="before")
    @classmethod
    def _read_tasks(cls, value: Any) -> Any:
        return read_table(value, TaskMix) if isinstance(value, str) else value

    @field_validator("endpoints", mode="before")
    @classmethod
    def _read_endpoints(cls, value: Any) -> Any:
        return read_table(value, Endpoints) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> DialogueScenario:
        if self.min_turns > self.max_turns:
            raise ValueError(f"min_turns = {self.min_turns}, expected at most max_turns = {self.max_turns}")
        if self.network != WALK and self.network not in self.networks:
            raise ValueError(f"network = {self.network!r}, expected {WALK} or one of the table's: {', '.join(self.networks)}")
        for name in ("random_latency_budget_s", "random_usd_budget"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} begins at {low:g} and ends at {high:g}, expected an end above the beginning")
        return self

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(self.endpoints.cloud.latency_s)

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(self.tasks.categories)
