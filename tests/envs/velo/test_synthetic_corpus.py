"""The distances of the synthetic corpus are those of the paper's Fig. 6 and Table III."""

import pytest
import torch

from envs.errors import InputError
from envs.registry import make_scenario
from envs.velo.corpus import NEW, SIMILAR, TRAIN, Corpus, CorpusConfig, corpus_from, unit_vectors
from envs.velo.synthetic_corpus import synthetic_corpus


@pytest.fixture(scope="module")
def corpus():
    return corpus_from(CorpusConfig())


@pytest.fixture(scope="module")
def pairs(corpus):
    """Distances of the first 1,500 questions and of their answers, and which pairs share group and topic."""
    few, group = corpus.question[:1500].double(), corpus.group[:1500]
    topic = corpus.topic[group]
    apart = ~torch.eye(1500, dtype=torch.bool)
    same = (group[:, None] == group) & apart
    kin = (topic[:, None] == topic) & (group[:, None] != group)
    return torch.cdist(few, few), torch.cdist(corpus.answer[:1500].double(), corpus.answer[:1500].double()), same, kin


def test_sizes_and_splits(corpus):
    assert [int((corpus.split == split).sum()) for split in (TRAIN, SIMILAR, NEW)] == [3000, 600, 120]
    train, similar, new = (set(corpus.group[corpus.split == split].tolist()) for split in (TRAIN, SIMILAR, NEW))
    assert train == similar == set(range(600))
    assert new == set(range(600, 720))
    assert corpus.width == 384
    assert corpus.languages[:6] == ("en", "es", "de", "zh", "ru", "en")


def test_restatements_are_close_and_other_questions_are_not(pairs):
    distance, _, same, kin = pairs
    assert distance[same].mean() == pytest.approx(0.35, abs=0.03)
    assert distance[same].std() == pytest.approx(0.12, abs=0.03)
    assert distance[kin].median() == pytest.approx(0.85, abs=0.04)
    assert distance[~same & ~kin & (distance > 0.01)].median() == pytest.approx(1.2, abs=0.04)


def test_answers_lie_where_table_iii_has_them(corpus, pairs):
    own = (corpus.question - corpus.answer).norm(dim=1)
    assert own.mean() == pytest.approx(0.62, abs=0.04)
    _, answer, same, kin = pairs
    assert answer[same].max() < 0.2  # a right answer is right for all restatements
    assert answer[kin].min() > 0.8


def test_near_misses_are_near_with_another_answer_and_in_some_topics_only(corpus, pairs):
    distance, answer, _, kin = pairs
    near = kin & (distance < 0.5)
    one, other = near.nonzero(as_tuple=True)
    assert 0.03 < near.any(1).float().mean() < 0.25
    assert answer[one, other].mean() == pytest.approx(1.0, abs=0.1)
    tricky = corpus.topic[corpus.group[:1500][near.any(1)]].unique()
    assert len(tricky) == 8  # of 24


def test_difficulty_length_and_popularity(corpus):
    assert corpus.difficulty.mean() == pytest.approx(0.75, abs=0.03)
    assert corpus.answer_tokens.mean() == pytest.approx(150, abs=8)
    assert (corpus.answer_tokens.min().item(), corpus.answer_tokens.max().item()) == pytest.approx((60, 300))
    ranked = corpus.popularity[:600].sort(descending=True).values
    assert ranked[[0, 1, 9]].tolist() == pytest.approx([1, 2**-0.9, 10**-0.9])
    assert (corpus.popularity[600:] == 1).all()


def test_the_seed_decides():
    one, again, other = (synthetic_corpus(CorpusConfig(questions=50, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(one.question, again.question)
    assert torch.equal(one.answer, again.answer)
    assert not torch.equal(one.question, other.question)


def test_without_near_misses_no_answer_is_opposed():
    corpus = synthetic_corpus(CorpusConfig(questions=500, near_miss_share=0.0))
    distance = torch.cdist(corpus.question.double(), corpus.question.double())
    assert not ((distance < 0.55) & (corpus.group[:, None] != corpus.group)).any()


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"questions": 3001}, "questions = 3001, expected a multiple of 5"),
        ({"source": "oasst"}, "path is missing"),
        ({"topic": 3}, "unknown key 'corpus.topic'"),
    ],
)
def test_bad_values_are_refused(overrides, complaint):
    with pytest.raises(InputError, match=complaint):
        make_scenario("velo/n3", {"corpus": overrides})


def parts(**changes):
    two, one = torch.eye(2), torch.ones(1)
    whole = {"question": two, "answer": two, "group": torch.zeros(2).long(), "split": torch.zeros(2).long()}
    whole |= {"topic": torch.zeros(1).long(), "popularity": one, "difficulty": one, "answer_tokens": one}
    return {"name": "mine", **whole, "prompt_tokens": torch.ones(2), **changes}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"answer": torch.eye(3)}, "expected the same number and width"),
        ({"question": torch.eye(2) * 2}, "question vectors are not of length 1"),
        ({"answer": torch.full((2, 2), torch.nan)}, "answer holds numbers that are not finite"),
        ({"split": torch.ones(2).long()}, "it has no question of training"),
        ({"group": torch.ones(2).long()}, r"group is not in \[0, 1\)"),
        ({"popularity": torch.zeros(1)}, "popularity is not above 0"),
        ({"prompt_tokens": torch.ones(3)}, "prompt_tokens has another length than 2 questions"),
    ],
)
def test_a_corpus_whose_parts_do_not_fit_is_refused(changes, complaint):
    Corpus(**parts())
    with pytest.raises(InputError, match=f"corpus 'mine': .*{complaint}"):
        Corpus(**parts(**changes))


def test_vectors_without_direction_are_refused():
    assert unit_vectors(torch.tensor([[3.0, 4.0]]), "here").tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    with pytest.raises(InputError, match="here: vector 1 has no direction"):
        unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "here")
