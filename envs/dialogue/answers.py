"""What an answer brings and takes, for any choices of any conversations: the rules that simulator and optimum share."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from envs.dialogue.episode import Episode
from envs.dialogue.physics import association, coverage, quality, reward, views_of_choices
from envs.dialogue.scenario import DialogueScenario
from envs.exact import on_grid


@dataclass(frozen=True)
class Turn:
    """One turn of an episode: the fields of `Episode` of the same names, without their dimension T."""

    relevance: Tensor
    difficulty: Tensor
    prompt_tokens: Tensor
    answer_tokens: Tensor
    local_quality: Tensor
    cloud_quality: Tensor
    visual_gain: Tensor
    noise: Tensor
    local_s: Tensor
    cloud_s: Tensor

    @classmethod
    def of(cls, episode: Episode, turn: int, trailing: int = 0) -> Turn:
        """`[E, D]` tensors with `trailing` further dimensions of 1 (before the views of those that have them)."""
        values = {field.name: getattr(episode, field.name)[:, :, turn] for field in fields(cls)}
        for _ in range(trailing):
            values = {name: value.unsqueeze(2) for name, value in values.items()}
        return cls(**values)


@dataclass(frozen=True)
class Answer:
    """`[...]` float64 unless noted; latency without waits at the provider.

    Attributes:
        views: int64, how many were sent.
        tokens: What counts for the provider's rate limit, 0 for local answers.
        hold_s: For how long the request occupies a slot of the provider.
    """

    quality: Tensor
    association: Tensor
    latency_s: Tensor
    usd: Tensor
    views: Tensor
    tokens: Tensor
    hold_s: Tensor


class Rules:
    """The rules of one scenario."""

    def __init__(self, s: DialogueScenario, device: torch.device | str = "cpu") -> None:
        self.scenario = s
        self.sends = views_of_choices(device)
        cloud = s.endpoints.cloud
        self._usd = torch.tensor(cloud.usd, dtype=torch.float64, device=device)
        self._hold_s = torch.tensor(cloud.hold_s, dtype=torch.float64, device=device)

    def answer(self, turn: Turn, choice: Tensor, refused: Tensor, untold: tuple[Tensor, Tensor]) -> Answer:
        """The answers to one turn.

        Args:
            choice: `[...]` int64 in [0, 9).
            refused: bool: the cloud does not answer; after a timeout the local model does.
            untold: Tokens of dialogue that the local and the cloud model have not seen.
        """
        s, local, cloud = self.scenario, self.scenario.endpoints.local, self.scenario.endpoints.cloud
        on_cloud = (choice > 0) & ~refused
        sent = self.sends[choice] * on_cloud[..., None]
        views = sent.sum(-1).long()
        to_local, to_cloud = untold
        covered = coverage(turn.relevance, sent, s.view_information)
        quality_local = quality(
            turn.local_quality, torch.zeros_like(covered), covered, s.local_difficulty, turn.difficulty, turn.noise
        )
        quality_cloud = quality(turn.cloud_quality, turn.visual_gain, covered, s.cloud_difficulty, turn.difficulty, turn.noise)
        local_s = turn.local_s + to_local * local.history_s_per_token + s.timeout_s * ((choice > 0) & refused)
        table_s = turn.cloud_s.expand(*views.shape, -1).gather(-1, views[..., None]).squeeze(-1)
        cloud_s = table_s + to_cloud * cloud.history_s_per_token
        tokens = turn.prompt_tokens + turn.answer_tokens + to_cloud + views * cloud.view_tokens
        return Answer(
            quality=torch.where(on_cloud, quality_cloud, quality_local),
            association=association(turn.relevance, sent),
            latency_s=on_grid(torch.where(on_cloud, cloud_s, local_s)),
            usd=on_grid((self._usd[views] + to_cloud * cloud.history_usd_per_token) * on_cloud),
            views=views,
            tokens=tokens * on_cloud,
            hold_s=on_grid(self._hold_s[views] * on_cloud),
        )

    def reward(self, answer: Answer, latency_s: Tensor) -> Tensor:
        """Equation (5) on the grid, before budgets; `latency_s` includes waits."""
        s = self.scenario
        scales = (s.quality_scale, s.latency_scale_s, s.usd_scale)
        weights = (s.weight_latency, s.weight_usd, s.weight_association)
        return on_grid(reward(answer.quality, latency_s, answer.usd, answer.association, scales, weights))
