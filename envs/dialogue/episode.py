"""What is drawn for an episode: every number that does not depend on decisions.

E  parallel episodes   D  devices   T  turns of the longest conversation   V  views
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor

from envs import random
from envs.dialogue.scenario import WALK, DialogueScenario
from envs.dialogue.tables import VIEWS
from envs.exact import on_grid


class Stream(IntEnum):
    """First counter of a random number."""

    TURNS = 0
    CATEGORY = 1
    DIFFICULTY = 2
    RELEVANCE = 3
    DIFFICULTY_HINT = 4
    RELEVANCE_HINT = 5
    QUALITY = 6
    PROMPT = 7
    ANSWER = 8
    NETWORK = 9
    WALK = 10
    LOCAL_JITTER = 11
    CLOUD_JITTER = 12
    ARRIVAL = 13
    OUTAGE = 14
    LATENCY_BUDGET = 15
    USD_BUDGET = 16


@dataclass(frozen=True)
class Episode:
    """`[E, D, T]` float64 unless noted.

    Attributes:
        turns: `[E, D]` int64, of each conversation.
        latency_budget_s, usd_budget: `[E, D]`.
        category, network: int64.
        relevance, relevance_hint: `[E, D, T, V]`; the hint is what the device sees.
        difficulty, difficulty_hint: In [0, 1].
        prompt_tokens, answer_tokens: Whole numbers.
        told: `[E, D, T + 1]`, tokens of all turns before each.
        local_quality, cloud_quality, visual_gain: Of the category.
        noise: Of the quality, the same whichever endpoint answers.
        local_s: Latency of a local answer, without history.
        cloud_s: `[E, D, T, 4]`, of a cloud answer with so many views, without history or waits.
        arrival_s: When in the interval the request is sent.
        reachable: bool, False where the cloud cannot be reached.
    """

    turns: Tensor
    latency_budget_s: Tensor
    usd_budget: Tensor
    category: Tensor
    network: Tensor
    relevance: Tensor
    relevance_hint: Tensor
    difficulty: Tensor
    difficulty_hint: Tensor
    prompt_tokens: Tensor
    answer_tokens: Tensor
    told: Tensor
    local_quality: Tensor
    cloud_quality: Tensor
    visual_gain: Tensor
    noise: Tensor
    local_s: Tensor
    cloud_s: Tensor
    arrival_s: Tensor
    reachable: Tensor

    def conversations(self) -> Episode:
        """The same as E * D episodes of one device each."""
        flat = {f.name: getattr(self, f.name).flatten(0, 1).unsqueeze(1) for f in fields(self)}
        return Episode(**flat)


class EpisodeSource:
    """Draws episodes of one scenario."""

    def __init__(self, s: DialogueScenario, device: torch.device) -> None:
        self._s, self._device = s, device
        categories = list(s.tasks.categories.values())

        def table(values: list) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        self._cumulative = table([c.share for c in categories]).cumsum(0)[:-1].float()
        self._relevance = table([[c.views.get(view, 0.0) for view in VIEWS] for c in categories])
        self._prompt, self._answer = table([c.prompt_tokens for c in categories]), table([c.answer_tokens for c in categories])
        self._means = [table([getattr(c, n) for c in categories]) for n in ("local_quality", "cloud_quality", "visual_gain")]
        self._cloud_s = table(list(s.endpoints.cloud.latency_s.values()))

    def draw(self, seeds: Tensor) -> Episode:
        """The episodes that belong to `seeds [E]`."""
        s = self._s
        seeds = seeds.to(self._device)
        device = torch.arange(s.num_devices, device=self._device)
        turn = torch.arange(s.max_turns, device=self._device)
        view = torch.arange(len(VIEWS), device=self._device)
        conversation = (seeds[:, None], device)
        cell = (seeds[:, None, None], device[:, None], turn)
        cells = (*(part[..., None] for part in cell), view)

        category = torch.bucketize(_uniform(cell, Stream.CATEGORY), self._cumulative, right=True)
        difficulty = _uniform(cell, Stream.DIFFICULTY).double()
        mean = self._relevance[category]
        moved = mean + s.relevance_spread * (2.0 * _uniform(cells, Stream.RELEVANCE).double() - 1.0)
        relevance = torch.where(mean > 0, moved.clamp(0.0, 1.0), 0.0)
        prompt = _whole(self._prompt[category], _uniform(cell, Stream.PROMPT))
        answer = _whole(self._answer[category], _uniform(cell, Stream.ANSWER))
        network = self._networks(cell)
        local_quality, cloud_quality, visual_gain = (of_category[category] for of_category in self._means)
        local_s = s.endpoints.local.latency_s * self._jitter(cell, Stream.LOCAL_JITTER)
        cloud_s = self._cloud_s[network] * self._jitter(cell, Stream.CLOUD_JITTER)[..., None]
        return Episode(
            turns=s.min_turns + random.randint(s.max_turns - s.min_turns + 1, seeds[:, None], Stream.TURNS, device),
            latency_budget_s=self._budget(conversation, Stream.LATENCY_BUDGET, s.latency_budget_s, s.random_latency_budget_s),
            usd_budget=self._budget(conversation, Stream.USD_BUDGET, s.usd_budget, s.random_usd_budget),
            category=category,
            network=network,
            relevance=relevance,
            relevance_hint=self._hint(relevance, cells, Stream.RELEVANCE_HINT),
            difficulty=difficulty,
            difficulty_hint=self._hint(difficulty, cell, Stream.DIFFICULTY_HINT),
            prompt_tokens=prompt,
            answer_tokens=answer,
            told=torch.nn.functional.pad((prompt + answer).cumsum(2), (1, 0)),
            local_quality=local_quality,
            cloud_quality=cloud_quality,
            visual_gain=visual_gain,
            noise=s.quality_noise * _normal(cell, Stream.QUALITY),
            local_s=on_grid(local_s),
            cloud_s=on_grid(cloud_s),
            arrival_s=on_grid(s.turn_interval_s * _uniform(cell, Stream.ARRIVAL).double()),
            reachable=_uniform(cell, Stream.OUTAGE) >= s.outage_probability,
        )

    def _networks(self, cell: tuple[Tensor, ...]) -> Tensor:
        """`[E, D, T]` int64: fixed, or a walk between neighbours that stays where it would leave the table."""
        s, count = self._s, len(self._s.networks)
        shape = torch.broadcast_shapes(*(part.shape for part in cell))
        if s.network != WALK:
            return torch.full(shape, s.networks.index(s.network), device=self._device)
        seeds, device, _ = cell
        now = random.randint(count, seeds, Stream.NETWORK, device).squeeze(2)
        u = _uniform(cell, Stream.WALK)
        move = (u < 0.5 * s.walk_probability).long() - (u > 1.0 - 0.5 * s.walk_probability).long()
        walk = []
        for step in move.unbind(2):  # at reset only
            walk.append(now)
            now = (now + step).clamp(0, count - 1)
        return torch.stack(walk, dim=2)

    def _jitter(self, cell: tuple[Tensor, ...], stream: Stream) -> Tensor:
        """Lognormal with mean 1, float64."""
        deviation = self._s.latency_jitter
        return (deviation * _normal(cell, stream) - 0.5 * deviation**2).exp()

    def _hint(self, truth: Tensor, cell: tuple[Tensor, ...], stream: Stream) -> Tensor:
        """The truth with noise, cut to [0, 1]."""
        return (truth + self._s.hint_noise * _normal(cell, stream)).clamp(0.0, 1.0)

    def _budget(self, conversation: tuple[Tensor, ...], stream: Stream, fixed: float, limits: tuple[float, float]) -> Tensor:
        """`[E, D]` float64."""
        share = _uniform(conversation, stream).double()
        low, high = limits if self._s.random_budgets else (fixed, fixed)
        return on_grid(low + (high - low) * share)


def _uniform(cell: tuple[Tensor, ...], stream: Stream) -> Tensor:
    seeds, *counters = cell
    return random.uniform(seeds, stream, *counters)


def _normal(cell: tuple[Tensor, ...], stream: Stream) -> Tensor:
    seeds, *counters = cell
    return random.normal(seeds, stream, *counters).double()


def _whole(limits: Tensor, share: Tensor) -> Tensor:
    """A whole number between `limits[..., 0]` and `limits[..., 1]`, both included, float64."""
    low, high = limits[..., 0], limits[..., 1]
    return low + ((high - low + 1.0) * share.double()).floor()
