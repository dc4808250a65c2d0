"""The vectors of requests and cached answers, on the grid of `envs.velo.pool`.

B  stores   J  exchanges of a store   H  width   K  directions
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from envs.velo.answers import mix_at_distance
from envs.velo.corpus import Corpus, unit_vectors
from envs.velo.pool import KINDS, VECTOR_GRID, on_vector_grid, relative_distances

DIRECTIONS = 256
"""K, in which an LLM's answer may miss the reference."""
COORDINATES = 30
"""Of a request in the global state, as many as the paper's D (Table II)."""
CHUNK = 2**19
"""Numbers that are worked on at once: what stays in the processor's cache is several times as fast."""
ACCELERATOR_CHUNK = 2**28


class Vectors:
    """All vectors that a corpus can give rise to."""

    def __init__(self, corpus: Corpus, seed: int, device: torch.device) -> None:
        rng = np.random.default_rng([seed, corpus.width])
        directions = torch.from_numpy(rng.normal(size=(DIRECTIONS, corpus.width)))
        self._directions = on_vector_grid(unit_vectors(directions, "directions")).to(device)
        self.question = on_vector_grid(corpus.question.clone()).to(device)
        self.reference = on_vector_grid(corpus.answer.clone()).to(device)
        self.length = self.question.square().sum(1)
        self._cosine = self.reference @ self._directions.T
        orthogonal = np.linalg.qr(rng.normal(size=(corpus.width, min(COORDINATES, corpus.width))))[0]
        axes = on_vector_grid(torch.from_numpy(orthogonal).float()).to(device)
        self.coordinates = torch.nn.functional.pad(self.question @ axes, (0, COORDINATES - axes.shape[1]))
        self._chunk = CHUNK if device.type == "cpu" else ACCELERATOR_CHUNK

    def answer(self, question: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
        """An LLM's answers `[..., H]`, at `distance [...]` from the reference of `question [...]` (but for rounding)."""
        first, second = mix_at_distance(distance, self._cosine[question, direction].double())
        answers = self.reference[question].mul_((first * VECTOR_GRID).float()[..., None])
        answers += self._directions[direction].mul_((second * VECTOR_GRID).float()[..., None])
        return answers.round_().mul_(1.0 / VECTOR_GRID)

    def distances(self, requests: Tensor, question: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
        """Distances of requests to everything that their store can come to hold, as `relative_distances` has them.

        Args:
            requests: `[B, t]` int64, questions of the corpus.
            question, direction, distance: `[B, J]`, the exchanges.

        Returns:
            `[t, B, K, J]` float32, to the questions and to the answers of the exchanges.
        """
        (stores, steps), exchanges = requests.shape, question.shape[1]
        found = torch.empty(steps, stores, KINDS, exchanges, device=question.device)
        rows = max(1, self._chunk // (exchanges * self.question.shape[1]))
        for first in range(0, stores, rows):
            some = slice(first, first + rows)
            asked = self.question[requests[some]]
            answers = self.answer(question[some], direction[some], distance[some])
            for kind, entries in enumerate((self.question[question[some]], answers)):
                found[:, some, kind] = relative_distances(asked, entries).transpose(0, 1)
        return found

    def from_reference(self, question: Tensor, asked: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
        """`[...]` float64: distance between the cached answer of an exchange and the reference of `question` (eq. 2).

        Args:
            question: `[...]` int64.
            asked, direction, distance: `[...]`, the exchange's own question, direction and distance.
        """
        apart = self.reference[question].sub_(self.answer(asked, direction, distance))
        return apart.square_().sum(-1).double().sqrt()
