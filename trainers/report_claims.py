"""What a paper claims, and whether the runs of a report show it.

A claim is tested pair by pair: the difference of the two algorithms' means, paired by episode, bootstrapped over training runs
and episodes (`trainers.statistics.paired_difference`). Its 95 % interval excludes 0 on the claimed side: reproduced; on the
other side: contradicted; else: not reproduced. No correction for the number of pairs is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field

from envs.errors import InputError
from envs.registry import parse
from trainers.comparison import Comparison
from trainers.statistics import Interval, paired_difference, probability_of_improvement

CLAIMS = Path(__file__).parent / "claims"
MIN_RUNS = 5
"""Training runs of a learner below which no verdict is given: a bootstrap over fewer is too narrow."""

FIRM_RUNS = 10
"""Training runs from which on a verdict is not called provisional."""

Verdict = Literal[
    "reproduced", "not reproduced", "contradicted", "not enough runs", "not defined", "not in these runs", "not tested"
]


class Strict(BaseModel):
    """Refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Claim(Strict):
    """One sentence of the paper, and the comparisons that it implies. Without `better` it is shown and not tested."""

    says: str
    numbers: str = Field("", description="the paper's, where its text gives them")
    better: str | None = Field(None, description="label of a policy")
    than: list[str] = Field([], description="labels of the policies that it is better than")
    metric: str | None = Field(None, description="null: the figure's")
    scenarios: list[str] | None = Field(None, description="null: the figure's")


class PaperFigure(Strict):
    """A figure or table of the paper, and how it is drawn here."""

    name: str = Field(description="as the paper numbers it")
    title: str
    metric: str = "return"
    chart: Literal["curves", "bars", "lines"]
    scenarios: list[str] = Field(min_length=1, description="names; lines: of the one whose field `over` changes")
    over: str | None = Field(None, description="lines: the scenario's field on the x axis")
    policies: list[str] | None = Field(None, description="labels that are drawn; null: all")
    claims: list[Claim] = []


class ClaimsFile(Strict):
    """What one paper claims."""

    paper: str
    note: str = ""
    figures: list[PaperFigure] = Field(min_length=1)


@dataclass(frozen=True)
class Tested:
    """One pair of policies in one scenario.

    Attributes:
        difference: Of the means, first minus second, in the metric's unit.
        relative: The same as a share of the second's mean.
        improvement: Probability that the first is better on the same episode.
        runs: Training runs of the two; 1 for heuristics.
    """

    claim: Claim
    metric: str
    scenario: str
    other: str
    difference: Interval
    relative: float
    improvement: Interval
    runs: tuple[int, int]
    verdict: Verdict


def find_claims(given: str) -> ClaimsFile:
    """Reads a file of claims, or the one of that name in `trainers/claims`.

    Raises:
        InputError: There is none, or it is not one.
    """
    ready = CLAIMS / f"{given}.yaml"
    path = ready if ready.exists() else Path(given)
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        known = ", ".join(sorted(file.stem for file in CLAIMS.glob("*.yaml")))
        raise InputError(f"{path}: cannot be read as claims ({known}): {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: no claims: expected the keys {', '.join(ClaimsFile.model_fields)}")
    return parse(ClaimsFile, values, str(path))


def examine(claim: Claim, figure: PaperFigure, comparisons: Sequence[Comparison]) -> list[Tested]:
    """Every pair that the claim implies and for which there are results.

    Args:
        comparisons: Those of the figure's scenarios.
    """
    metric = claim.metric or figure.metric
    chosen = [c for c in comparisons if claim.scenarios is None or c.scenario.split(" ")[0] in claim.scenarios]
    return [
        _test(claim, metric, comparison, other)
        for comparison in chosen
        for other in claim.than
        if claim.better in comparison.results and other in comparison.results and metric in comparison.metrics
    ]


def _test(claim: Claim, metric: str, comparison: Comparison, other: str) -> Tested:
    assert claim.better is not None
    first, second = (np.stack([run.values[metric] for run in comparison.results[label]]) for label in (claim.better, other))
    sign = -1.0 if comparison.metrics[metric].better == "lower" else 1.0
    difference = paired_difference(first, second, comparison.how)
    base = float(np.nanmean(second)) if difference.episodes else 0.0
    counts = [len(comparison.results[label]) for label in (claim.better, other)]
    enough = all(
        count >= MIN_RUNS or not comparison.results[label][0].env_steps
        for label, count in zip((claim.better, other), counts, strict=True)
    )
    return Tested(
        claim,
        metric,
        comparison.scenario,
        other,
        difference,
        difference.estimate / abs(base) if base else float("nan"),
        probability_of_improvement(sign * first, sign * second, comparison.how),
        (counts[0], counts[1]),
        judge(difference, sign, enough),
    )


def judge(difference: Interval, sign: float, enough: bool) -> Verdict:
    """The verdict on a difference that is claimed to have this sign; not defined where no episode has the metric for both."""
    if not difference.episodes:
        return "not defined"
    if not enough:
        return "not enough runs"
    if not difference.excludes(0.0):
        return "not reproduced"
    return "reproduced" if sign * difference.estimate > 0 else "contradicted"


def overall(claim: Claim, tested: Sequence[Tested]) -> Verdict:
    """Of all pairs: reproduced only if each is, contradicted as soon as one is."""
    verdicts = {pair.verdict for pair in tested}
    if claim.better is None:
        return "not tested"
    if not verdicts:
        return "not in these runs"
    if "contradicted" in verdicts:
        return "contradicted"
    if "not enough runs" in verdicts:
        return "not enough runs"
    if verdicts == {"not defined"}:
        return "not defined"
    return "reproduced" if verdicts == {"reproduced"} else "not reproduced"
