"""A corpus without texts: questions and answers drawn on a sphere with the distances of real ones.

Questions of one topic share a direction, restatements of one question most of theirs. Distances follow Fig. 6 and Table III of
the paper: restatements 0.35 +- 0.12, questions of one topic about 0.85, of different topics about 1.2, a question and its own
answer 0.54 to 0.68. A cosine `c` of unit vectors is a distance `sqrt(2 - 2 c)`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from envs.velo.corpus import LANGUAGES, NEW, SIMILAR, TRAIN, Corpus, CorpusConfig, unit_vectors, zipf_popularity

Vectors = NDArray[np.float64]

CROSS_TOPIC = 0.30  # cosine of questions, before they are restated, of different topics
WITHIN_TOPIC = 0.68  # of one topic
SPREAD = (0.30, 0.56)  # distance between restatements, by topic
TRICKY_SPREAD = (0.20, 0.30)  # in topics with near misses, whose questions are worded much alike
SPREAD_DEVIATION = 0.25  # of the logarithm, by restatement
ANSWER_DISTANCE = (0.54, 0.68)  # of a question to its own answer, by topic
ANSWER_SPREAD = 0.15  # distance between the answers to restatements of one question
NEAR_MISS_DISTANCE = (0.30, 0.50)  # between questions of twins
NEAR_MISS_OPPOSITION = -0.6  # cosine between what is their own in the answers of twins: these lie at about 1
TRICKY_SHARE = 0.75  # of a tricky topic's groups that have a twin
DIFFICULTY = (0.45, 1.05)  # median distance of a plain answer from its reference, by topic
DIFFICULTY_DEVIATION = 0.1  # of the logarithm, by group
ANSWER_TOKENS = (60.0, 300.0)  # by topic, evenly in the logarithm: 150 on average
PROMPT_TOKENS = (30.0, 0.5)  # median and deviation of the logarithm


def synthetic_corpus(config: CorpusConfig) -> Corpus:
    """The corpus that belongs to `config.seed`; the same config gives the same numbers."""
    rng = np.random.default_rng(config.seed)
    trained = config.questions // len(LANGUAGES)
    groups = trained + config.new_groups
    topic = rng.permutation(np.arange(groups) % config.topics)
    tricky = np.arange(config.topics) < round(config.topics * min(1.0, config.near_miss_share / TRICKY_SHARE))
    spread = np.where(tricky, rng.uniform(*TRICKY_SPREAD, config.topics), rng.uniform(*SPREAD, config.topics))

    centre, own = _centres(rng, topic, config), _directions(rng, groups, config.width)
    for one, other in _twins(rng, topic, tricky, config):
        distance = rng.uniform(*NEAR_MISS_DISTANCE)
        noise = spread[topic[one]] ** 2 / 2
        cosine = min(1.0, (1 - distance**2 / 2) / (1 - noise))
        centre[other] = _towards(centre[one], centre[other], cosine)
        own[other] = _towards(own[one], own[other], NEAR_MISS_OPPOSITION)
    answer_distance = rng.uniform(*ANSWER_DISTANCE, config.topics)
    cosine = (1 - answer_distance**2 / 2) / np.sqrt(1 - spread**2 / 2)
    reference = _towards(centre, own, cosine[topic, None])

    split = np.repeat([TRAIN, SIMILAR, NEW], [config.questions, trained, config.new_groups])
    group = np.concatenate([np.repeat(np.arange(trained), len(LANGUAGES)), np.arange(groups)])
    each = spread[topic[group]] * rng.lognormal(0.0, SPREAD_DEVIATION, len(group))
    question = _towards(centre[group], _directions(rng, len(group), config.width), np.sqrt(1 - each[:, None] ** 2 / 2))
    answer = _towards(reference[group], _directions(rng, len(group), config.width), 1 - ANSWER_SPREAD**2 / 4)

    median = rng.permutation(np.linspace(*DIFFICULTY, config.topics))
    tokens = rng.permutation(np.geomspace(*ANSWER_TOKENS, config.topics))
    languages = LANGUAGES * trained + LANGUAGES[:1] * (trained + config.new_groups)
    return Corpus(
        name="synthetic",
        question=unit_vectors(torch.from_numpy(question), "synthetic questions"),
        answer=unit_vectors(torch.from_numpy(answer), "synthetic answers"),
        group=torch.from_numpy(group),
        split=torch.from_numpy(split),
        topic=torch.from_numpy(topic),
        popularity=zipf_popularity(rng, groups, trained, config.zipf),
        difficulty=_float(median[topic] * rng.lognormal(0.0, DIFFICULTY_DEVIATION, groups)),
        answer_tokens=_float(tokens[topic]),
        prompt_tokens=_float(np.ceil(PROMPT_TOKENS[0] * rng.lognormal(0.0, PROMPT_TOKENS[1], len(group)))),
        languages=languages,
    )


def _centres(rng: np.random.Generator, topic: NDArray[np.int64], config: CorpusConfig) -> Vectors:
    """`[G, H]`: what the restatements of each question have in common."""
    common = _directions(rng, 1, config.width)
    topics = _directions(rng, config.topics, config.width)
    own = _directions(rng, len(topic), config.width)
    parts = np.sqrt([CROSS_TOPIC, WITHIN_TOPIC - CROSS_TOPIC, 1 - WITHIN_TOPIC])
    return _unit(parts[0] * common + parts[1] * topics[topic] + parts[2] * own)


def _twins(
    rng: np.random.Generator, topic: NDArray[np.int64], tricky: NDArray[np.bool_], config: CorpusConfig
) -> list[tuple[int, int]]:
    """Disjoint pairs of groups of one tricky topic each, as many as the share asks for."""
    pairs: list[tuple[int, int]] = []
    for kind in np.flatnonzero(tricky):
        members = rng.permutation(np.flatnonzero(topic == kind))
        pairs.extend((int(one), int(other)) for one, other in zip(members[::2], members[1::2], strict=False))
    wanted = round(config.near_miss_share * len(topic) / 2)
    return [pairs[i] for i in rng.permutation(len(pairs))[:wanted]]


def _directions(rng: np.random.Generator, count: int, width: int) -> Vectors:
    """`[count, width]` unit vectors, uniform on the sphere."""
    return _unit(rng.normal(size=(count, width)))


def _towards(vectors: Vectors, others: Vectors, cosine: float | Vectors) -> Vectors:
    """Unit vectors at this cosine to `vectors`, turned towards `others`, `[..., H]`."""
    apart = _unit(others - (others * vectors).sum(-1, keepdims=True) * vectors)
    return cosine * vectors + np.sqrt(1 - np.square(cosine)) * apart


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _float(values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values).float()
