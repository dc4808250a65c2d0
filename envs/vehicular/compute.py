"""Processing of requests: the IDMAC paper, eqs. 13 and 17."""

from __future__ import annotations

from torch import Tensor


def request_cycles(size_mb: Tensor, importance: Tensor, cycles_per_mb_importance: float) -> Tensor:
    """Cycles that a request needs (Section V.A)."""
    return cycles_per_mb_importance * size_mb * importance


def seconds_per_cycle(tasks: Tensor, frequency_hz: Tensor | float) -> Tensor:
    """Eq. 13 for one cycle: a processor's frequency is shared equally by the tasks on it in the slot; 0 without tasks."""
    return tasks / frequency_hz


def joules_per_cycle(power_w: float, full_hz: float, level: Tensor | float) -> Tensor | float:
    """Eq. 17 for one cycle: `kappa f`, with `kappa` such that a processor at level 1 draws `power_w`.

    The sharing of eq. 13 is in time, so the frequency that counts is the processor's, `level * full_hz`, whatever the number of
    its tasks.
    """
    return power_w / full_hz * level
