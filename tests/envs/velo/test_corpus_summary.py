"""The summary of a corpus: by hand on a circle, and as a command."""

import math

import pytest
import torch

from envs.velo.corpus import NEW, SIMILAR, TRAIN, Corpus
from envs.velo.corpus_summary import distance_samples, main, neighbours


def on_circle(*degrees: float) -> torch.Tensor:
    return torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in degrees])


def chord(degrees: float) -> float:
    return 2 * math.sin(math.radians(degrees) / 2)


@pytest.fixture
def corpus() -> Corpus:
    """Groups 0 and 1 belong to topic 0, 2 to topic 1, and 3 is new."""
    return Corpus(
        name="circle",
        question=on_circle(0, 10, 40, 180, 6, 38, 200),
        answer=on_circle(90, 90, 150, 270, 90, 90, 300),
        group=torch.tensor([0, 0, 1, 2, 0, 0, 3]),
        split=torch.tensor([TRAIN, TRAIN, TRAIN, TRAIN, SIMILAR, SIMILAR, NEW]),
        topic=torch.tensor([0, 0, 1, 1]),
        popularity=torch.ones(4),
        difficulty=torch.full((4,), 0.7),
        answer_tokens=torch.full((4,), 100.0),
        prompt_tokens=torch.full((7,), 10.0),
    )


def test_distances_by_how_questions_belong_together(corpus):
    samples = {name: sorted(values.tolist()) for name, values in distance_samples(corpus).items()}
    assert samples == {
        "questions of one group": pytest.approx([chord(10)] * 2, abs=1e-6),
        "questions of one topic, different groups": pytest.approx([chord(30)] * 2 + [chord(40)] * 2, abs=1e-6),
        "questions of different topics": pytest.approx([chord(140)] * 2 + [chord(170)] * 2 + [chord(180)] * 2, abs=1e-6),
        "question and its own right answer": pytest.approx([chord(80), chord(90), chord(90), chord(110)], abs=1e-6),
    }


def test_the_nearest_right_and_wrong_neighbours(corpus):
    near = neighbours(corpus, SIMILAR)  # At 6 and 38 degrees, of group 0.
    assert near.right.tolist() == pytest.approx([chord(4), chord(28)], abs=1e-6)
    assert near.wrong.tolist() == pytest.approx([chord(34), chord(2)], abs=1e-6)
    assert near.wrong_answer.tolist() == pytest.approx([chord(60)] * 2, abs=1e-6)
    # Within 3 degrees only the second hits, and wrongly; within 5 both hit.
    assert near.at_threshold(chord(3)) == (0.5, 1.0)
    assert near.at_threshold(chord(5)) == (1.0, 0.5)
    assert near.at_threshold(chord(1)) == (0.0, 0.0)


def test_a_new_question_has_no_right_neighbour(corpus):
    near = neighbours(corpus, NEW)
    assert near.right.tolist() == [math.inf]
    assert near.wrong.tolist() == pytest.approx([chord(20)], abs=1e-6)


def test_a_question_of_training_is_not_its_own_neighbour(corpus):
    near = neighbours(corpus, TRAIN)
    assert near.right.tolist() == pytest.approx([chord(10), chord(10), math.inf, math.inf], abs=1e-6)


def test_the_command(capsys):
    assert main(["velo/text", "languages=[en]"]) == 0
    printed = capsys.readouterr().out
    assert "134, 67, 8" in printed
    assert "train 55, similar 55, new 24" in printed


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "usage: python -m envs.velo.corpus_summary SCENARIO"),
        (["velo/text", "zipf"], "usage"),
        (["velo/text", "zipf=many"], "corpus.zipf = 'many'"),
        (["velo/text", "path=none.yaml"], "corpus none.yaml: cannot be read: No such file"),
        (["velo/none"], "unknown scenario 'velo/none'"),
        (["dag/t5"], "scenario 'dag/t5' has no corpus"),
    ],
)
def test_what_the_command_refuses(capsys, arguments, complaint):
    assert main(arguments) == 2
    assert complaint in capsys.readouterr().err
