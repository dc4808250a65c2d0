"""The learning algorithms, one file per family, by the names that users type."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envs.errors import InputError

if TYPE_CHECKING:
    from trainers.algorithms.team_algorithm import TeamAlgorithmConfig


@dataclass(frozen=True)
class AlgorithmEntry:
    """Where an algorithm lives; its own defaults are in `trainers/presets/<name>.yaml`.

    Attributes:
        module: Import path that defines `CONFIG`, the family's `TeamAlgorithmConfig`. Imported on use: RLlib takes seconds.
        summary: One line for `edgeflock list`.
    """

    module: str
    summary: str

    def config_class(self) -> type[TeamAlgorithmConfig]:
        return importlib.import_module(self.module).CONFIG


_VALUE_DECOMPOSITION = "trainers.algorithms.value_decomposition"
_COMA = "trainers.algorithms.coma"
_MAPPO = "trainers.algorithms.mappo"

ALGORITHMS: dict[str, AlgorithmEntry] = {
    "vdn": AlgorithmEntry(_VALUE_DECOMPOSITION, "value decomposition by a sum (Sunehag et al. 2017)"),
    "qmix": AlgorithmEntry(_VALUE_DECOMPOSITION, "monotonic value mixing (Rashid et al. 2018)"),
    "qplex": AlgorithmEntry(_VALUE_DECOMPOSITION, "duplex dueling value mixing (Wang et al. 2021)"),
    "idmac": AlgorithmEntry(_VALUE_DECOMPOSITION, "intent-driven communication on a value-mixing learner (Huo et al.)"),
    "mappo": AlgorithmEntry(_MAPPO, "proximal policy optimisation with a central critic (Yu et al. 2022)"),
    "g-mappo": AlgorithmEntry(_MAPPO, "MAPPO that is shown an expert's episodes at first (Yao et al. 2025)"),
    "t-mappo": AlgorithmEntry(_MAPPO, "MAPPO with a Transformer encoder of the request (Yao et al. 2025)"),
    "lrs": AlgorithmEntry(_MAPPO, "MAPPO with demonstrations and request encoder (Yao et al. 2024)"),
    "dlrs": AlgorithmEntry(_MAPPO, "LRS with a diffusion actor, linear schedule, 10 denoising steps (Yao et al. 2025)"),
    "dlrs-l5": AlgorithmEntry(_MAPPO, "DLRS with 5 denoising steps"),
    "dlrs-l15": AlgorithmEntry(_MAPPO, "DLRS with 15 denoising steps"),
    "dlrs-v5": AlgorithmEntry(_MAPPO, "DLRS with the variance-preserving schedule and 5 denoising steps"),
    "dlrs-v10": AlgorithmEntry(_MAPPO, "DLRS with the variance-preserving schedule and 10 denoising steps"),
    "dlrs-v15": AlgorithmEntry(_MAPPO, "DLRS with the variance-preserving schedule and 15 denoising steps"),
    "coma": AlgorithmEntry(_COMA, "counterfactual policy gradients (Foerster et al. 2018)"),
    "ucb-coma": AlgorithmEntry(_COMA, "COMA that explores by upper confidence bounds (Liao et al. 2025)"),
    "cs-ucb": AlgorithmEntry("trainers.algorithms.cs_ucb", "a bandit over the legal choices of each agent (Yang et al. 2024)"),
    "maddpg": AlgorithmEntry("trainers.algorithms.maddpg", "actors through a joint critic (Lowe et al. 2017)"),
}


def find_algorithm(name: str) -> AlgorithmEntry:
    """The algorithm called `name`, or an `InputError` that lists those there are."""
    if name not in ALGORITHMS:
        raise InputError(f"unknown algorithm {name!r}: expected one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]
