"""Heuristics for the dialogue problem.

All of them see what the devices observe and nothing else. `device` to `uncertainty` are those of the survey's Fig. 4 (its
prompted models replaced by rules); `greedy` and `paced` know the scenario's tables, and are ours.

    D  devices      V  views
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from envs.dialogue.answers import Rules, Turn
from envs.dialogue.physics import CHOICES
from envs.dialogue.scenario import DialogueScenario
from envs.dialogue.spec import DialogueSpec
from envs.errors import InputError
from envs.team import TeamSpec
from trainers.policy import Policy, RandomPolicy


class DialoguePolicy(Policy):
    """Base of the heuristics that choose one of the 9 choices per device; the local model where that is illegal.

    Raises:
        InputError: The spec is not one of the dialogue problem.
    """

    def __init__(self, spec: TeamSpec, seed: int = 0) -> None:
        super().__init__(spec)
        if not isinstance(spec, DialogueSpec):
            raise InputError(f"policy {self.name!r} is for the dialogue problem, not for {spec.problem}/{spec.scenario}")
        self.scenario: DialogueScenario = spec.physics

    def act(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        choice = self.choose(observation)
        legal = mask[:, :, 0].gather(2, choice[..., None])
        return choice[..., None] * legal, state

    @abstractmethod
    def choose(self, observation: dict[str, Tensor]) -> Tensor:
        """`[E, D]` int64 in [0, 9)."""


def cloud_with(views: Tensor) -> Tensor:
    """The choice that sends the `views [..., V]` bool to the cloud: `[...]` int64."""
    bits = 2 ** torch.arange(views.shape[-1], device=views.device)
    return 1 + (views * bits).sum(-1)


class DevicePolicy(DialoguePolicy):
    """Everything to the local model."""

    name = "device"

    def choose(self, observation: dict[str, Tensor]) -> Tensor:
        return torch.zeros_like(observation["category"][..., 0])


class CloudPolicy(DialoguePolicy):
    """Everything to the cloud, with all views."""

    name = "cloud"

    def choose(self, observation: dict[str, Tensor]) -> Tensor:
        return torch.full_like(observation["category"][..., 0], CHOICES - 1)


class PromptRouter(DialoguePolicy):
    """A stand-in for a language model that is asked, request by request, where it should go.

    It judges the request as a reader would: how hard it seems and which views it seems to need. It asks the cloud where one
    of these exceeds `strictness`, with the views that do. It knows neither budgets nor prices nor networks.
    """

    strictness: float

    def choose(self, observation: dict[str, Tensor]) -> Tensor:
        views = observation["relevance_hint"] > self.strictness
        needed = (observation["difficulty_hint"][..., 0] > self.strictness) | views.any(-1)
        return cloud_with(views) * needed


class StrictRouter(PromptRouter):
    """The cloud for what clearly needs it only."""

    name, strictness = "router-strict", 0.8


class BalancedRouter(PromptRouter):
    """The cloud for what seems to need it."""

    name, strictness = "router-balanced", 0.6


class GenerousRouter(PromptRouter):
    """The cloud for what might need it."""

    name, strictness = "router-generous", 0.4


class UncertaintyRouter(DialoguePolicy):
    """The cloud where the local model is uncertain, with the one view that seems most relevant if any seems to matter."""

    name, threshold, least_relevance = "uncertainty", 0.5, 0.3

    def choose(self, observation: dict[str, Tensor]) -> Tensor:
        hint = observation["relevance_hint"]
        best = torch.nn.functional.one_hot(hint.argmax(-1), hint.shape[-1]).bool() & (hint > self.least_relevance)
        return cloud_with(best) * (observation["difficulty_hint"][..., 0] > self.threshold)


class GreedyPolicy(DialoguePolicy):
    """The highest expected reward of this turn, as if it were the last and no other device asked."""

    name = "greedy"

    def __init__(self, spec: TeamSpec, seed: int = 0) -> None:
        super().__init__(spec, seed)
        kinds = self.scenario.tasks.categories.values()
        self._means = torch.tensor(
            [(k.local_quality, k.cloud_quality, k.visual_gain, sum(k.answer_tokens) / 2) for k in kinds], dtype=torch.float64
        )

    def choose(self, observation: dict[str, Tensor]) -> Tensor:
        return self.expected(observation)[0].argmax(-1)

    def expected(self, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, latency and dollars `[E, D, 9]` float64 of every choice, from hints, tables and the provider's backlog."""
        s, rules = self.scenario, Rules(self.scenario, observation["turn"].device)
        shown = {name: value.unsqueeze(2).double() for name, value in observation.items() if name != "category"}
        local_quality, cloud_quality, gain, answer = self._means.to(rules.sends.device)[observation["category"]].unbind(-1)
        turn = Turn(
            relevance=shown["relevance_hint"],
            difficulty=shown["difficulty_hint"][..., 0],
            prompt_tokens=shown["prompt_tokens"][..., 0],
            answer_tokens=answer,
            local_quality=local_quality,
            cloud_quality=cloud_quality,
            visual_gain=gain,
            noise=torch.zeros_like(gain),
            local_s=torch.full_like(gain, s.endpoints.local.latency_s),
            cloud_s=shown["cloud_latency_s"],
        )
        choices = torch.arange(CHOICES, device=rules.sends.device).expand(*observation["turn"].shape[:2], -1)
        refused = (shown["link_up"][..., 0] == 0) & (choices > 0)
        answers = rules.answer(turn, choices, refused, tuple(shown["history_tokens"].unbind(-1)))  # type: ignore[arg-type]
        full_s = s.rate_burst_tokens / s.rate_limit_tokens_per_s
        wait_s = torch.maximum((shown["rate_backlog_s"] - full_s).clamp(min=0.0), shown["queue_backlog_s"])[..., 0]
        latency_s = answers.latency_s + wait_s * (choices > 0)
        return rules.reward(answers, latency_s), latency_s, answers.usd


class PacedPolicy(GreedyPolicy):
    """Greedy among what fits an even pace: at most `slack` times what is left of each budget per turn that is expected.

    It needs the budgets in the observation.
    """

    name, slack = "paced", 2.0

    def choose(self, observation: dict[str, Tensor]) -> Tensor:
        if "usd_left" not in observation:
            raise InputError("policy 'paced' needs the budgets in the observation: expected observe_budget = true")
        reward, latency_s, usd = self.expected(observation)
        turns_left = self._turns_left(observation["turn"].double())
        fits = (latency_s * turns_left <= self.slack * observation["latency_left_s"].double()) & (
            latency_s <= observation["latency_left_s"]
        )
        fits &= (usd * turns_left <= self.slack * observation["usd_left"].double()) & (usd <= observation["usd_left"])
        fits[..., 0] = True
        return reward.masked_fill(~fits, -torch.inf).argmax(-1)

    def _turns_left(self, turn: Tensor) -> Tensor:
        """Expected turns of a conversation from this one on, given that it has this one."""
        s = self.scenario
        return (torch.maximum(turn + 1, torch.full_like(turn, s.min_turns)) + s.max_turns) / 2 - turn


HEURISTICS: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        *(RandomPolicy, DevicePolicy, CloudPolicy, StrictRouter, BalancedRouter, GenerousRouter, UncertaintyRouter),
        *(GreedyPolicy, PacedPolicy),
    )
}
"""Name to class; called with (spec, seed)."""
