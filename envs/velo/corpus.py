"""Questions with their reference answers as vectors: what requests and caches of the velo problem are made of.

Q  questions      G  groups of questions with the same meaning      H  width of a vector
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from envs.errors import InputError

TRAIN, SIMILAR, NEW = 0, 1, 2
"""Splits: questions of training; held-out restatements of their groups; groups without any question of training."""

LANGUAGES = ("en", "es", "de", "zh", "ru")
"""In which each question of training is put (paper, Sec. V-B)."""

UNIT_TOLERANCE = 1e-3
Share = Annotated[float, Field(ge=0, le=1)]


class CorpusConfig(BaseModel):
    """Where the questions come from. The fields of a source count for it alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["synthetic", "text", "oasst"] = "synthetic"
    seed: int = Field(0, ge=0, lt=2**63, description="of everything that is drawn to build it")
    zipf: float = Field(0.9, ge=0, le=5, description="exponent of the popularity of groups; 0: all alike")

    # synthetic
    questions: int = Field(3_000, ge=5, le=1_000_000, description="of training, one in each of the five languages per group")
    new_groups: int = Field(120, ge=1, le=100_000, description="with one question each, for the test with new requests")
    width: int = Field(384, ge=8, le=8_192, description="H")
    topics: int = Field(24, ge=1, le=1_000)
    near_miss_share: Share = Field(0.25, description="of the groups: the question is close to another's, the answer is not")

    # text, oasst
    path: str | None = Field(None, description="text: a YAML file, none for the packaged one; oasst: .jsonl or .jsonl.gz")
    languages: tuple[str, ...] = Field((), description="text, oasst: only questions in these, such as en; none: in all")
    restatements: str | None = Field(None, description="oasst: a .jsonl file with restatements of its questions")
    embeddings: str | None = Field(None, description="oasst: vectors (.safetensors, .npy) instead of embedding here")
    new_share: Share = Field(0.1, description="oasst: share of the trees that are new requests")

    @model_validator(mode="after")
    def _consistent(self) -> CorpusConfig:
        if self.questions % len(LANGUAGES):
            raise ValueError(f"questions = {self.questions}, expected a multiple of {len(LANGUAGES)}, one for each language")
        if self.source == "oasst" and self.path is None:
            raise ValueError("path is missing: expected a file for source = 'oasst'")
        return self


@dataclass(frozen=True, eq=False)
class Corpus:
    """Q questions in G groups: a question and its restatements share a group, and with it what a right answer says.

    Attributes:
        question: `[Q, H]` float32, unit length.
        answer: `[Q, H]` float32, unit length: the reference answer of each question.
        group: `[Q]` int64 in [0, G).
        split: `[Q]` int64: TRAIN, SIMILAR or NEW.
        topic: `[G]` int64, 0 where unknown.
        popularity: `[G]` float32, relative weights, above 0.
        difficulty: `[G]` float32, median distance of a plain answer of an LLM from the reference, before the LLM's factor.
        answer_tokens: `[G]` float32, mean length of an answer.
        prompt_tokens: `[Q]` float32.
        texts, answers, languages: Q each, where they are known.
        notes: What people should know of how it was read.

    Raises:
        InputError: The parts do not fit together, vectors have another length than 1, numbers are not finite, or there is no
            question of training.
    """

    name: str
    question: Tensor
    answer: Tensor
    group: Tensor
    split: Tensor
    topic: Tensor
    popularity: Tensor
    difficulty: Tensor
    answer_tokens: Tensor
    prompt_tokens: Tensor
    texts: tuple[str, ...] | None = None
    answers: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.question.dim() != 2 or self.question.shape != self.answer.shape:
            raise InputError(
                f"corpus {self.name!r}: question vectors are {list(self.question.shape)} and answer vectors "
                f"{list(self.answer.shape)}, expected the same number and width"
            )
        questions, groups = len(self.question), len(self.topic)
        for name, length in (("group", questions), ("split", questions), ("prompt_tokens", questions)):
            self._require(getattr(self, name).shape == (length,), f"{name} has another length than {length} questions")
        for name in ("popularity", "difficulty", "answer_tokens"):
            self._require(getattr(self, name).shape == (groups,), f"{name} has another length than {groups} groups")
        for name in ("question", "answer", "popularity", "difficulty", "answer_tokens", "prompt_tokens"):
            self._require(bool(torch.isfinite(getattr(self, name)).all()), f"{name} holds numbers that are not finite")
        for name in ("question", "answer"):
            length = getattr(self, name).norm(dim=1)
            self._require(bool((length - 1.0).abs().le(UNIT_TOLERANCE).all()), f"{name} vectors are not of length 1")
        self._require(bool((self.popularity > 0).all()), "popularity is not above 0 everywhere")
        self._require(bool((self.split == TRAIN).any()), "it has no question of training")
        self._require(int(self.group.min()) >= 0 and int(self.group.max()) < groups, f"group is not in [0, {groups})")

    def _require(self, condition: bool, complaint: str) -> None:
        if not condition:
            raise InputError(f"corpus {self.name!r}: {complaint}")

    @property
    def width(self) -> int:
        """H."""
        return self.question.shape[1]

    def members(self, split: int) -> Tensor:
        """Indices of the split's questions, `[…]` int64, ordered by group."""
        members = (self.split == split).nonzero()[:, 0]
        return members[self.group[members].argsort(stable=True)]


def unit_vectors(vectors: Tensor, where: str) -> Tensor:
    """`[n, H]` float32, each row divided by its length.

    Raises:
        InputError: A row holds a number that is not finite, or only zeros.
    """
    length = vectors.double().norm(dim=1, keepdim=True)
    broken = (~torch.isfinite(length) | (length == 0))[:, 0].nonzero()
    if len(broken):
        raise InputError(f"{where}: vector {int(broken[0, 0])} has no direction: expected finite numbers that are not all 0")
    return (vectors.double() / length).float()


def zipf_popularity(rng: np.random.Generator, groups: int, trained: int, exponent: float) -> Tensor:
    """`[groups]` float32: Zipf's law over the first `trained` groups in a random order; the others are all alike."""
    popularity = np.ones(groups)
    popularity[:trained] = (1.0 + rng.permutation(trained)) ** -exponent
    return torch.from_numpy(popularity).float()


def token_count(texts: Sequence[str]) -> Tensor:
    """`[n]` float32, estimated: a token is four bytes of UTF-8, thus 4 letters of English or 2 of Russian."""
    return torch.tensor([max(1.0, math.ceil(len(text.encode("utf-8", "replace")) / 4)) for text in texts])


@lru_cache(maxsize=8)
def corpus_from(config: CorpusConfig) -> Corpus:
    """The corpus that a config describes; the same object for the same config.

    Raises:
        InputError: A file cannot be read or does not hold what is expected.
    """
    from envs.velo.oasst import oasst_corpus
    from envs.velo.synthetic_corpus import synthetic_corpus
    from envs.velo.text_corpus import text_corpus

    make = {"synthetic": synthetic_corpus, "text": text_corpus, "oasst": oasst_corpus}
    return make[config.source](config)
