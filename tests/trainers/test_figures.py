"""Figures show the numbers they are given, legibly, and look the same every time."""

import io
import itertools
import json
import xml.etree.ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text

from envs.errors import InputError
from envs.team import Metric
from trainers.comparison import compare
from trainers.episode_sums import RETURN
from trainers.evaluate import EpisodeResults
from trainers.figures import (
    PALETTE,
    LearningCurves,
    comparison_bars,
    learning_curves,
    looks,
    read_curves,
    read_metrics,
    save,
    svg_text,
)
from trainers.statistics import Resampling, band_over_runs

METRICS = {
    "return": RETURN,
    "latency_s": Metric("latency_s", None, "s", "lower"),
    "sent_mb": Metric("sent_mb", None, "MB", "lower"),
    "cost": Metric("cost", None, "$", "lower"),
    "share": Metric("share", None, "1", "neither"),
}
HOW = Resampling(resamples=200)


def comparison_of(*labels: str):
    rng = np.random.default_rng(0)

    def results(shift: float) -> EpisodeResults:
        scales = {"reward": 10.0, "latency_s": 0.01, "sent_mb": 3e6, "cost": -2.0, "share": 1.0}
        sums = {name: scale * (5 + shift + rng.normal(0, 0.3, 12)) for name, scale in scales.items()}
        return EpisodeResults("policy", "games/toy", np.arange(12), METRICS, sums)

    return compare({label: [results(0.3 * index)] for index, label in enumerate(labels)}, HOW)


def write_run(folder, lines: list[dict], tail: str = ""):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return folder


def test_read_metrics_skips_only_an_unfinished_last_line(tmp_path):
    rows = [{"env_steps": 10, "return_mean": 1.0}, {"env_steps": 20, "return_mean": 2.0}]
    assert read_metrics(write_run(tmp_path / "whole", rows)) == rows
    assert read_metrics(write_run(tmp_path / "killed", rows, '{"env_steps": 30, "ret')) == rows
    assert read_metrics(write_run(tmp_path / "no-newline", rows, '{"env_steps": 30}')) == [*rows, {"env_steps": 30}]
    assert read_metrics(write_run(tmp_path / "blank", rows, "\n\n")) == rows
    assert read_metrics(write_run(tmp_path / "empty", [])) == []


@pytest.mark.parametrize("line", ['{"env_steps": 30, "ret', "[1, 2]", "nonsense"])
def test_read_metrics_names_a_broken_line(tmp_path, line):
    folder = write_run(tmp_path / "run", [{"env_steps": 10}], line + '\n{"env_steps": 40}\n')
    with pytest.raises(InputError, match=r"run/metrics\.jsonl, line 2: expected a JSON object"):
        read_metrics(folder)


def test_read_metrics_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot read the training metrics"):
        read_metrics(tmp_path)


def test_curves_prefer_evaluation_episodes_if_every_run_has_them(tmp_path):
    training = [{"env_steps": s, "return_mean": float(s)} for s in (20, 10, 30)]
    both = [{**row, "evaluation_return_mean": -row["return_mean"]} for row in training[:2]] + training[2:]
    one, two = write_run(tmp_path / "one", both), write_run(tmp_path / "two", training)
    evaluated = read_curves({"a": [one, one]})
    assert evaluated.value_label == "return of evaluation episodes"
    steps, values = evaluated.series["a"][1]
    assert steps.tolist() == [10, 20]
    assert values.tolist() == [-10, -20]
    mixed = read_curves({"a": [one], "b": [two]})
    assert mixed.value_label == "return of training episodes"
    assert mixed.series["a"][0][1].tolist() == [10, 20, 30]


def test_curves_without_a_return_are_refused(tmp_path):
    folder = write_run(tmp_path / "run", [{"env_steps": 10, "return_mean": float("nan")}, {"return_mean": 1.0}])
    with pytest.raises(InputError, match=r"run/metrics\.jsonl: no line has both env_steps and return_mean"):
        read_curves({"a": [folder]})


def test_colours_belong_to_names_and_are_never_shared():
    few, many = looks(["qmix", "idmac"]), looks(["idmac", "vdn", "qmix", "random", "mine"])
    assert few["idmac"] == many["idmac"]
    assert few["qmix"] == many["qmix"]
    assert looks(["mine"])["mine"] == looks(["mine", "idmac"])["mine"]
    crowd = looks([f"policy-{i}" for i in range(20)] + ["idmac", "qplex"])
    assert len(set(crowd.values())) == 22
    assert crowd["idmac"].colour == PALETTE[0]
    with pytest.raises(InputError, match="33 policies in one figure: expected at most 32"):
        looks(str(i) for i in range(33))


