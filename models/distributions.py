"""The agents' stochastic policies: an independent categorical distribution over the legal choices of every branch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class BranchCategorical:
    """One categorical distribution per branch; an agent's action is one choice of each.

    Attributes:
        log_p: `[..., H, C]`, log-probabilities; about -1e9 for illegal choices, so that nothing becomes NaN.
    """

    log_p: Tensor

    @staticmethod
    def of(logits: Tensor, action_mask: Tensor) -> BranchCategorical:
        """From logits and legality, `[..., H, C]` each."""
        return BranchCategorical(F.log_softmax(logits.masked_fill(~action_mask, -1e9), dim=-1))

    def log_prob(self, actions: Tensor) -> Tensor:
        """Of actions `[..., H]` int64, summed over the branches: `[...]`. A branch with one legal choice adds 0."""
        return self.of_branches(actions).sum(-1)

    def of_branches(self, actions: Tensor) -> Tensor:
        """Log-probability of each branch's choice, `[..., H]`."""
        return self.log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Summed over the branches, nats: `[...]`."""
        return -(self.log_p.exp() * self.log_p).sum((-1, -2))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Actions `[..., H]` int64, by the Gumbel trick."""
        return (self.log_p + gumbel(self.log_p, generator)).argmax(-1)

    def mode(self) -> Tensor:
        """The most probable choices, the first of equals: `[..., H]` int64."""
        return self.log_p.argmax(-1)


def gumbel(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise of a tensor's shape."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device).clamp(min=1e-20)
    return -torch.log((-torch.log(uniform)).clamp(min=1e-20))


def straight_through(distribution: BranchCategorical, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel-softmax samples (Jang et al. 2017): one-hot `[..., H, C]` going forward, their relaxation going backward."""
    noisy = distribution.log_p + gumbel(distribution.log_p, generator)
    soft = F.softmax(noisy / temperature, dim=-1)
    hard = F.one_hot(noisy.argmax(-1), noisy.shape[-1]).to(soft.dtype)
    return hard - soft.detach() + soft
