"""The public `oasst1` conversations from a local file, as message trees or as flat messages, one JSON object per line."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from envs.errors import InputError
from envs.velo.corpus import NEW, SIMILAR, TRAIN, Corpus, CorpusConfig, token_count, unit_vectors, zipf_popularity
from envs.velo.embedding import embedded

Message = dict[str, Any]

MAX_BROKEN_SHARE = 0.2
SPAM = 0.5  # mean of the reviewers' spam labels from which on a message counts as spam
DIFFICULTY = (0.75, 0.2)  # median (Tables III, V and VI) and deviation of the logarithm: the data says nothing of it


@dataclass
class _Conversation:
    """Its first question, the best reply to that so far, and the question's restatements."""

    question: str = ""
    language: str = ""
    answer: str = ""
    rank: float = math.inf
    restatements: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, message: Message) -> None:
        if _usable(message):
            self.question, self.language = message["text"], str(message.get("lang", ""))

    def consider_reply(self, message: Message) -> None:
        """Keeps the reply of lowest rank; where none has a rank, the first."""
        rank = math.inf if message.get("rank") is None else float(message["rank"])
        if _usable(message) and (not self.answer or rank < self.rank):
            self.answer, self.rank = message["text"], rank

    def texts(self) -> list[tuple[str, str]]:
        """Language and text of the question and of its restatements."""
        return [(self.language, self.question), *self.restatements]


@dataclass(frozen=True)
class Conversations:
    """What a file of conversations holds that can be used.

    Attributes:
        usable: Those that have a question and an answer, in the order of the file.
        notes: What was left out.
    """

    usable: tuple[_Conversation, ...]
    notes: tuple[str, ...]

    def questions(self) -> list[str]:
        """Each question, followed by its restatements: the texts of the rows of `question` in a file of embeddings."""
        return [text for conversation in self.usable for _, text in conversation.texts()]

    def answers(self) -> list[str]:
        """The best answer to each question: the texts of the rows of `answer` in a file of embeddings."""
        return [conversation.answer for conversation in self.usable]


def oasst_corpus(config: CorpusConfig) -> Corpus:
    """The conversations in `config.path`: a group for each, with its language as its topic.

    The last restatement of a question is the test with similar requests; where there is none, that repeats the question. A
    share `new_share` of the conversations, drawn by `seed`, is the test with new requests, by the question itself.

    Raises:
        InputError: A file cannot be read or is empty, over 20 % of its lines are broken, no conversation is usable, or the
            embeddings do not fit the texts.
    """
    assert config.path is not None
    path = Path(config.path)
    restatements = None if config.restatements is None else Path(config.restatements)
    conversations = read_conversations(path, restatements, config.languages)
    questions, answers = _vectors(config, path, conversations)
    groups = len(conversations.usable)
    rng = np.random.default_rng(config.seed)
    new = rng.permutation(groups) < round(config.new_share * groups)
    popularity = zipf_popularity(rng, groups, groups, config.zipf)
    popularity[torch.from_numpy(new)] = 1.0  # New requests are all alike.
    rows, group, split = _rows(conversations.usable, new)
    texts = conversations.questions()
    languages = [language for conversation in conversations.usable for language, _ in conversation.texts()]
    codes = sorted({conversation.language for conversation in conversations.usable})
    return Corpus(
        name=f"oasst {path.name}",
        question=questions[rows],
        answer=answers[group],
        group=group,
        split=split,
        topic=torch.tensor([codes.index(conversation.language) for conversation in conversations.usable]),
        popularity=popularity,
        difficulty=torch.from_numpy(DIFFICULTY[0] * rng.lognormal(0.0, DIFFICULTY[1], groups)).float(),
        answer_tokens=token_count(conversations.answers()),
        prompt_tokens=token_count(texts)[rows],
        texts=tuple(texts[row] for row in rows.tolist()),
        answers=tuple(conversations.usable[number].answer for number in group.tolist()),
        languages=tuple(languages[row] for row in rows.tolist()),
        notes=conversations.notes,
    )


def read_conversations(path: Path, restatements: Path | None = None, languages: Sequence[str] = ()) -> Conversations:
    """The usable conversations of a file in some languages (none given: in all), read line by line, without spam.

    To embed the texts by a model of your own and keep the vectors for `CorpusConfig.embeddings`:

        conversations = read_conversations(Path("trees.jsonl.gz"))
        vectors = {"question": model(conversations.questions()), "answer": model(conversations.answers())}
        safetensors.torch.save_file(vectors, "vectors.safetensors")

    Raises:
        InputError: See `oasst_corpus`.
    """
    found: dict[str, _Conversation] = {}
    notes = _read_lines(path, lambda line: _accept(line, found), "a message tree or a message of oasst1")
    usable = {identity: each for identity, each in found.items() if each.question and each.answer}
    if not usable:
        raise InputError(f"corpus {path}: none of its {len(found):,} conversations has a question and an answer")
    if len(usable) < len(found):
        notes.append(
            f"{len(found) - len(usable):,} of {len(found):,} conversations skipped: deleted, spam or without an answer"
        )
    if languages:
        usable = {identity: each for identity, each in usable.items() if each.language in languages}
    if not usable:
        raise InputError(f"corpus {path}: has no question in {', '.join(languages)}")
    if restatements is not None:
        notes += _read_restatements(restatements, usable)
    return Conversations(tuple(usable.values()), tuple(notes))


