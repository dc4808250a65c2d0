"""What the learners of all families share: optimisers, repeatable noise, slow copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import Tensor, nn


class TeamLearner(TorchLearner):
    """A `TorchLearner` of one team module."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Adam for each group of `TeamModule.trained_parameters`, with the learning rate of that name."""
        for name, parameters in self.module[module_id].unwrapped().trained_parameters().items():
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.Adam(parameters),
                params=parameters,
                lr_or_lr_schedule=config.learning_rate(name),
            )

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        # Noise in a loss is a function of the seed and the number of updates, so that resuming repeats it.
        sequence = np.random.SeedSequence([self.config.seed or 0, self._weights_seq_no])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        for module_id in self.module.keys():  # noqa: SIM118 - MultiRLModule is not iterable as a dict
            module = self.module[module_id].unwrapped()
            for target, online in module.slow_copies():
                move_towards(target, online, module.settings.target_tau)


@torch.no_grad()
def move_towards(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Polyak averaging of all parameters (IDMAC, Algorithm 2, line 36)."""
    targets: list[Tensor] = list(target.parameters())
    if targets:
        torch._foreach_lerp_(targets, list(online.parameters()), tau)
