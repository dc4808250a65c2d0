"""Hand-written questions in a YAML file, embedded by MiniLM: the packaged corpus, or a user's of the same layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from envs.errors import InputError
from envs.tables import read_table
from envs.velo.corpus import NEW, SIMILAR, TRAIN, Corpus, CorpusConfig, token_count, unit_vectors, zipf_popularity
from envs.velo.embedding import embedded

PACKAGED = Path(__file__).parent / "data" / "questions.yaml"
ANSWER_LENGTHENING = 4.0  # an LLM says in a paragraph what the reference says in a sentence or two


class Topic(BaseModel):
    """What the questions of a topic share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    difficulty: float = Field(0.75, gt=0, le=2, description="median distance of a plain answer from the reference")


class Group(BaseModel):
    """Questions with the same meaning, and what a right answer to them says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    topic: str
    questions: dict[str, str] = Field(min_length=1, description="language to question, all for training")
    restated: str | None = Field(None, min_length=1, description="the same in other words: the test with similar requests")
    answer: str = Field(min_length=1)


class Questions(BaseModel):
    """The file: see the packaged one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    new_groups: int = Field(0, ge=0, description="so many of the last groups are the test with new requests")
    topics: dict[str, Topic]
    groups: tuple[Group, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Questions:
        if self.new_groups >= len(self.groups):
            raise ValueError(f"new_groups = {self.new_groups}, expected less than the {len(self.groups)} groups")
        for number, group in enumerate(self.groups):
            if group.topic not in self.topics:
                raise ValueError(f"topic {group.topic!r} of group {number}, expected one of {', '.join(self.topics)}")
        return self


def text_corpus(config: CorpusConfig) -> Corpus:
    """The corpus in `config.path`, or the packaged one. Of a new group every question is a new request.

    Raises:
        InputError: The file cannot be read or has another layout, or its texts were never embedded and MiniLM is missing.
    """
    path = PACKAGED if config.path is None else Path(config.path)
    try:
        file = read_table(str(path), Questions)
    except ValueError as error:
        raise InputError(f"corpus {error}") from None
    kept = [
        (group, number >= len(file.groups) - file.new_groups)
        for number, group in enumerate(file.groups)
        if not config.languages or any(language in config.languages for language in group.questions)
    ]
    if not kept:
        raise InputError(f"corpus {path}: has no question in {', '.join(config.languages)}")
    rows = [row for number, (group, new) in enumerate(kept) for row in _rows(number, group, new, config.languages)]
    groups, splits, languages, texts = zip(*rows, strict=True)
    answers = [group.answer for group, _ in kept]
    vectors = embedded([*texts, *answers], path)
    group = torch.tensor(groups)
    topics = list(file.topics)
    rng = np.random.default_rng(config.seed)
    return Corpus(
        name=f"text {path.name}",
        question=unit_vectors(vectors[: len(texts)], str(path)),
        answer=unit_vectors(vectors[len(texts) :], str(path))[group],
        group=group,
        split=torch.tensor(splits),
        topic=torch.tensor([topics.index(group.topic) for group, _ in kept]),
        popularity=zipf_popularity(rng, len(kept), sum(not new for _, new in kept), config.zipf),
        difficulty=torch.tensor([file.topics[group.topic].difficulty for group, _ in kept]),
        answer_tokens=ANSWER_LENGTHENING * token_count(answers),
        prompt_tokens=token_count(texts),
        texts=texts,
        answers=tuple(answers[number] for number in groups),
        languages=languages,
    )


def _rows(number: int, group: Group, new: bool, languages: Sequence[str]) -> list[tuple[int, int, str, str]]:
    """Group, split, language and text of each question of a group; a restatement is in the first language."""
    rows = [(number, NEW if new else TRAIN, language, text) for language, text in group.questions.items()]
    if group.restated is not None:
        rows.append((number, NEW if new else SIMILAR, next(iter(group.questions)), group.restated))
    return [row for row in rows if not languages or row[2] in languages]
