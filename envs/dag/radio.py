"""The wireless link between a device and the edges' access point (paper, Sec. 3.1).

The paper gives no channel gain. Ours is `reference_gain * distance^-exponent`, with the two constants such that a device
with 0.3 W, 6 MHz and the paper's noise of -43 dBm (5.01e-8 W) sends 60 Mbit/s from 20 m and 20 Mbit/s from 100 m:

    20 m:   60 / 6 = 10 bit/s/Hz     SNR = 2^10 - 1       = 1023    gain = 1023    * 5.012e-8 / 0.3 = 1.709e-4
    100 m:  20 / 6 = 3.333 bit/s/Hz  SNR = 2^(10 / 3) - 1 = 9.079   gain = 9.079   * 5.012e-8 / 0.3 = 1.517e-6
    exponent = ln(1.709e-4 / 1.517e-6) / ln(100 / 20) = 4.7245 / 1.6094 = 2.9355
    reference gain = 1.709e-4 * 20^2.9355 = 1.127

A gain above 1 at 1 m is an extrapolation that is never used; it makes up for the paper's noise, which is very high.
"""

from __future__ import annotations

from torch import Tensor


def path_gain(distance_m: Tensor, reference_gain: float, exponent: float) -> Tensor:
    """G, of any shape."""
    return reference_gain * distance_m**-exponent


def shannon_bps(bandwidth_hz: float, power_w: float, gain: Tensor, noise_w: float) -> Tensor:
    """r = W log2(1 + P G / sigma^2), of any shape."""
    return bandwidth_hz * (1.0 + power_w * gain / noise_w).log2()
