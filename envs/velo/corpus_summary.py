"""What a corpus holds, for people.

    python -m envs.velo.corpus_summary velo/text
    python -m envs.velo.corpus_summary velo/n3 source=oasst path=trees.jsonl.gz languages=[en]

Distances are the paper's (eq. 1); its Fig. 6 and Table III give what they are in its data.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

from envs.errors import InputError
from envs.registry import make_scenario
from envs.velo.corpus import NEW, SIMILAR, TRAIN, Corpus, corpus_from

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
THRESHOLDS = (0.1, 0.3, 0.45, 0.6, 0.8, 1.0)
SAMPLE = 1_000  # questions of each kind that are compared with all those of training
SPLITS = {TRAIN: "train", SIMILAR: "similar", NEW: "new"}


@dataclass(frozen=True)
class Neighbours:
    """Of a sample of questions, how far the questions of training are: `[n]` each, inf where there is none.

    Attributes:
        right: To the nearest other question of the same group.
        wrong: To the nearest question of another group.
        wrong_answer: From what that one's right answer says to what the question's own right answer says.
    """

    right: Tensor
    wrong: Tensor
    wrong_answer: Tensor

    def at_threshold(self, threshold: float) -> tuple[float, float]:
        """With all of training in a store: the share of the questions with a hit, and of these hits those in a wrong group."""
        hit = torch.minimum(self.right, self.wrong) <= threshold
        wrong = hit & (self.wrong < self.right)
        return float(hit.float().mean()), float(wrong.sum() / hit.sum().clamp(min=1))


def distance_samples(corpus: Corpus) -> dict[str, Tensor]:
    """Distances between pairs of questions of training, by how they belong together, and of questions to their answers."""
    train = corpus.members(TRAIN)
    chosen = _sample(train)
    distance = torch.cdist(corpus.question[chosen], corpus.question[train])
    group, other = corpus.group[chosen, None], corpus.group[None, train]
    same_group, same_topic = group == other, corpus.topic[group] == corpus.topic[other]
    itself = chosen[:, None] == train[None]
    return {
        "questions of one group": distance[same_group & ~itself],
        "questions of one topic, different groups": distance[same_topic & ~same_group],
        "questions of different topics": distance[~same_topic],
        "question and its own right answer": (corpus.question[chosen] - corpus.answer[chosen]).norm(dim=1),
    }


def neighbours(corpus: Corpus, split: int) -> Neighbours:
    """What a store that holds all of training has near the questions of a split."""
    train, chosen = corpus.members(TRAIN), _sample(corpus.members(split))
    distance = torch.cdist(corpus.question[chosen], corpus.question[train])
    distance[chosen[:, None] == train[None]] = torch.inf
    same_group = corpus.group[chosen, None] == corpus.group[None, train]
    wrong, place = distance.masked_fill(same_group, torch.inf).min(dim=1)
    return Neighbours(
        right=distance.masked_fill(~same_group, torch.inf).min(dim=1).values,
        wrong=wrong,
        wrong_answer=(corpus.answer[train[place]] - corpus.answer[chosen]).norm(dim=1),
    )


def tables(corpus: Corpus) -> list[Table]:
    """The summary as tables to print."""
    return [_contents(corpus), _distances(corpus), _thresholds(corpus)]


def _contents(corpus: Corpus) -> Table:
    table = Table("", "", title=f"corpus {corpus.name}", show_header=False)
    table.add_row(
        "questions, groups, topics", f"{len(corpus.question):,}, {len(corpus.topic):,}, {len(corpus.topic.unique()):,}"
    )
    table.add_row("width of a vector", f"{corpus.width:,}")
    counts = Counter(corpus.split.tolist())
    table.add_row("questions by split", ", ".join(f"{name} {counts[split]:,}" for split, name in SPLITS.items()))
    if corpus.languages is not None:
        languages = Counter(corpus.languages).most_common()
        table.add_row("questions by language", ", ".join(f"{code or 'unknown'} {count:,}" for code, count in languages))
    for name, values in {
        "tokens of a prompt": corpus.prompt_tokens,
        "tokens of an answer": corpus.answer_tokens,
        "distance of a plain answer": corpus.difficulty,
    }.items():
        low, median, high = _quantiles(values, (0.05, 0.5, 0.95))
        table.add_row(f"{name}: 5 %, median, 95 %", f"{low:.3g}, {median:.3g}, {high:.3g}")
    for note in corpus.notes:
        table.add_row("note", note)
    return table


def _distances(corpus: Corpus) -> Table:
    table = Table("L2 distance", *(f"{quantile:.0%}" for quantile in QUANTILES), title="distances")
    rows = list(distance_samples(corpus).items())
    for split, name in SPLITS.items():
        if (corpus.split == split).any():
            near = neighbours(corpus, split)
            rows += [
                (f"{name} question and the nearest of its group in training", near.right[near.right.isfinite()]),
                (f"{name} question and the nearest wrong one in training", near.wrong[near.wrong.isfinite()]),
                ("  right answers of these two", near.wrong_answer),
            ]
    for name, values in rows:
        if len(values):
            table.add_row(name, *(f"{value:.2f}" for value in _quantiles(values, QUANTILES)))
    return table


def _thresholds(corpus: Corpus) -> Table:
    """Why a single threshold does not do: hits and wrong hits, with the whole of training in the store."""
    splits = {split: name for split, name in SPLITS.items() if (corpus.split == split).any()}
    columns = [f"{name}: {what}" for name in splits.values() for what in ("hits", "of these wrong")]
    table = Table("threshold", *columns, title="nearest question within a threshold, all of training stored")
    near = [neighbours(corpus, split) for split in splits]
    for threshold in THRESHOLDS:
        shares = [share for each in near for share in each.at_threshold(threshold)]
        table.add_row(f"{threshold:g}", *(f"{share:.1%}" for share in shares))
    return table


def _sample(members: Tensor) -> Tensor:
    """At most SAMPLE of them, spread evenly."""
    return members[torch.linspace(0, len(members) - 1, min(len(members), SAMPLE)).round().long()]


def _quantiles(values: Tensor, quantiles: Sequence[float]) -> list[float]:
    """Without interpolation, and of any number of values."""
    ordered = values.flatten().sort().values
    return [float(ordered[round(quantile * (len(ordered) - 1))]) for quantile in quantiles]


def main(arguments: Sequence[str]) -> int:
    """Prints the summary of the corpus of a scenario; the other arguments, KEY=VALUE, replace fields of its corpus."""
    try:
        if not arguments or not all("=" in argument for argument in arguments[1:]):
            raise InputError(
                "usage: python -m envs.velo.corpus_summary SCENARIO [KEY=VALUE …], for instance velo/text zipf=1.1"
            )
        changes = {key: yaml.safe_load(value) for key, _, value in (argument.partition("=") for argument in arguments[1:])}
        given = make_scenario(arguments[0]).model_dump().get("corpus")
        if given is None:
            raise InputError(f"scenario {arguments[0]!r} has no corpus: expected one of velo/…")
        scenario = make_scenario(arguments[0], {"corpus": {**given, **changes}})
        corpus = corpus_from(scenario.corpus)  # type: ignore[attr-defined]
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for table in tables(corpus):
        Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