def _accept(line: Message, found: dict[str, _Conversation]) -> None:
    """Adds what a line says, a tree or a message, to the conversations found so far."""
    if "prompt" in line:
        conversation = _Conversation()
        conversation.ask(line["prompt"])
        for reply in line["prompt"].get("replies") or []:
            conversation.consider_reply(reply)
        found[str(line["prompt"]["message_id"])] = conversation
    elif line.get("parent_id") is None:
        found.setdefault(str(line["message_id"]), _Conversation()).ask(line)
    elif line["parent_id"] == line["message_tree_id"]:
        found.setdefault(str(line["parent_id"]), _Conversation()).consider_reply(line)


def _usable(message: Message) -> bool:
    """Whether a message is there, was not refused by reviewers, and is no spam.

    Raises:
        ValueError: It has no text.
    """
    if not isinstance(message["text"], str):
        raise ValueError("text is no string")
    refused = bool(message.get("deleted")) or message.get("review_result") is False
    return not refused and _spam_label(message.get("labels") or {}) < SPAM and bool(message["text"].strip())


def _spam_label(labels: dict[str, Any]) -> float:
    """In the published files labels are `{"spam": {"value": …}}`; in the data set's tables, columns `name` and `value`."""
    if isinstance(labels.get("name"), list):
        return float(dict(zip(labels["name"], labels["value"], strict=True)).get("spam", 0.0))
    return float(labels.get("spam", {}).get("value", 0.0))


def _read_restatements(path: Path, conversations: dict[str, _Conversation]) -> list[str]:
    """Adds restatements, `{"message_id" or "question": …, "text": …, "lang": …}` each, to their conversations."""
    by_question = {conversation.question: conversation for conversation in conversations.values()}
    unknown = 0

    def accept(line: Message) -> None:
        nonlocal unknown
        text, language = line["text"], str(line.get("lang", ""))
        if not isinstance(text, str) or not text.strip():
            raise ValueError("no text")
        named = "message_id" in line
        conversation = conversations.get(line["message_id"]) if named else by_question.get(line["question"])
        if conversation is None:
            unknown += 1
        else:
            conversation.restatements.append((language or conversation.language, text))

    notes = _read_lines(path, accept, 'a restatement with "message_id" or "question", and "text"')
    if unknown:
        notes.append(f"{unknown:,} restatements in {path.name} skipped: they belong to no usable conversation")
    return notes


def _read_lines(path: Path, accept: Callable[[Message], None], expected: str) -> list[str]:
    """Hands the JSON object in each line of a file, plain or compressed, to `accept`. Returns a note on those that are none.

    Raises:
        InputError: The file cannot be read or is empty, or over 20 % of its lines are broken.
    """
    lines = broken = first_broken = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                lines += 1
                try:
                    accept(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    broken += 1
                    first_broken = first_broken or number
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"corpus {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not lines:
        raise InputError(f"corpus {path}: the file is empty")
    if broken > MAX_BROKEN_SHARE * lines:
        raise InputError(f"corpus {path}: {broken:,} of {lines:,} lines are not {expected}, the first is line {first_broken}")
    return [f"{broken:,} of {lines:,} lines of {path.name} skipped, the first is line {first_broken}"] if broken else []


def _vectors(config: CorpusConfig, path: Path, conversations: Conversations) -> tuple[Tensor, Tensor]:
    """Unit vectors of the questions with their restatements, and of the answers, each in the order of the texts."""
    texts, answers = conversations.questions(), conversations.answers()
    if config.embeddings is None:
        vectors = embedded([*texts, *answers], path)
        return unit_vectors(vectors[: len(texts)], str(path)), unit_vectors(vectors[len(texts) :], str(path))
    file = Path(config.embeddings)
    question, answer = _read_embeddings(file, len(texts))
    for name, part, rows in (("question", question, len(texts)), ("answer", answer, len(answers))):
        if part.dim() != 2 or len(part) != rows:
            raise InputError(
                f"embeddings {file}: {name} vectors are {list(part.shape)}, expected [{rows}, width] for {path.name}"
            )
    if question.shape[1] != answer.shape[1]:
        raise InputError(
            f"embeddings {file}: question vectors have width {question.shape[1]} and answer vectors {answer.shape[1]}, "
            "expected one width"
        )
    return unit_vectors(question, f"embeddings {file}: question"), unit_vectors(answer, f"embeddings {file}: answer")


def _read_embeddings(file: Path, questions: int) -> tuple[Tensor, Tensor]:
    """Tensors `question` and `answer` of a safetensors file, or the rows of a .npy file: questions first, then answers."""
    try:
        if file.suffix == ".npy":
            rows = torch.from_numpy(np.load(file, allow_pickle=False))
            return rows[:questions], rows[questions:]
        tensors = load_file(file)
        return tensors["question"], tensors["answer"]
    except KeyError as error:
        raise InputError(f"embeddings {file}: tensor {error} is missing: expected 'question' and 'answer'") from None
    except (OSError, SafetensorError, ValueError, TypeError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"embeddings {file}: cannot be read as .safetensors or .npy: {reason}") from None


def _rows(conversations: Sequence[_Conversation], new: NDArray[np.bool_]) -> tuple[Tensor, Tensor, Tensor]:
    """For each question of the corpus its place among all texts, its group and its split."""
    entries: list[tuple[int, int, int]] = []
    first = 0
    for number, conversation in enumerate(conversations):
        last = first + len(conversation.restatements)
        if new[number]:
            entries.append((first, number, NEW))
        else:
            trained = range(first, max(last, first + 1))
            entries += [*((row, number, TRAIN) for row in trained), (last, number, SIMILAR)]
        first = last + 1
    rows, group, split = torch.tensor(entries).T
    return rows, group, split