def test_learning_curves_show_the_mean_of_the_runs_and_its_band():
    steps = np.linspace(0, 1000, 21)
    runs = [(steps, steps / 100 + offset) for offset in (0.0, 1.0, 5.0)]
    short = (steps[:11], np.zeros(11))
    figure = learning_curves(LearningCurves({"idmac": runs, "qmix": [short]}, "return of training episodes"))
    (axes,) = figure.axes
    mean, alone = axes.lines
    np.testing.assert_allclose(mean.get_ydata(), mean.get_xdata() / 100 + 2.0)
    np.testing.assert_array_equal(alone.get_xdata(), short[0])
    assert len(axes.collections) == 1  # a band around the three runs, none around the single one
    band = axes.collections[0].get_paths()[0].vertices
    _, low, high = band_over_runs(np.array([[0.0], [1.0], [5.0]]))
    at_start = band[band[:, 0] == 0, 1]
    assert (at_start.min(), at_start.max()) == pytest.approx((low[0], high[0]), abs=0.35)
    assert axes.get_xlabel() == "environment steps"
    assert axes.get_ylabel().startswith("return of training episodes")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["idmac (3 runs)", "qmix (1 run)"]


def test_learning_curves_of_unequal_length_average_what_is_there():
    steps = np.linspace(0, 100, 11)
    runs = [(steps, np.zeros(11)), (steps[:6], np.full(6, 4.0)), (steps, np.full(11, 2.0))]
    mean, iqm = (
        learning_curves(LearningCurves({"a": runs}, "return"), statistic).axes[0].lines[0] for statistic in ("mean", "iqm")
    )
    x, y = mean.get_data()
    np.testing.assert_allclose(y[x <= 50], 2.0)
    np.testing.assert_allclose(y[x > 50], 1.0)
    np.testing.assert_allclose(iqm.get_ydata(), y)  # nothing to cut from three runs


def test_no_curves_are_refused():
    with pytest.raises(InputError, match="no learning curves"):
        learning_curves(LearningCurves({"a": []}, "return"))


def test_bars_have_the_length_of_the_means_and_whiskers_their_bounds():
    comparison = comparison_of("idmac", "qmix", "random")
    figure = comparison_bars(comparison)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title("left") for axes in panels] == ["return", "latency", "sent", r"cost"]
    assert [axes.get_xlabel() for axes in panels] == [
        "higher is better",
        "s (lower is better)",
        "MB (lower is better)",
        r"\$ (lower is better)",
    ]
    for axes, name in zip(panels, ("return", "latency_s", "sent_mb", "cost"), strict=True):
        means = [policy.metrics[name].mean for policy in comparison.policies]
        np.testing.assert_allclose([patch.get_width() for patch in axes.patches], [mean.estimate for mean in means])
        whiskers = [lines.get_segments()[0][:, 0] for lines in axes.collections]
        np.testing.assert_allclose(whiskers, [(mean.low, mean.high) for mean in means])
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["random", "qmix", "idmac"]


def test_bars_of_chosen_metrics():
    figure = comparison_bars(comparison_of("a", "b"), ["share"])
    assert [axes.get_title("left") for axes in figure.axes] == ["share"]
    with pytest.raises(InputError, match="unknown metric speed: expected some of return, latency_s"):
        comparison_bars(comparison_of("a", "b"), ["speed"])


@pytest.mark.parametrize(
    "labels", [("random",), ("a", "b"), ("idmac-without-continuity-loss", *(f"policy number {i}" for i in range(12)))]
)
def test_no_text_is_cropped_or_overlaps(labels, monkeypatch):
    figure = comparison_bars(comparison_of(*labels))
    drawn = {}
    draw = Text.draw

    def record(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn[text] = text.get_window_extent(renderer)
        draw(text, renderer)

    monkeypatch.setattr(Text, "draw", record)
    FigureCanvasAgg(figure).draw()
    assert {*labels, "return"} <= {text.get_text() for text in drawn}
    for text, box in drawn.items():
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, f"{text.get_text()!r} is cropped"
    for (one, box), (other, other_box) in itertools.combinations(drawn.items(), 2):
        assert not box.padded(-0.5).overlaps(other_box.padded(-0.5)), f"{one.get_text()!r} overlaps {other.get_text()!r}"


def test_saved_files_are_whole_and_repeatable(tmp_path):
    comparison = comparison_of("idmac", "costs $5 to $7 & <more>")
    svg, png = save(comparison_bars(comparison), tmp_path / "figures" / "bars.v1")
    assert (svg.name, png.name) == ("bars.v1.svg", "bars.v1.png")
    root = xml.etree.ElementTree.fromstring(svg.read_text())
    assert root.tag.endswith("svg")
    image = imread(io.BytesIO(png.read_bytes()))
    assert image.shape[1] == 1660
    assert 0.5 < image[..., :3].mean() < 1.0  # mostly white, with something on it
    assert svg.read_text() == svg_text(comparison_bars(comparison))
