"""Conversations of oasst1 in both layouts: what is taken from them, what is skipped, and what is refused."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from envs.errors import InputError
from envs.velo.corpus import NEW, SIMILAR, TRAIN, Corpus, CorpusConfig, corpus_from
from envs.velo.oasst import read_conversations

DATA = Path(__file__).parents[2] / "data" / "oasst"
LAYOUTS = ["trees.jsonl", "messages.jsonl"]


def vectors_for(path: Path, folder: Path, restatements: Path | None = None, languages=(), width: int = 8) -> Path:
    """A file of random vectors for the texts."""
    conversations = read_conversations(path, restatements, languages)
    draw = torch.Generator().manual_seed(0)
    texts = {"question": conversations.questions(), "answer": conversations.answers()}
    save_file(
        {name: torch.randn(len(part), width, generator=draw) for name, part in texts.items()}, folder / "vectors.safetensors"
    )
    return folder / "vectors.safetensors"


def load(path: Path, folder: Path, restatements: Path | None = None, **config) -> Corpus:
    embeddings = vectors_for(path, folder, restatements, config.get("languages", ()))
    given = None if restatements is None else str(restatements)
    return corpus_from(CorpusConfig(source="oasst", path=str(path), restatements=given, embeddings=str(embeddings), **config))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_best_reply_that_is_neither_deleted_nor_refused_is_the_answer(layout):
    conversations = read_conversations(DATA / layout)
    assert {each.question: each.answer for each in conversations.usable} == {
        "Why do cats purr?": (
            "Small muscles in the throat open and close the airway as the cat breathes, mostly when it is content."
        ),
        "¿Cuántas patas tiene una araña?": "Tiene ocho patas.",
        "Warum ist das Meer salzig?": (
            "Flüsse lösen Salze aus dem Gestein, und im Meer bleiben sie zurück, wenn Wasser verdunstet."
        ),
        "彩虹有几种颜色？": "七种：红、橙、黄、绿、蓝、靛、紫。",  # noqa: RUF001
        "How many legs has an insect?": "Six legs, in three pairs.",
        "Why does ice float?": "Water expands when it freezes, so ice is lighter than the water around it.",
    }
    assert conversations.notes == ("3 of 9 conversations skipped: deleted, spam or without an answer",)


def test_both_layouts_and_a_compressed_file_give_the_same(tmp_path):
    (tmp_path / "trees.jsonl.gz").write_bytes(gzip.compress((DATA / "trees.jsonl").read_bytes()))
    read = [read_conversations(path) for path in (*(DATA / layout for layout in LAYOUTS), tmp_path / "trees.jsonl.gz")]
    assert read[0] == read[1] == read[2]


def test_without_restatements_a_similar_request_is_the_question_again(tmp_path):
    corpus = load(DATA / "trees.jsonl", tmp_path, new_share=0.0)
    train, similar = corpus.members(TRAIN), corpus.members(SIMILAR)
    assert len(train) == len(similar) == 6
    assert torch.equal(corpus.question[train], corpus.question[similar])
    assert [corpus.texts[row] for row in train] == [corpus.texts[row] for row in similar]


def test_the_last_restatement_is_the_similar_request(tmp_path):
    corpus = load(DATA / "trees.jsonl", tmp_path, DATA / "restatements.jsonl", new_share=0.0)
    rows = [(corpus.texts[row], corpus.languages[row], int(corpus.split[row])) for row in (corpus.group == 0).nonzero()[:, 0]]
    assert rows == [
        ("Why do cats purr?", "en", TRAIN),
        ("¿Por qué ronronean los gatos?", "es", TRAIN),
        ("What makes a cat purr?", "en", SIMILAR),
    ]
    german = [corpus.texts[row] for row in (corpus.group == 2).nonzero()[:, 0]]
    assert german == ["Warum ist das Meer salzig?", "Woher kommt das Salz im Meer?"]
    assert corpus.languages[corpus.texts.index(german[1])] == "de"  # The question's, as the line names none.
    assert "1 restatements in restatements.jsonl skipped: they belong to no usable conversation" in corpus.notes


def test_questions_and_answers_have_the_vectors_of_their_texts(tmp_path):
    path, restatements = DATA / "trees.jsonl", DATA / "restatements.jsonl"
    corpus = load(path, tmp_path, restatements, new_share=0.5)
    conversations = read_conversations(path, restatements)
    draw = torch.Generator().manual_seed(0)
    question = dict(zip(conversations.questions(), torch.randn(9, 8, generator=draw), strict=True))
    answer = dict(zip(conversations.answers(), torch.randn(6, 8, generator=draw), strict=True))
    for row, (text, reply) in enumerate(zip(corpus.texts, corpus.answers, strict=True)):
        torch.testing.assert_close(corpus.question[row], question[text] / question[text].norm())
        torch.testing.assert_close(corpus.answer[row], answer[reply] / answer[reply].norm())


def test_a_share_of_the_conversations_is_new_by_the_seed(tmp_path):
    corpora = [load(DATA / "trees.jsonl", tmp_path, new_share=0.5, seed=seed) for seed in (0, 0, 1, 2, 3)]
    new = [set(corpus.group[corpus.members(NEW)].tolist()) for corpus in corpora]
    assert [len(groups) for groups in new] == [3] * 5
    assert new[0] == new[1]
    assert len({frozenset(groups) for groups in new}) > 1
    rest = set(corpora[0].group[corpora[0].split != NEW].tolist())
    assert rest | new[0] == set(range(6))
    assert not rest & new[0]


def test_languages_are_topics_and_can_be_chosen(tmp_path):
    corpus = load(DATA / "trees.jsonl", tmp_path)
    assert corpus.topic.tolist() == [1, 2, 0, 3, 1, 1]  # de, en, es, zh
    english = load(DATA / "trees.jsonl", tmp_path, languages=("en",))
    assert Counter(english.languages).keys() == {"en"}
    assert len(english.topic) == 3


def write(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "lines.jsonl"
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def good_lines(number: int) -> list[str]:
    question = {"text": "Why?", "role": "prompter", "lang": "en", "replies": [{"text": "So.", "role": "assistant", "rank": 0}]}
    return [json.dumps({"prompt": {**question, "message_id": f"q{i}"}}) for i in range(number)]


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "7",
        "[]",
        '{"x": 1}',
        '{"prompt": null}',
        '{"prompt": {"message_id": "a", "text": 3}}',
        '{"prompt": {"message_id": "a", "text": "Why?", "replies": [{"text": "So.", "rank": "first"}]}}',
        '{"prompt": {"message_id": "a", "text": "Why?", "labels": {"spam": 1}}}',
        '{"message_id": "a", "parent_id": "b", "text": "So."}',
        b"\xff\xfe",
        "[" * 100_000,
    ],
)
def test_broken_lines_are_counted_up_to_a_fifth(tmp_path, broken):
    conversations = read_conversations(write(tmp_path, *good_lines(3), broken, *good_lines(4)[3:]))
    assert len(conversations.usable) == 4
    assert conversations.notes == ("1 of 5 lines of lines.jsonl skipped, the first is line 4",)
    expected = "2 of 9 lines are not a message tree or a message of oasst1, the first is line 1"
    with pytest.raises(InputError, match=f"^corpus {tmp_path}/lines.jsonl: {expected}$"):
        read_conversations(write(tmp_path, broken, *good_lines(7), broken))


def test_broken_restatements_are_refused_alike(tmp_path):
    path = write(tmp_path, '{"text": "Why?"}', '{"message_id": "q1", "text": ""}')
    with pytest.raises(InputError, match='2 of 2 lines are not a restatement with "message_id" or "question", and "text"'):
        read_conversations(DATA / "trees.jsonl", path)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file(tmp_path, content):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"x.jsonl: the file is empty"):
        read_conversations(tmp_path / "x.jsonl")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none.jsonl: cannot be read: No such file"):
        read_conversations(tmp_path / "none.jsonl")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress((DATA / "trees.jsonl").read_bytes())[:500])
    with pytest.raises(InputError, match=r"x.jsonl.gz: cannot be read: Compressed file ended"):
        read_conversations(tmp_path / "x.jsonl.gz")
    (tmp_path / "y.jsonl.gz").write_bytes(b"plain text")
    with pytest.raises(InputError, match=r"y.jsonl.gz: cannot be read: Not a gzipped file"):
        read_conversations(tmp_path / "y.jsonl.gz")


def test_a_file_without_any_answer(tmp_path):
    path = write(tmp_path, '{"prompt": {"message_id": "a", "text": "Why?", "replies": []}}')
    with pytest.raises(InputError, match="none of its 1 conversations has a question and an answer"):
        read_conversations(path)


def test_a_language_that_does_not_occur():
    with pytest.raises(InputError, match="has no question in fr, it"):
        read_conversations(DATA / "trees.jsonl", languages=("fr", "it"))


def oasst(embeddings: Path) -> Corpus:
    config = CorpusConfig(
        source="oasst", path=str(DATA / "trees.jsonl"), embeddings=str(embeddings), seed=embeddings.stat().st_ino
    )
    return corpus_from(config)


def test_embeddings_in_a_numpy_file(tmp_path):
    rows = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    corpus = oasst(tmp_path / "x.npy")
    assert corpus.width == 5
    torch.testing.assert_close(corpus.question[0], torch.from_numpy(rows[0] / np.linalg.norm(rows[0])))
    torch.testing.assert_close(corpus.answer[0], torch.from_numpy(rows[6] / np.linalg.norm(rows[6])))


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"question": (6, 4), "answer": (6, 5)}, "question vectors have width 4 and answer vectors 5, expected one width"),
        ({"question": (5, 4), "answer": (6, 4)}, r"question vectors are \[5, 4\], expected \[6, width\] for trees.jsonl"),
        ({"question": (6, 4), "answer": (6,)}, r"answer vectors are \[6\], expected \[6, width\]"),
        ({"question": (6, 4)}, "tensor 'answer' is missing: expected 'question' and 'answer'"),
    ],
)
def test_embeddings_that_do_not_fit(tmp_path, tensors, complaint):
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=complaint):
        oasst(tmp_path / "x.safetensors")


def test_embeddings_without_direction(tmp_path):
    save_file({"question": torch.ones(6, 4), "answer": torch.zeros(6, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="vector 0 has no direction"):
        oasst(tmp_path / "x.safetensors")


def test_pickled_vectors_of_mixed_widths_are_never_loaded(tmp_path):
    mixed = np.array([np.ones(3), np.ones(4)], dtype=object)
    np.save(tmp_path / "x.npy", mixed, allow_pickle=True)
    with pytest.raises(InputError, match=r"cannot be read as .safetensors or .npy: Object arrays cannot be loaded"):
        oasst(tmp_path / "x.npy")


def test_embeddings_that_are_none(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"cannot be read as .safetensors or .npy"):
        oasst(tmp_path / "x.safetensors")
