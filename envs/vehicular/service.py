"""Quality, score and capability of services: the IDMAC paper, Section III-B (eqs. 1-4) and Section V.A."""

from __future__ import annotations

import torch
from torch import Tensor


def qos(capability: Tensor, demand_level: Tensor, qos_max: float, alpha: float) -> Tensor:
    """Perceived quality, eq. 3: 0 where the model is not above the demand, saturating at `qos_max`."""
    return qos_max * (1.0 - torch.exp(-alpha * (capability - demand_level).clamp(min=0.0)))


def task_score(utility: Tensor, threshold: float, temperature: float) -> Tensor:
    """Eq. 4's weighted sum, normalised to (0, 1) by the sigmoid of Section V.A.

    Not `torch.sigmoid`: its last bit depends on an element's place in the tensor, and so on the number of rows.
    """
    return 1.0 / (1.0 + torch.exp((threshold - utility) / temperature))


def tuned_capability(capability: Tensor, importance_sum: Tensor, learning_rate: float, max_capability: float) -> Tensor:
    """The cloud's fine-tuning (Section V.A) from logs of summed importance; it never overshoots `max_capability`."""
    grown = capability + learning_rate * importance_sum * (1.0 - capability / max_capability)
    return grown.clamp(max=max_capability)
