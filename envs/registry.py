"""Names to problems: `vehicular/v50-e6`, `games/two-step`, `pettingzoo:mpe2.simple_spread_v3`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from envs.errors import InputError
from envs.team import TeamSimulator, TeamSpec


class Scenario(BaseModel):
    """Base of every problem's scenario: a complete, strict, immutable description of what is simulated.

    Subclasses add a `problem: Literal[...]` and their own fields, each with a default, a bound and a description.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    problem: str
    name: str = ""


class ScenarioSpec(TeamSpec):
    """The contract, which also knows the scenario, for heuristics that compute with its physics.

    The scenario is no field of the dataclass: what is stored or sent of a spec is the contract alone. Each problem's subclass
    says of which type its scenario is.
    """

    physics: Scenario

    def __init__(self, physics: Scenario, **contract: Any) -> None:
        super().__init__(**contract)
        object.__setattr__(self, "physics", physics)


@dataclass(frozen=True)
class Problem:
    """One problem: its scenario model, its named presets, and how a simulator is made.

    Attributes:
        module: Import path that holds the three names below; imported on first use.
        summary: One line for `edgeflock list`.

    The module defines `SCENARIO` (a `Scenario` subclass), `PRESETS` (preset name to the field values that differ from the
    defaults) and `make_simulator(scenario, num_envs, device) -> TeamSimulator`. It may define `HEURISTICS`, the import path of
    a module of heuristics for this problem (`trainers.baselines`), and `REPORT`, that of what a comparison adds for it.
    """

    module: str
    summary: str

    def load(self) -> Any:
        return importlib.import_module(self.module)


PROBLEMS: dict[str, Problem] = {
    "vehicular": Problem("envs.vehicular", "LLM service updating between edge servers and vehicles (IDMAC)"),
    "velo": Problem("envs.velo", "requests answered from a vector store or by a shared cloud LLM (DLRS)"),
    "dag": Problem("envs.dag", "offloading of LLM inference tasks made of dependent subtasks (UCB-COMA)"),
    "dialogue": Problem("envs.dialogue", "conversations routed between a device's model and a paid cloud model (TMO)"),
    "games": Problem("envs.games", "tiny cooperative games with known optimal values"),
}
PETTINGZOO_PREFIX = "pettingzoo:"
M = TypeVar("M", bound=BaseModel)


def scenario_names() -> list[str]:
    """Every `problem/preset` that can be named, without the endless PettingZoo ones."""
    return [f"{name}/{preset}" for name, problem in PROBLEMS.items() for preset in problem.load().PRESETS]


def make_scenario(name: str, overrides: dict[str, Any] | None = None) -> Scenario:
    """The scenario called `name` with some fields replaced.

    Raises:
        InputError: The name is unknown, or an override names no field or has a value that the field does not take.
    """
    overrides = dict(overrides or {})
    if name.startswith(PETTINGZOO_PREFIX):
        module = importlib.import_module("envs.pettingzoo")
        values = {"module": name.removeprefix(PETTINGZOO_PREFIX)}
    else:
        problem_name, _, preset = name.partition("/")
        if problem_name not in PROBLEMS:
            raise InputError(f"unknown problem {problem_name!r} in scenario {name!r}: expected one of {', '.join(PROBLEMS)}")
        module = PROBLEMS[problem_name].load()
        if preset not in module.PRESETS:
            known = ", ".join(f"{problem_name}/{known}" for known in module.PRESETS)
            raise InputError(f"unknown scenario {name!r}: expected one of {known}")
        values = module.PRESETS[preset]
    return parse(module.SCENARIO, {**values, **overrides, "name": name}, f"scenario {name}")


def scenario_from_dict(values: dict[str, Any]) -> Scenario:
    """Rebuilds a scenario from `scenario.model_dump(mode="json")`, as a run folder or a bundle holds it."""
    problem = values.get("problem")
    if problem == "pettingzoo":
        module = importlib.import_module("envs.pettingzoo")
    elif problem in PROBLEMS:
        module = PROBLEMS[problem].load()
    else:
        raise InputError(f"unknown problem {problem!r}: expected pettingzoo or one of {', '.join(PROBLEMS)}")
    return parse(module.SCENARIO, values, f"scenario {values.get('name', problem)}")


def make_simulator(scenario: Scenario, num_envs: int = 1, device: torch.device | str = "cpu") -> TeamSimulator:
    """A simulator of `num_envs` parallel episodes of the scenario."""
    module = "envs.pettingzoo" if scenario.problem == "pettingzoo" else PROBLEMS[scenario.problem].module
    make: Callable[..., TeamSimulator] = importlib.import_module(module).make_simulator
    return make(scenario, num_envs, torch.device(device))


def parse(model: type[M], values: dict[str, Any], where: str) -> M:
    """`model(**values)`, with every complaint of pydantic turned into one readable line.

    Raises:
        InputError: Naming the field, what was given and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: " + "; ".join(_complaint(model, e) for e in error.errors())) from None


def _complaint(model: type[BaseModel], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}, expected one of {', '.join(sorted(_fields_at(model, error['loc'][:-1])))}"
    if error["type"] == "missing":
        return f"{key} is missing"
    return f"{key} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Field names of the (sub-)model at `path`; those of `model` itself where the path leads through a union or a list."""
    current: Any = model
    for part in path:
        fields = getattr(current, "model_fields", {})
        annotation = fields[part].annotation if part in fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        current = annotation
    return list(current.model_fields)
