"""The page holds everything it shows, and nothing that a label could smuggle in."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from envs.team import Metric
from trainers.comparison import compare, format_interval
from trainers.episode_sums import RETURN
from trainers.evaluate import EpisodeResults
from trainers.figures import LearningCurves
from trainers.page import render_page, write_page
from trainers.statistics import Resampling

METRICS = {"return": RETURN, "latency_s": Metric("latency_s", None, "s", "lower", 'a "quoted" description')}
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Reads a page, checking that its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.cells, self.words = [], [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def comparison_of(*labels: str, env_steps: int = 0):
    def results(index: int) -> EpisodeResults:
        rng = np.random.default_rng(index)
        sums = {"reward": 3.0 * index + rng.normal(0, 0.2, 10), "latency_s": 0.5 + rng.normal(0, 0.1, 10)}
        return EpisodeResults("policy", "games/toy", np.arange(10) + 40, METRICS, sums, env_steps=env_steps, run=f"run-{index}")

    return compare({label: [results(index)] for index, label in enumerate(labels)}, Resampling(resamples=200))


CURVES = LearningCurves({"b": [(np.array([0.0, 10.0]), np.array([0.0, 1.0]))]}, "return of training episodes")


def test_page_shows_the_comparison():
    comparison = comparison_of("a", "b", "c", env_steps=5000)
    page = Page(render_page(comparison, command="edgeflock compare a b c", curves=CURVES))
    text = " ".join(" ".join(page.words).split())
    assert comparison.headline in text
    for sentence in comparison.verdicts():
        assert sentence in text
    for policy in comparison.policies:
        for summary in policy.metrics.values():
            assert format_interval(summary.mean, "") in page.cells
    for fact in ("edgeflock compare a b c", "40 to 49", "run-1 (5,000 steps)", "200, seed 0", "numpy " + np.__version__):
        assert fact in text
    assert page.tags.count("svg") == 2
    assert page.tags.count("h1") == 1
    assert ("aria-label", "lower is better") in page.attributes
    assert ("title", 'a "quoted" description') in page.attributes
    assert len([a for a in page.attributes if a == ("scope", "row")]) == 3


def test_page_of_one_policy_compares_nothing():
    text = render_page(comparison_of("alone"), title="Just looking")
    page = Page(text)
    assert "<h1>Just looking</h1>" in text
    assert page.cells[0] == "policy"
    assert "li" not in page.tags
    assert "difference to" not in text
    assert page.tags.count("svg") == 1


def test_page_needs_nothing_from_outside():
    text = render_page(comparison_of("a", "b"), curves=CURVES)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "image"} & set(page.tags)
    targets = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(target.startswith("#") for target in targets)
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert "prefers-color-scheme: dark" in text


def test_ids_are_unique_and_references_lead_somewhere():
    page = Page(render_page(comparison_of("a", "b"), curves=CURVES))
    assert len(page.ids) == len(set(page.ids))
    references = [value[1:] for name, value in page.attributes if name == "xlink:href"]
    references += re.findall(r"url\(#([^)]*)\)", str(page.attributes))
    references += [value for name, value in page.attributes if name in ("aria-labelledby", "aria-describedby")]
    assert references
    assert set(references) <= set(page.ids)


def test_charts_take_the_colour_and_the_width_of_the_page():
    text = render_page(comparison_of("a", "b"))
    assert "currentColor" in text
    (svg,) = re.findall(r"<svg[^>]*>", text)
    assert " width=" not in svg
    assert "viewBox=" in svg
    assert re.search(r'role="img" aria-label="[^"]+"', svg)


@pytest.mark.parametrize("nasty", ["<script>alert(1)</script>", "<!-- x", '"><img src=x>', "a & b", "{{ 7 * 7 }}"])
def test_inserted_text_is_escaped(nasty):
    curves = LearningCurves({nasty: CURVES.series["b"]}, nasty)
    page = Page(render_page(comparison_of(nasty, "b"), title=nasty, command=nasty, curves=curves))
    assert not {"script", "img"} & set(page.tags)
    assert page.words.count(nasty) >= 3  # heading, command and the row's label
    assert "49" not in page.cells


def test_write_page(tmp_path):
    comparison = comparison_of("a", "b")
    path = write_page(tmp_path / "deep" / "page.html", comparison, command="x")
    assert path.read_text(encoding="utf-8") == render_page(comparison, command="x")
    assert list(path.parent.iterdir()) == [path]
