"""The packaged questions, their shipped vectors, and files that are refused."""

from collections import Counter

import pytest
import torch
import yaml

from envs.errors import InputError
from envs.velo import embedding
from envs.velo.corpus import LANGUAGES, NEW, SIMILAR, TRAIN, CorpusConfig, corpus_from
from envs.velo.text_corpus import PACKAGED


@pytest.fixture(scope="module")
def corpus():
    return corpus_from(CorpusConfig(source="text"))


def test_what_is_packaged(corpus):
    groups = len(corpus.topic)
    assert groups >= 60
    assert len(corpus.topic.unique()) >= 8
    assert Counter(corpus.group[corpus.members(TRAIN)].tolist()) == dict.fromkeys(range(groups - 12), len(LANGUAGES))
    assert corpus.group[corpus.members(SIMILAR)].tolist() == list(range(groups - 12))
    assert set(corpus.group[corpus.members(NEW)].tolist()) == set(range(groups - 12, groups))
    assert len(set(corpus.texts)) == len(corpus.texts)
    assert len(set(corpus.answers)) == groups
    assert {corpus.languages[row] for row in corpus.members(SIMILAR)} == {"en"}


def test_the_shipped_vectors_are_those_of_its_texts(monkeypatch):
    """After a change of the YAML: delete the vectors and load the corpus once with the extra `text`."""

    def fail(texts):
        raise AssertionError(f"not shipped: {texts}")

    monkeypatch.setattr(embedding, "embed", fail)
    corpus = corpus_from(CorpusConfig(source="text", seed=1))
    assert corpus.width == 384
    shipped = embedding._read(PACKAGED.with_name(PACKAGED.name + ".minilm.safetensors"))
    assert len(shipped) == len({*corpus.texts, *corpus.answers})


def test_near_misses_lie_closer_than_restatements(corpus):
    """Soft and hard eggs: worded alike, answered differently."""
    texts = list(corpus.texts)
    soft = texts.index("How long do I boil an egg so that the yolk is soft?")
    hard = texts.index("How long do I boil an egg so that the yolk is hard?")
    restated = texts.index("What is the boiling time for a soft-boiled egg?")
    question, answer = corpus.question, corpus.answer
    assert (question[soft] - question[hard]).norm() < (question[soft] - question[restated]).norm()
    assert (answer[soft] - answer[hard]).norm() > 0.5


def test_one_language_has_one_question_of_a_group(corpus):
    spanish = corpus_from(CorpusConfig(source="text", languages=("es",)))
    assert set(spanish.languages) == {"es"}
    assert torch.equal(spanish.group[spanish.members(TRAIN)], torch.arange(len(spanish.topic) - 12))
    row = corpus.texts.index(spanish.texts[0])
    assert torch.equal(spanish.question[0], corpus.question[row])


def test_lengths_are_estimated_from_bytes(corpus):
    # 51 bytes are 13 tokens; the answer's 117 bytes are 30, and a model writes four times as much.
    assert corpus.texts[0] == "How long do I boil an egg so that the yolk is soft?"
    assert corpus.prompt_tokens[0] == 13
    assert len(corpus.answers[0].encode()) == 117
    assert corpus.answer_tokens[0] == 4 * 30


def test_popularity_is_drawn_by_the_seed():
    popularity = [corpus_from(CorpusConfig(source="text", seed=seed)).popularity for seed in (0, 1)]
    assert torch.equal(popularity[0].sort().values, popularity[1].sort().values)
    assert not torch.equal(*popularity)


GROUP = {"topic": "a", "questions": {"en": "Why?"}, "answer": "So."}
FILE = {"topics": {"a": {}}, "groups": [GROUP, GROUP], "new_groups": 1}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        ("", "expected the keys new_groups, topics, groups, got NoneType"),
        ("- [", "is not YAML"),
        ({**FILE, "extra": 1}, "unknown key extra"),
        ({**FILE, "groups": []}, "groups"),
        ({**FILE, "new_groups": 2}, "new_groups = 2, expected less than the 2 groups"),
        ({**FILE, "topics": {"b": {}}}, "topic 'a' of group 0, expected one of b"),
        ({**FILE, "groups": [{**GROUP, "questions": {}}]}, "groups.0.questions"),
        ({**FILE, "groups": [{**GROUP, "answer": 3}]}, "groups.0.answer"),
        ({**FILE, "groups": [{"topic": "a", "questions": {"en": "Why?"}}]}, "groups.0.answer is missing"),
    ],
)
def test_files_that_are_refused(tmp_path, content, complaint):
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(InputError, match=rf"^corpus {path}: .*{complaint}"):
        corpus_from(CorpusConfig(source="text", path=str(path)))


def test_a_language_that_does_not_occur():
    with pytest.raises(InputError, match="has no question in fr"):
        corpus_from(CorpusConfig(source="text", languages=("fr",)))
