"""The complete description of a training, from presets, files and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from envs.errors import InputError
from envs.registry import Scenario, make_scenario, parse, scenario_from_dict
from models.team_network import NetworkConfig
from trainers.algorithms import find_algorithm
from trainers.algorithms.policy_gradient import PolicyModule
from trainers.algorithms.replay_algorithm import ReplayAlgorithm
from trainers.algorithms.team_algorithm import Settings

PRESETS = Path(__file__).parent / "presets"
SECTIONS = ("scenario", "algorithm", "network", "training")


class TrainingConfig(BaseModel):
    """How long and on what a training runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    env_steps: int = Field(300_000, ge=1, description="budget: steps of the team, summed over parallel episodes")
    episodes: int | None = Field(None, ge=1, description="budget of episodes; the training ends with whichever is used first")
    num_envs: int = Field(32, ge=1, description="parallel episodes of each runner")
    runners: int = Field(0, ge=0, description="remote sampling processes; 0 samples in the trainer's own process")
    learners: int = Field(0, ge=0, description="remote learner processes; 0 learns in the trainer's own process")
    learner_gpus: float = Field(0, ge=0, description="GPUs of each learner")
    runner_gpus: float = Field(0, ge=0, description="GPUs of each remote sampling process")
    asynchronous: bool = Field(
        False,
        description="learn from whatever the runners have delivered, without waiting for the slowest (learners from replay)",
    )
    in_flight: int = Field(2, ge=1, description="requests for episodes that each runner has at a time, where asynchronous")
    timeout_s: float = Field(300.0, gt=0, description="longest wait for a remote process before it is given up")
    start_timeout_s: float = Field(300.0, gt=0, description="longest wait for runners and learners to start")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where the runners simulate and act")
    threads: int = Field(1, ge=0, description="torch threads of the trainer's process; 0 leaves torch's default")
    evaluation_interval: int = Field(10, ge=1, description="iterations between evaluations on the fixed seeds")
    evaluation_episodes: int = Field(32, ge=1, description="episodes of each evaluation")
    checkpoint_interval: int = Field(25, ge=1, description="iterations between checkpoints")

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingConfig:
        if self.asynchronous and not self.runners:
            raise ValueError("asynchronous: expected runners >= 1, or nothing happens at the same time")
        if self.device != "cpu" and self.runners and not self.runner_gpus:
            raise ValueError(f"device = {self.device!r} with remote runners: expected runner_gpus > 0, or they see no GPU")
        return self


class RunConfig(BaseModel):
    """One training. `config.yaml` of a run folder holds it whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="the algorithm, as `edgeflock list` names it")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    scenario: SerializeAsAny[Scenario]
    algorithm: SerializeAsAny[Settings]
    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()

    def save(self, path: Path) -> None:
        """Writes YAML that `load` reads back."""
        path.write_text(self.text())

    def text(self) -> str:
        """The YAML of `save`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @staticmethod
    def load(path: Path) -> RunConfig:
        """Reads a run folder's `config.yaml`.

        Raises:
            InputError: The file is missing, is not YAML, or does not describe a training.
        """
        try:
            values = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"{path}: cannot be read as a run's configuration: {str(error).splitlines()[0]}") from None
        if not isinstance(values, dict) or not isinstance(values.get("scenario"), dict):
            raise InputError(f"{path}: not a run's configuration: expected the keys name, seed, {', '.join(SECTIONS)}")
        return _build(str(values.get("name")), scenario_from_dict(values["scenario"]), values)


def make_run_config(algorithm: str, scenario: str, seed: int = 0, overrides: list[str] | None = None) -> RunConfig:
    """Defaults, then the algorithm's preset, then its part for the problem, then `overrides` (`section.key=value`).

    A preset may name a `base`, another preset of which it states only what differs.

    Raises:
        InputError: Unknown algorithm, scenario or key, or a value that the key does not take.
    """
    find_algorithm(algorithm)
    given = parse_overrides(overrides or [])
    built = make_scenario(scenario, given.get("scenario"))
    preset = _preset(algorithm)
    problem = preset.pop("problems", {}).get(built.problem, {})
    values: dict[str, Any] = {"seed": seed}
    for section in SECTIONS[1:]:
        values[section] = merge(merge(preset.get(section, {}), problem.get(section, {})), given.get(section, {}))
    return _build(algorithm, built, values)


def _preset(name: str) -> dict[str, Any]:
    values = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    base = values.pop("base", None)
    return values if base is None else merge(_preset(base), values)


def _build(name: str, scenario: Scenario, values: dict[str, Any]) -> RunConfig:
    family = find_algorithm(name).config_class()
    network = parse(NetworkConfig, values.get("network") or {}, "network")
    if network.diffusion is not None and not issubclass(family.module_class, PolicyModule):
        raise InputError(f"network.diffusion: expected null, as {name} has no stochastic policy")
    training = parse(TrainingConfig, values.get("training") or {}, "training")
    if training.asynchronous and not issubclass(family.algorithm_class, ReplayAlgorithm):
        raise InputError(f"training.asynchronous: expected false, as {name} learns only from what its latest policy has played")
    return parse(
        RunConfig,
        {
            **values,
            "name": name,
            "scenario": scenario,
            "algorithm": parse(family.settings_class, values.get("algorithm") or {}, f"algorithm {name}"),
            "network": network,
            "training": training,
        },
        "run",
    )


def parse_overrides(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """`["algorithm.lr=5e-4", "network.intent.size=8"]` to nested dicts by section; values are YAML.

    Raises:
        InputError: An assignment without `=`, an unknown section, or a value that is not YAML.
    """
    result: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        section, *path = key.strip().split(".")
        if not equals or not path or section not in SECTIONS:
            raise InputError(f"--set {assignment!r}: expected SECTION.KEY=VALUE with a section of {', '.join(SECTIONS)}")
        nested: dict[str, Any] = {path[-1]: _value(assignment, text)}
        for part in reversed(path[:-1]):
            nested = {part: nested}
        result[section] = merge(result.get(section, {}), nested)
    return result


def _value(assignment: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {assignment!r}: the value is not YAML") from None
    if isinstance(value, str):  # YAML 1.1 reads 5e-4 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def merge(base: dict[str, Any] | None, top: dict[str, Any] | None) -> dict[str, Any]:
    """`base` with the entries of `top` put over it, dicts merged key by key."""
    merged = dict(base or {})
    for key, value in (top or {}).items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
