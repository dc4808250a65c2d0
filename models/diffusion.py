"""The diffusion actor of DLRS: scores of an agent's choices by denoising (Yao et al., "Enhancing LLM QoS Through Cloud-Edge
Collaboration", Sec. IV-A; equation numbers are theirs).

The chain runs from noise kappa_T to the scores kappa_0, whose softmax is the policy. Its noise is an input: whoever acts draws
and records it, and a loss that is given the same noise computes the same scores, through which gradients reach every step.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from envs.team import TeamSpec
from models.encoders import BranchScores

TIME_SIZE = 16  # width of the time embedding (Table II)


class DiffusionConfig(BaseModel):
    """Chain and network of the diffusion actor (Table II of the paper)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(10, ge=1, le=100, description="denoising steps")
    schedule: Literal["linear", "vp"] = Field("linear", description="how the forward process' variance grows")
    beta_min: float = Field(0.02, gt=0, lt=1, description="variance of the linear schedule's first step")
    beta_max: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="and of its last: large enough that next to nothing of kappa_0 is left after 5, 10 or 15 steps. The 1e-4 "
        "to 0.02 that is usual for 1000 steps leaves 90 % of it after 10: the chain could not forget the noise it starts from",
    )
    hidden: int = Field(256, ge=4, description="width of the two hidden layers")
    noise_scale: Literal["standard", "paper"] = Field(
        "standard", description="deviation of the noise of a step: the posterior's, or eq. 18 as printed"
    )
    clip: float | None = Field(
        5.0,
        gt=0,
        description="largest magnitude of the estimate of kappa_0 (eq. 15); null: none, as in the paper, where a noise of more "
        "than 1, which no bounded prediction can take away, grows by 1 / sqrt(alpha-bar_T) and decides instead of the network",
    )

    @model_validator(mode="after")
    def _variance_grows(self) -> DiffusionConfig:
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min = {self.beta_min:g}: expected at most beta_max = {self.beta_max:g}")
        return self


def variances(config: DiffusionConfig) -> Tensor:
    """beta_1 to beta_T of eq. 13, `[steps]` float64.

    `vp` is the variance-preserving schedule of the D2SAC family, `1 - exp(-0.1 / T - (10 - 0.1) (2 tau - 1) / (2 T^2))`.
    """
    steps = config.steps
    if config.schedule == "linear":
        return torch.linspace(config.beta_min, config.beta_max, steps, dtype=torch.float64)
    place = torch.arange(1, steps + 1, dtype=torch.float64)
    return -torch.expm1(-0.1 / steps - 0.5 * (10.0 - 0.1) * (2.0 * place - 1.0) / steps**2)


