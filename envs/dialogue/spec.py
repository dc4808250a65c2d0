"""What devices see and choose in the dialogue problem, as data: fields, the action head and metrics."""

from __future__ import annotations

from envs.dialogue.physics import CHOICES
from envs.dialogue.scenario import DialogueScenario
from envs.dialogue.tables import VIEWS
from envs.registry import ScenarioSpec
from envs.team import ActionHead, Field, Metric

STATE_PER_DEVICE = 13
"""Besides one for each category."""


class DialogueSpec(ScenarioSpec):
    """The contract of the problem and its scenario."""

    physics: DialogueScenario


def largest_budgets(s: DialogueScenario) -> tuple[float, float]:
    """Seconds and dollars that no conversation starts with more of, whether budgets are drawn or not."""
    return max(s.latency_budget_s, s.random_latency_budget_s[1]), max(s.usd_budget, s.random_usd_budget[1])


def most_tokens(s: DialogueScenario) -> tuple[int, int, int]:
    """Largest prompt, largest history that can be transferred, and largest request."""
    kinds = s.tasks.categories.values()
    prompt = max(kind.prompt_tokens[1] for kind in kinds)
    turn = max(kind.prompt_tokens[1] + kind.answer_tokens[1] for kind in kinds)
    history = min(s.history_turns, s.max_turns - 1) * turn
    return prompt, history, turn + history + len(VIEWS) * s.endpoints.cloud.view_tokens


def observation_fields(s: DialogueScenario) -> dict[str, Field]:
    """Field name to description; the order is that in which people should read them."""
    prompt, history, request = most_tokens(s)
    cloud = s.endpoints.cloud
    slowest_s = max(max(row) for row in cloud.latency_s.values())
    requests = s.num_devices * s.max_turns
    room = 1 + 1e-6  # float32 may round a value up

    def backlog(most_s: float, text: str) -> Field:
        return Field((1,), 0.1, max(most_s, 0.1) * room + s.turn_interval_s, "s", "log", description=text)

    fields = {
        "category": Field((1,), 0, len(s.categories) - 1, "1", "category", description=", ".join(s.categories)),
        "difficulty_hint": Field((1,), 0, 1, description="how hard the request seems (the local model's uncertainty)"),
        "relevance_hint": Field((len(VIEWS),), 0, 1, description=f"how much it seems to need each view: {', '.join(VIEWS)}"),
        "prompt_tokens": Field((1,), 0, prompt, "1", description="of the request"),
        "history_tokens": Field((2,), 0, max(history, 1), "1", description="dialogue that the local and the cloud model lack"),
        "network": Field((1,), 0, len(s.networks) - 1, "1", "category", description=", ".join(s.networks)),
        "cloud_latency_s": Field((4,), 0, slowest_s * room, "s", description="the table's, for 0 to 3 views on this network"),
        "link_up": Field((1,), 0, 1, description="0 where the cloud cannot be reached"),
        "rate_backlog_s": backlog(requests * request / s.rate_limit_tokens_per_s, "until the rate limit's bucket is empty"),
        "queue_backlog_s": backlog(
            requests * (max(cloud.hold_s) / s.cloud_slots + request / s.rate_limit_tokens_per_s),
            "until the provider has served what it has accepted",
        ),
        "turn": Field((1,), 0, max(s.max_turns - 1, 1), "1", description="turns of the conversation before this one"),
    }
    if s.observe_budget:
        latency_s, usd = largest_budgets(s)
        fields["latency_left_s"] = Field((1,), 0, latency_s * room, "s", description="of the budget, 0 once exceeded")
        fields["usd_left"] = Field((1,), 0, usd * room, "USD", description="of the budget, 0 once exceeded")
        fields["exceeded"] = Field((1,), 0, 1, description="1 once one of the budgets is exceeded")
    return fields


def choice_labels() -> tuple[str, ...]:
    """`local`, `cloud`, `cloud+first-person`, …"""
    views = [[view for bit, view in enumerate(VIEWS) if (choice - 1) >> bit & 1] for choice in range(1, CHOICES)]
    return ("local", *("+".join(["cloud", *sent]) for sent in views))


def device_names(s: DialogueScenario) -> tuple[str, ...]:
    return tuple(f"device-{d}" for d in range(s.num_devices))


def metrics() -> dict[str, Metric]:
    """Episode figures; the sums that they are made of are named in `simulator.py`."""
    return {
        "return": Metric("reward", None, "1", "higher", "sum of rewards of a conversation, mean of the devices"),
        "quality": Metric("quality", "turns", "1", "higher", "mean quality of an answer"),
        "latency_s": Metric("latency_s", "conversations", "s", "lower", "of a whole conversation"),
        "cost_usd": Metric("usd", "conversations", "USD", "lower", "of a whole conversation"),
        "budget_exceeded": Metric("exceeded", "conversations", "1", "lower", "share of conversations over a budget"),
        "latency_exceeded": Metric("latency_exceeded", "conversations", "1", "lower", "share over the latency budget"),
        "cost_exceeded": Metric("usd_exceeded", "conversations", "1", "lower", "share over the cost budget"),
        "lost_turns": Metric("lost", "turns", "1", "lower", "share of turns without reward, a budget being exceeded"),
        "cloud_share": Metric("cloud", "turns", "1", "neither", "share of turns that the cloud answered"),
        "views": Metric("views", "cloud", "1", "neither", "views sent with a cloud request"),
        "association": Metric("association", "turns", "1", "higher", "how well the views sent fit the requests"),
        "wait_s": Metric("wait_s", "cloud", "s", "lower", "mean wait of a cloud request at the provider"),
        "history_tokens": Metric("history", "turns", "1", "lower", "dialogue transferred per turn"),
        "refused_share": Metric("refused", "turns", "1", "lower", "share of turns in which the cloud refused a request"),
    }


def team_spec(s: DialogueScenario) -> DialogueSpec:
    """The problem's contract."""
    return DialogueSpec(
        problem=s.problem,
        scenario=s.name,
        agents=device_names(s),
        observation=observation_fields(s),
        heads=(ActionHead("endpoint", CHOICES, labels=choice_labels()),),
        state_size=s.num_devices * (STATE_PER_DEVICE + len(s.categories)) + 3,
        max_steps=s.max_turns,
        metrics=metrics(),
        physics=s,
    )
