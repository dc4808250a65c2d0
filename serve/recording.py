"""Decisions for few teams without Python between their operations.

For few teams a network is little else than the overhead of its calls. Recorded once and replayed by torch, the same operations
give the same bits in about half the time. What is recorded holds for one number of teams (`SIZES`); between them, others are
filled up. Larger batches take the ordinary way, where the overhead is shared.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainers.learned_policy import LearnedPolicy

Values = dict[str, Tensor]

SIZES = (1, 4, 8)
"""Numbers of teams whose decisions are recorded."""


class RecordedDecision:
    """`LearnedPolicy.act` for one number of teams, with the same arguments and results."""

    def __init__(self, policy: LearnedPolicy, observation: Values, state: Values, mask: Tensor) -> None:
        """Records the policy's decision on these values, `[B, ...]` each."""
        act = _Act(policy, list(observation), list(state))
        self._act = act
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that become constants; `record` tests the rest
            traced = torch.jit.trace(act.eval(), self._arguments(observation, state, mask), check_trace=False)
        self._recorded = torch.jit.freeze(traced)

    def __call__(self, observation: Values, state: Values, mask: Tensor) -> tuple[Tensor, Values]:
        """As `LearnedPolicy.act`."""
        actions, *after = self._recorded(*self._arguments(observation, state, mask))
        return actions, dict(zip(self._act.remembered, after, strict=True))

    def _arguments(self, observation: Values, state: Values, mask: Tensor) -> tuple[Tensor, ...]:
        return mask, *(observation[name] for name in self._act.seen), *(state[name] for name in self._act.remembered)


class _Act(nn.Module):
    """The policy's decision as a function of tensors."""

    def __init__(self, policy: LearnedPolicy, seen: list[str], remembered: list[str]) -> None:
        super().__init__()
        self.module, self.policy = policy.module, policy
        self.seen, self.remembered = seen, remembered

    def forward(self, mask: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        observation = dict(zip(self.seen, values[: len(self.seen)], strict=True))
        state = dict(zip(self.remembered, values[len(self.seen) :], strict=True))
        actions, after = self.policy.act(observation, state, mask)
        return actions, *(after[name] for name in self.remembered)


@torch.inference_mode()
def record(policy: LearnedPolicy, observations: Sequence[Values]) -> RecordedDecision | None:
    """The policy's recorded decision; None where torch cannot record it, or where it differs from the policy's own.

    Args:
        observations: Of `B` teams each, of episodes of which any bit of the recording has to agree.
    """
    teams = len(next(iter(observations[0].values())))
    state, mask = policy.initial_state(teams), policy.spec.choice_exists().expand(teams, policy.spec.num_agents, -1, -1)
    try:
        recorded = RecordedDecision(policy, observations[0], state, mask)
        for observation in observations:
            expected, got = policy.act(observation, state, mask), recorded(observation, state, mask)
            if not _same(expected, got):
                return None
            state = expected[1]
    except (RuntimeError, KeyError, TypeError):
        return None
    return recorded


def _same(one: tuple[Tensor, Values], other: tuple[Tensor, Values]) -> bool:
    return torch.equal(one[0], other[0]) and all(torch.equal(value, other[1][name]) for name, value in one[1].items())
