"""Radio links of vehicles and edges: the IDMAC paper, Section III-C (eqs. 6-9) and eqs. 14-15."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def channel_gain(distance_m: Tensor, fading: Tensor | float, reference_gain: float, exponent: float) -> Tensor:
    """`h = G0 d^-eta |g|^2`, the share of the sent power that arrives. `fading` is `|g|^2`, of mean 1."""
    return reference_gain * distance_m.pow(-exponent) * fading


def snr(power_w: Tensor | float, gain: Tensor, bandwidth_hz: Tensor | float, noise_w_per_hz: float) -> Tensor:
    """Signal-to-noise ratio, eqs. 6-7 without interference: the vehicles of an edge use separate bands."""
    return gain * (power_w / (noise_w_per_hz * bandwidth_hz))


def rate_bps(bandwidth_hz: Tensor | float, signal_to_noise: Tensor) -> Tensor:
    """Shannon rate, eqs. 8-9; exact also where the signal drowns in noise."""
    return bandwidth_hz * (torch.log1p(signal_to_noise) / math.log(2.0))


def cap_factor(total_bps: Tensor, cap_bps: float) -> Tensor:
    """What all rates of an edge are multiplied with so that their sum stays within the edge's limit: in (0, 1]."""
    return cap_bps / total_bps.clamp(min=cap_bps)


def sending_energy_j(power_w: Tensor | float, bits: Tensor | float, rate: Tensor | float) -> Tensor | float:
    """Energy of sending `bits` at `rate` with `power_w`, eqs. 14-16."""
    return power_w * bits / rate
