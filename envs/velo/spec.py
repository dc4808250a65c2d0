"""What edge servers see and choose in the velo problem, as data: fields, the action head and metrics."""

from __future__ import annotations

from envs.registry import ScenarioSpec
from envs.team import ActionHead, Field, Metric
from envs.velo.answers import service_s
from envs.velo.corpus import Corpus
from envs.velo.episode import MOST_TOKENS
from envs.velo.scenario import VeloScenario
from envs.velo.vectors import COORDINATES

ROOM = 1 + 1e-6  # float32 may round a value up


class VeloSpec(ScenarioSpec):
    """The contract of the problem and its scenario."""

    physics: VeloScenario


def longest_service_s(s: VeloScenario, corpus: Corpus) -> float:
    """That a request can occupy a slot of the LLM for."""
    prompt = corpus.prompt_tokens.max().double() + s.retrieved_tokens
    return float(service_s(s.llm, prompt, MOST_TOKENS * prompt.new_tensor(max(s.augmented_length, 1.0))))


def slowest_network_s(s: VeloScenario) -> float:
    """To the cloud and back."""
    return s.llm.network_s * max(1.0, s.link_degradation if s.link_degradation_probability else 1.0)


def observation_fields(s: VeloScenario, corpus: Corpus) -> dict[str, Field]:
    """Field name to description; the order is that in which people should read them."""
    P = s.query_results
    queue_s = s.num_servers * s.steps * longest_service_s(s, corpus) / s.llm.slots

    def entry(low: float, high: float, scale: str, text: str) -> Field:
        # No entity: the results have an order, nearest first, which an encoding member by member would lose.
        return Field((P,), low, high, "1", scale, description=text)  # type: ignore[arg-type]

    return {
        "request": Field((corpus.width,), -1, 1, description="the request as a vector of length 1"),
        "prompt_tokens": Field((1,), 0, float(corpus.prompt_tokens.max()), description="of the request"),
        "distance": entry(
            0,
            2.01,
            "linear",
            "L2 distance of the request to the nearest entries of the store, nearest first; 2 where there is none",
        ),
        "kind": entry(-1, 1, "category", "0 a past question, 1 an LLM's answer to one, -1 none"),
        "uses": entry(1, s.steps, "log", "times that the entry has served a request"),
        "age": entry(1, s.exchanges + s.steps, "log", "requests of this server since the entry was stored"),
        "entries": Field((1,), 1, s.entries, "1", "log", description="questions and answers in the store"),
        "store_up": Field((1,), 0, 1, description="0 where the store cannot be reached"),
        "network_s": Field((1,), 0, max(slowest_network_s(s), 1e-3) * ROOM, "s", description="to the cloud and back"),
        "queue_backlog_s": Field(
            (1,), 0.1, queue_s * ROOM + s.interval_s, "s", "log", description="until the LLM has served what it has accepted"
        ),
        "direct_satisfaction": Field((1,), -2, 0, description="mean of this server's direct requests so far, 0 before any"),
        "reuse_satisfaction": Field(
            (1,), -2.01, 0, description="after a direct request: what the nearest cached answer would have brought, else 0"
        ),
        "frozen": Field((1,), 0, 1, description="1 in the test: the store does not change any more"),
    }


def state_per_server(s: VeloScenario) -> int:
    """Numbers in the global state for each server."""
    return 3 * s.query_results + COORDINATES + 2


STATE_SHARED = 3
"""Numbers in the global state for all together."""


def choice_labels(s: VeloScenario) -> tuple[str, ...]:
    """In the order of the choices."""
    return ("store", "cloud") if s.action_space == "binary" else ("answer", "cloud", "augment")


def shares(prefix: str = "") -> dict[str, Metric]:
    """The figures of a part of the episode, whose sums in `simulator.py` have the prefix."""

    def metric(numerator: str, denominator: str, unit: str, better: str, text: str) -> Metric:
        return Metric(prefix + numerator, prefix + denominator, unit, better, text)  # type: ignore[arg-type]

    figures = {
        "reward": metric("return", "slots", "1", "higher", "mean reward per request"),
        "satisfaction": metric("satisfaction", "requests", "1", "higher", "minus the distance to the reference, eq. 2"),
        "delay_s": metric("delay_s", "requests", "s", "lower", "of a request, eq. 3"),
        "direct_share": metric("direct", "requests", "1", "neither", "passed to the LLM as they are (Action B)"),
        "hit_share": metric("hits", "requests", "1", "higher", "answered from the store (Action A)"),
        "wrong_hit_share": metric("wrong_hits", "hits", "1", "lower", "share of those with the answer to another question"),
        "augmented_share": metric("augmented", "requests", "1", "neither", "passed with retrieved text (Action C)"),
    }
    return {prefix + name: figure for name, figure in figures.items()}


def metrics(s: VeloScenario) -> dict[str, Metric]:
    """Episode figures: of the test where there is one, else of all requests; of each part where the test has two."""
    figures = {
        "return": Metric("return", None, "1", "higher", "sum of the team reward over what is measured"),
        **shares(),
        "wait_s": Metric("wait_s", "asked", "s", "lower", "of a call of the LLM in its queue"),
        "entries": Metric("entries", "slots", "1", "neither", "in the store of a server"),
        "evicted": Metric("evicted", None, "1", "neither", "entries dropped in the whole episode, by all servers"),
    }
    for part in s.parts if len(s.parts) > 1 else ():
        figures |= shares(f"{part}_")
    return figures


def team_spec(s: VeloScenario, corpus: Corpus) -> VeloSpec:
    """The problem's contract."""
    labels = choice_labels(s)
    return VeloSpec(
        problem=s.problem,
        scenario=s.name,
        agents=tuple(f"server-{n}" for n in range(s.num_servers)),
        observation=observation_fields(s, corpus),
        heads=(ActionHead("route", len(labels), labels=labels),),
        state_size=s.num_servers * state_per_server(s) + STATE_SHARED,
        max_steps=s.steps,
        metrics=metrics(s),
        physics=s,
    )
