"""What is drawn for an episode: every number that does not depend on decisions.

E  parallel episodes   N  servers   T  steps   J  exchanges that a store can come to hold   F = J + requests of the test
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from envs import random
from envs.errors import InputError
from envs.exact import on_grid
from envs.velo.answers import plain_distance
from envs.velo.corpus import NEW, SIMILAR, TRAIN, Corpus
from envs.velo.scenario import VeloScenario

SPLITS = {"similar": SIMILAR, "new": NEW}
MOST_TOKENS = 4_000.0
"""Of an answer."""


class Stream(IntEnum):
    """First counter of a random number."""

    GROUP = 0
    QUESTION = 1
    UNRELATED = 2
    DIRECTION = 3
    DISTANCE = 4
    TOKENS = 5
    ARRIVAL = 6
    EVICTION = 7
    OUTAGE = 8
    LINK = 9


@dataclass(frozen=True)
class Episode:
    """`[E, N, F]` of all exchanges: the initial ones, then one for each request, `T` of them.

    Attributes:
        question: int64, index in the corpus.
        direction: int64, in which direction the LLM's answer misses the reference.
        distance: float64, of the LLM's plain answer from the reference.
        answer_tokens: float64, whole numbers.
        arrival_s: `[E, N, T]` float64, when in the interval the request comes.
        store_up: `[E, N, T]` bool.
        slow_link: `[E, N, T]` bool.
        eviction: `[E, N]` int64: entries are dropped after requests `t` with `(t + eviction) % period == 0`, from 1 on.
    """

    question: Tensor
    direction: Tensor
    distance: Tensor
    answer_tokens: Tensor
    arrival_s: Tensor
    store_up: Tensor
    slow_link: Tensor
    eviction: Tensor


class EpisodeSource:
    """Draws episodes of one scenario.

    Raises:
        InputError: The corpus has no question of a split that the scenario asks for.
    """

    def __init__(self, s: VeloScenario, corpus: Corpus, directions: int, device: torch.device) -> None:
        self._s, self._directions, self._device = s, directions, device
        self._group = corpus.group.to(device)
        self._difficulty, self._tokens = (x.double().to(device) for x in (corpus.difficulty, corpus.answer_tokens))
        home = corpus.topic % s.num_servers == torch.arange(s.num_servers)[:, None]
        weight = corpus.popularity.double() * torch.where(home, s.locality, 1.0)
        self._popular = {split: _Draw(corpus, split, weight, device) for split in (TRAIN, *(SPLITS[p] for p in s.parts))}
        self._unrelated = _Draw(corpus, TRAIN, torch.ones_like(weight), device)

    def draw(self, seeds: Tensor) -> Episode:
        """The episodes that belong to `seeds [E]`."""
        s = self._s
        seeds = seeds.to(self._device)
        server = torch.arange(s.num_servers, device=self._device)
        exchange = torch.arange(s.initial_exchanges + s.steps, device=self._device)
        cell = (seeds[:, None, None], server[:, None], exchange)
        slot = (seeds[:, None, None], server[:, None], exchange[: s.steps])
        question = self._questions(cell)
        group = self._group[question]
        tokens = self._tokens[group] * (s.token_deviation * _normal(cell, Stream.TOKENS) - s.token_deviation**2 / 2).exp()
        normal = _normal(cell, Stream.DISTANCE)
        return Episode(
            question=question,
            direction=random.randint(self._directions, cell[0], Stream.DIRECTION, *cell[1:]),
            distance=on_grid(plain_distance(self._difficulty[group], s.llm.noise, s.answer_deviation, normal)),
            answer_tokens=tokens.ceil().clamp(1.0, MOST_TOKENS),
            arrival_s=self._same_for_all(on_grid(s.interval_s * _uniform(slot, Stream.ARRIVAL).double()), s.build_requests),
            store_up=_uniform(slot, Stream.OUTAGE) >= s.server_outage_probability,
            slow_link=_uniform(slot, Stream.LINK) < s.link_degradation_probability,
            eviction=random.randint(s.eviction_period, seeds[:, None], Stream.EVICTION, server),
        )

    def _questions(self, cell: tuple[Tensor, ...]) -> Tensor:
        """`[E, N, F]` int64."""
        s, (seeds, *counters) = self._s, cell
        share, pick = _uniform(cell, Stream.GROUP).double(), random.hash_bits(seeds, Stream.QUESTION, *counters)
        question = self._popular[TRAIN](share, pick)
        past = slice(s.initial_exchanges)
        unrelated = _uniform(cell, Stream.UNRELATED)[:, :, past] < s.initial_unrelated
        question[:, :, past] = torch.where(unrelated, self._unrelated(share, pick)[:, :, past], question[:, :, past])
        for part, name in enumerate(s.parts):
            first = s.exchanges + part * s.test_requests
            these = slice(first, first + s.test_requests)
            question[:, :, these] = self._popular[SPLITS[name]](share[:, :, these], pick[:, :, these])
        return self._same_for_all(question, s.exchanges)

    def _same_for_all(self, values: Tensor, first: int) -> Tensor:
        """Where the test offloads to all servers, what the first one gets from `first` on is what all get."""
        if self._s.offloading == "all":
            values[:, :, first:] = values[:, :1, first:].clone()
        return values


class _Draw:
    """Draws questions of one split: a group by weight, then one of its questions, all alike."""

    def __init__(self, corpus: Corpus, split: int, weight: Tensor, device: torch.device) -> None:
        """`weight` is `[N, G]`."""
        members = corpus.members(split)
        if not len(members):
            raise InputError(f"corpus {corpus.name!r} has no {['training', 'similar', 'new'][split]} questions")
        count = torch.bincount(corpus.group[members], minlength=len(corpus.topic))
        cumulative = (weight * (count > 0)).cumsum(1)
        self._members, self._count = members.to(device), count.to(device)
        self._first = (count.cumsum(0) - count).to(device)
        self._cumulative = (cumulative / cumulative[:, -1:]).contiguous().to(device)

    def __call__(self, share: Tensor, pick: Tensor) -> Tensor:
        """`share` uniform in (0, 1), `pick` uniform non-negative int64, both `[E, N, k]`, to questions `[E, N, k]`."""
        by_server = share.transpose(0, 1).flatten(1).contiguous()
        found = torch.searchsorted(self._cumulative, by_server, right=True)
        group = found.view(share.shape[1], share.shape[0], -1).transpose(0, 1)
        return self._members[self._first[group] + pick % self._count[group]]


def _uniform(cell: tuple[Tensor, ...], stream: Stream) -> Tensor:
    seeds, *counters = cell
    return random.uniform(seeds, stream, *counters)


def _normal(cell: tuple[Tensor, ...], stream: Stream) -> Tensor:
    seeds, *counters = cell
    return random.normal(seeds, stream, *counters).double()