class DiffusionActor(nn.Module):
    """Denoises the scores of all existing choices of an agent (the chain's variable, W numbers in one vector).

    The predicted noise depends on the chain's variable, the step, and as condition on the agent's hidden state and the ordinary
    heads' scores, in which members of entities have their say. What does not change along the chain is computed once.
    """

    _places: Tensor  # [W], where the existing choices lie in [H * C]
    _time: Tensor  # [steps, TIME_SIZE], sinusoidal

    def __init__(self, spec: TeamSpec, hidden: int, config: DiffusionConfig) -> None:
        super().__init__()
        self.steps, self.clip = config.steps, config.clip
        exists = spec.choice_exists().flatten()
        self.width = int(exists.sum())
        self.time = nn.Sequential(nn.Linear(TIME_SIZE, 2 * TIME_SIZE), nn.Mish(), nn.Linear(2 * TIME_SIZE, TIME_SIZE))
        self.condition_layer = nn.Linear(hidden + self.width, config.hidden)
        self.time_layer = nn.Linear(TIME_SIZE, config.hidden, bias=False)
        self.chain_layer = nn.Linear(self.width, config.hidden, bias=False)
        self.noise_layers = nn.Sequential(
            nn.Mish(), nn.Linear(config.hidden, config.hidden), nn.Mish(), nn.Linear(config.hidden, self.width), nn.Tanh()
        )
        factors = {name: values.tolist() for name, values in chain_factors(config).items()}
        self._factors = [{name: values[step] for name, values in factors.items()} for step in range(config.steps)]
        self.register_buffer("_places", exists.nonzero().squeeze(-1), persistent=False)
        self.register_buffer("_time", _sinusoids(config.steps), persistent=False)

    def forward(self, hidden: Tensor, heads: BranchScores, noise: Tensor | None = None) -> BranchScores:
        """Scores of all branches.

        Args:
            hidden: `[..., hidden]`.
            heads: The ordinary heads' scores.
            noise: `[..., steps, W]` standard normal numbers: kappa_T, then the noise of the steps but the last, which has none
                (beta-tilde_1 = 0). None: zeros.
        """
        scores = heads.dense()
        flat = scores.flatten(-2)
        denoised = self.denoise(torch.cat([hidden, flat.index_select(-1, self._places)], dim=-1), noise)
        return BranchScores.everywhere(torch.zeros_like(flat).index_copy(-1, self._places, denoised).view_as(scores))

    def denoise(self, condition: Tensor, noise: Tensor | None = None) -> Tensor:
        """kappa_0 `[..., W]` of a condition `[..., hidden + W]` (Algorithm 2, lines 12 to 15; `noise`: see `forward`)."""
        rows = self.condition_layer(condition.flatten(0, -2))  # a decision for one team is little else than calls: 2-d is least
        time = self.time_layer(self.time(self._time))
        drawn = None if noise is None else noise.flatten(0, -3)
        x = rows.new_zeros(len(rows), self.width) if drawn is None else drawn[:, 0]
        for step in reversed(range(self.steps)):
            predicted = self.noise_layers(torch.addmm(rows + time[step], x, self.chain_layer.weight.T))
            factor = self._factors[step]
            estimate = torch.sub(factor["start"] * x, predicted, alpha=factor["removed"])
            if self.clip is not None:
                estimate = estimate.clamp(-self.clip, self.clip)
            x = torch.add(factor["kept"] * x, estimate, alpha=factor["drawn"])
            if drawn is not None and step > 0:
                x = torch.add(x, drawn[:, self.steps - step], alpha=factor["deviation"])
        return x.unflatten(0, condition.shape[:-1])


def chain_factors(config: DiffusionConfig) -> dict[str, Tensor]:
    """What each step of the chain multiplies by, `[steps]` float32 each. Together eqs. 15 and 16 are eq. 17.

    Returns:
        `start` and `removed`: of kappa_tau and of the predicted noise in the estimate of kappa_0 (eq. 15). `kept` and `drawn`:
        of kappa_tau and of that estimate in the mean of kappa_(tau - 1) (eq. 16). `deviation`: of the noise (eqs. 18 and 19).
    """
    beta = variances(config)
    alpha = 1.0 - beta
    left = alpha.cumprod(0)  # alpha-bar
    before = F.pad(left[:-1], (1, 0), value=1.0)  # of the step before; alpha-bar_0 = 1
    posterior = (1.0 - before) / (1.0 - left) * beta  # eq. 19
    deviation = posterior.sqrt() if config.noise_scale == "standard" else (posterior / 2.0).square()
    factors = {
        "start": left.rsqrt(),
        "removed": (1.0 / left - 1.0).sqrt(),
        "kept": alpha.sqrt() * (1.0 - before) / (1.0 - left),
        "drawn": before.sqrt() * beta / (1.0 - left),
        "deviation": deviation,
    }
    return {name: values.to(torch.float32) for name, values in factors.items()}


def _sinusoids(steps: int) -> Tensor:
    """Sine and cosine of the steps 1 to T at `TIME_SIZE / 2` frequencies from 1 to 1e-4, `[steps, TIME_SIZE]`."""
    half = TIME_SIZE // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half) / (half - 1))
    angles = torch.arange(1, steps + 1)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
