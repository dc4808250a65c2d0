"""Requests and answers of a policy as pydantic models, made from its spec: what is documented is what is checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema, create_model

from envs.team import UNBOUNDED_CLIP, ActionHead, TeamSpec
from serve.codec import Codec, labels_of, mask_shape

MAX_SEED = 2**63 - 1
TOKEN_LENGTH = 10_000_000
NAMES = Field(description="chosen by name: agent to head to the choice's label, or a list of them, one for each branch")
LEGAL = Field(None, description="legal choices by head; all by default")
NUMBERS = Field(description="the same as numbers: the places of the choices under their heads")


class Asked(BaseModel):
    """Base of what is asked."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class Answer(BaseModel):
    """Base of what is answered."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """Why a request was refused."""

    error: str = Field(description="one line: what is wrong, where, and what was expected")


class NewSession(Answer):
    """A session that was opened."""

    session: str = Field(description="its id, for `session` of a decision")
    expires_in_s: float = Field(description="seconds that it may stay unused")


class PolicyCard(Answer):
    """What there is to know of a policy."""

    name: str
    version: str = Field(description="of the bundle that decides now")
    versions: list[str] = Field(description="all versions that are held, the newest first")
    decentralised: bool = Field(description="whether its agents can be asked one by one")
    scores: Literal["probabilities", "q_values"] | None = Field(description="what it tells of its choices on request")
    manifest: dict[str, Any] = Field(description="of the bundle")
    example: dict[str, Any] = Field(description="a request that it answers")


class PolicyList(Answer):
    """All policies."""

    policies: list[PolicyCard]


def array(shape: tuple[int | None, ...], leaf: dict[str, Any], kinds: str, description: str = "") -> Any:
    """The type of nested lists of numbers (or truths) of one shape, read as a numpy array.

    Args:
        shape: None for a first dimension of any length from 1.
        leaf: JSON schema of one number.
        kinds: The numpy kinds that it may have.
    """
    expected = "[" + ", ".join("teams" if size is None else str(size) for size in shape) + "]"
    what = "true or false" if kinds == "b" else "numbers"

    def read(value: Any) -> np.ndarray:
        try:
            found = np.array(value)
        except ValueError:
            raise ValueError(f"expected {what} of shape {expected}, got lists of different lengths") from None
        if found.dtype.kind not in kinds and found.size:
            raise ValueError(f"expected {what} of shape {expected}, got something else among them")
        if found.shape != shape and (found.ndim != len(shape) or shape[0] is not None or found.shape[1:] != shape[1:]):
            raise ValueError(f"expected {what} of shape {expected}, got {list(found.shape)}")
        return found

    schema = leaf
    for size in reversed(shape):
        limits = {"minItems": 1} if size is None else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **limits}
    if description:
        schema = {**schema, "description": description}
    return Annotated[np.ndarray, PlainValidator(read), WithJsonSchema(schema)]


def made(base: type[BaseModel], title: str, fields: dict[str, Any]) -> Any:
    """A model of these fields: name to (type, default or `Field`)."""
    return create_model(title, __base__=base, **fields)


class Shapes:
    """The parts of which requests and answers of a spec are made.

    Args:
        agents: Who is spoken for; None for one agent, whose arrays have no dimension for agents.
        teams: Whether the arrays have a first dimension for several teams.
    """

    def __init__(self, spec: TeamSpec, agents: tuple[str, ...] | None, teams: bool) -> None:
        self.spec, self.agents = spec, agents
        self._lead: tuple[int | None, ...] = ((None,) if teams else ()) + ((len(agents),) if agents is not None else ())

    def observation(self, title: str, codec: Codec) -> type[BaseModel]:
        """One required field for each field of the observation."""
        fields: dict[str, Any] = {}
        for name, field in self.spec.observation.items():
            low, high = codec.bounds(name)
            whole = field.scale == "category"
            leaf = {"type": "integer" if whole else "number", "minimum": int(low) if whole else low}
            leaf["maximum"] = int(high) if whole else high
            unit = "" if field.unit == "1" else f" [{field.unit}]"
            kind = array((*self._lead, *field.shape), leaf, "iuf", (field.description or name) + unit)
            fields[name] = (kind, ...)
        return made(Asked, title, fields)

    def masks(self, title: str) -> type[BaseModel]:
        """One optional field for each action head."""
        fields: dict[str, Any] = {}
        for head in self.spec.heads:
            kind = array((*self._lead, *mask_shape(head)), {"type": "boolean"}, "b", "true where the choice is legal")
            fields[head.name] = (kind, None)
        return made(Asked, title, fields)

    def choices(self, title: str, labels: bool) -> Any:
        """Type of the actions, by label or by number."""
        of_head = {head.name: (_choice(head, labels), ...) for head in self.spec.heads}
        return self._by_agent(title, made(Answer, f"{title}OfAgent", of_head))

    def scores(self, title: str) -> Any:
        """Type of the scores."""
        of_head = {head.name: (_scores(head), ...) for head in self.spec.heads}
        return self._by_agent(title, made(Answer, f"{title}OfAgent", of_head))

    def _by_agent(self, title: str, of_agent: type[BaseModel]) -> Any:
        if self.agents is None:
            return of_agent
        return made(Answer, title, dict.fromkeys(self.agents, (of_agent, ...)))


def _choice(head: ActionHead, labels: bool) -> Any:
    leaf: Any = {"type": "string", "enum": list(labels_of(head))} if labels else {"type": "integer", "minimum": 0}
    if not labels:
        leaf["maximum"] = head.choices - 1
    return _listed(Annotated[str if labels else int, WithJsonSchema(leaf)], head.count, head.count > 1)


def _scores(head: ActionHead) -> Any:
    return _listed(_listed(float, head.choices, True), head.count, head.count > 1)


def _listed(of: Any, length: int, many: bool) -> Any:
    return Annotated[list[of], Field(min_length=length, max_length=length)] if many else of


class PolicySchema:
    """All models of one policy."""

    def __init__(self, name: str, spec: TeamSpec, scores_are: str | None, codec: Codec) -> None:
        team, teams = Shapes(spec, spec.agents, teams=False), Shapes(spec, spec.agents, teams=True)
        options = _options(scores_are)
        one: dict[str, Any] = {
            "observation": (team.observation(f"{name}_Observation", codec), ...),
            "action_mask": (team.masks(f"{name}_Mask") | None, LEGAL),
            "state": (
                str | None,
                Field(None, description="token of the last decision of this episode", max_length=TOKEN_LENGTH),
            ),
            "session": (str | None, Field(None, description="id of an open session, instead of `state`", max_length=100)),
        }
        several: dict[str, Any] = {
            "observations": (teams.observation(f"{name}_Observations", codec), ...),
            "action_masks": (teams.masks(f"{name}_Masks") | None, LEGAL),
            "states": (list[str | None] | None, Field(None, description="of each team, null where an episode begins")),
        }
        self.request = made(Asked, f"{name}_Team", one | options)
        self.batch_request = made(Asked, f"{name}_Teams", several | options)
        decision: dict[str, Any] = {
            "actions": (team.choices(f"{name}_Actions", labels=True), NAMES),
            "choices": (team.choices(f"{name}_Choices", labels=False), NUMBERS),
            "state": (str | None, Field(description="for the next decision; null without memory, or in a session")),
        }
        if scores_are:
            kind = team.scores(f"{name}_{scores_are}") | None
            decision[scores_are] = (kind, Field(None, description="of every choice, where `scores` was asked for"))
        which = {"policy": (Literal[name], ...), "version": (str, Field(description="of the policy that decided"))}
        self.answer = made(Answer, f"{name}_Decision", which | decision)
        each: Any = made(Answer, f"{name}_TeamDecision", decision)
        self.batch_answer = made(Answer, f"{name}_Decisions", which | {"decisions": (list[each], ...)})


class AgentSchema:
    """All models of one policy whose agents decide on their own."""

    def __init__(self, name: str, spec: TeamSpec, codec: Codec, intent_size: int) -> None:
        """Args: codec: Of any one agent."""
        agent = Shapes(spec, None, teams=False)
        leaf = {"type": "number", "minimum": -UNBOUNDED_CLIP, "maximum": UNBOUNDED_CLIP}
        numbers = array((intent_size,), leaf, "iuf", "a peer's message of this step")
        messages = made(Asked, f"{name}_Messages", dict.fromkeys(spec.agents, (numbers, None)))
        intend: dict[str, Any] = {
            "observation": (agent.observation(f"{name}_AgentObservation", codec), ...),
            "state": (str | None, Field(None, description="token of the agent's last decision", max_length=TOKEN_LENGTH)),
        }
        decide: dict[str, Any] = {
            "action_mask": (agent.masks(f"{name}_AgentMask") | None, LEGAL),
            "messages": (messages | None, Field(None, description="what peers sent in this step; one that is missing is lost")),
        }
        self.intend_request = made(Asked, f"{name}_AgentIntends", intend)
        self.request = made(Asked, f"{name}_Agent", intend | decide)
        said: dict[str, Any] = {
            "policy": (Literal[name], ...),
            "version": (str, ...),
            "agent": (str, ...),
            "message": (list[float] | None, Field(description="for the listeners; null where the agents do not talk")),
            "listeners": (list[str], Field(description="peers to whom the message goes")),
        }
        decision: dict[str, Any] = {
            "actions": (agent.choices(f"{name}_AgentActions", labels=True), Field(description="by name")),
            "choices": (agent.choices(f"{name}_AgentChoices", labels=False), Field(description="by number")),
            "state": (str, Field(description="for the agent's next decision")),
        }
        self.intend_answer = made(Answer, f"{name}_Intention", said)
        self.answer = made(Answer, f"{name}_AgentDecision", said | decision)


def _options(scores_are: str | None) -> dict[str, Any]:
    """What a request may ask for: only what the policy can do."""
    modes = ("greedy", "sampled") if scores_are == "probabilities" else ("greedy",)
    options: dict[str, Any] = {"mode": (Literal[modes], Field("greedy", description="the best choices, or drawn ones"))}
    if len(modes) > 1:
        options["seed"] = (
            int | None,
            Field(None, ge=0, le=MAX_SEED, strict=True, description="makes drawn choices repeatable"),
        )
    if scores_are:
        options["scores"] = (bool, Field(False, strict=True, description=f"answer with `{scores_are}` as well"))
    return options


def complaint(error: ValidationError) -> str:
    """The first complaint of a pydantic `ValidationError` as one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: there is no such field"
    if first["type"] == "missing":
        return f"{where}: is missing"
    text = first["msg"].removeprefix("Value error, ")
    return f"{where}: {text[0].lower()}{text[1:]}" if where else text
