"""A trained team behind the Policy interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor

from envs.errors import InputError
from envs.registry import PROBLEMS, make_simulator, parse, scenario_from_dict
from envs.team import TeamSpec
from models.team_module import TeamModule
from models.team_network import NetworkConfig
from trainers.algorithms import find_algorithm
from trainers.algorithms.policy_gradient import PolicyModule
from trainers.bundle import load_bundle, save_bundle, spec_from_json, spec_to_json
from trainers.config import RunConfig
from trainers.heuristics import heuristics
from trainers.policy import Policy
from trainers.rollout import TeamEnvRunner


class LearnedPolicy(Policy):
    """The best known joint action of a trained module, deterministically."""

    def __init__(self, spec: TeamSpec, module: TeamModule, name: str) -> None:
        super().__init__(spec)
        self.name = name
        self.module = module
        self.scores_are = module.scores_are
        self._num_envs = 0

    def initial_state(self, num_envs: int) -> dict[str, Tensor]:
        return self.module.initial_state(num_envs)

    def act(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self._num_envs = len(mask)
        actions, state, _ = self.module.act(self.module.packer(observation), mask, state, explore=False)
        return actions, state

    def weigh(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> Tensor:
        return self.module.weigh(self.module.packer(observation), mask, state)

    def sample(
        self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(self.module, PolicyModule):
            return super().sample(observation, state, mask, generator)
        return self.module.sample(self.module.packer(observation), mask, state, generator)

    def metrics(self) -> dict[str, Any]:
        return {"message_bytes": torch.full((self._num_envs,), float(self.module.message_bytes))}


def build_module(name: str, spec: TeamSpec, network: NetworkConfig, settings: Any) -> TeamModule:
    """An inference-only module with fresh weights."""
    config = find_algorithm(name).config_class()
    model_config = {"spec": spec, "network": network, "settings": settings}
    spaces = TeamEnvRunner.spaces_of(spec)
    return RLModuleSpec(
        module_class=config.module_class,
        observation_space=spaces[0],
        action_space=spaces[1],
        inference_only=True,
        model_config=model_config,
    ).build()


def export_policy(config: RunConfig, spec: TeamSpec, module: TeamModule, folder: Path, metrics: dict[str, Any]) -> None:
    """Writes the module's acting part as a bundle.

    Args:
        metrics: Figures of training and evaluation for the manifest.
    """
    weights = {name: torch.as_tensor(value) for name, value in module.get_state(inference_only=True).items()}
    manifest = {
        "problem": config.scenario.problem,
        "scenario": config.scenario.model_dump(mode="json"),
        "spec": spec_to_json(spec),
        "algorithm": config.name,
        "settings": config.algorithm.model_dump(mode="json"),
        "network": config.network.model_dump(mode="json"),
        "seed": config.seed,
        "metrics": metrics,
    }
    save_bundle(folder, weights, manifest)


def load_policy(folder: Path) -> Policy:
    """The policy in a bundle, or in the `bundle/` of a run folder: a `LearnedPolicy`, or a heuristic.

    Raises:
        InputError: There is no bundle, or it is damaged or inconsistent.
    """
    bundle = bundle_folder(folder)
    weights, manifest = load_bundle(bundle)
    try:
        if "heuristic" in manifest:
            return _heuristic(manifest)
        return _learned(weights, manifest, bundle)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{bundle}: manifest and weights do not fit together: {str(error).splitlines()[0]}") from None


def bundle_folder(folder: Path) -> Path:
    """The bundle of a run folder, or `folder` itself.

    Raises:
        InputError: There is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run or bundle folder")
    bundle = folder / "bundle" if (folder / "config.yaml").exists() else folder
    if not bundle.is_dir():
        raise InputError(f"{folder}: the run has no bundle yet: its training has not finished")
    return bundle


def _learned(weights: dict[str, Tensor], manifest: dict[str, Any], where: Path) -> LearnedPolicy:
    name, spec = manifest["algorithm"], spec_from_json(manifest["spec"])
    settings = parse(find_algorithm(name).config_class().settings_class, manifest["settings"], f"{where}: settings")
    module = build_module(name, spec, parse(NetworkConfig, manifest["network"], f"{where}: network"), settings)
    module.load_state_dict(weights)
    return LearnedPolicy(spec, module.eval(), name)


def _heuristic(manifest: dict[str, Any]) -> Policy:
    """Heuristics compute with the physics of their scenario, which the simulator's spec knows."""
    name, problem = manifest["heuristic"], manifest["problem"]
    known = heuristics(problem)
    if name not in known:
        raise InputError(f"unknown heuristic {name!r} of {problem}: expected one of {', '.join(known)}")
    spec = spec_from_json(manifest["spec"])
    if problem in PROBLEMS:  # a PettingZoo scenario would import the module that the manifest names
        spec = make_simulator(scenario_from_dict(manifest["scenario"])).spec
        if spec_to_json(spec) != spec_to_json(spec_from_json(manifest["spec"])):
            raise InputError(
                f"heuristic {name!r}: the problem {problem} has changed since the bundle was made: export it again"
            )
    return known[name](spec)
