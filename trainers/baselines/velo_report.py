"""What `edgeflock compare` shows of the velo problem besides metrics: the gap to the bound, and satisfaction against delay."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from envs.team import Metric
from envs.velo.scenario import VeloScenario
from trainers.baselines.tradeoff import Results, draw_point, interval, legend_below, recall, remember, with_gap
from trainers.baselines.velo import HEURISTICS
from trainers.baselines.velo_bound import Clairvoyant
from trainers.figures import STYLE, WIDTH_INCHES, Look, looks
from trainers.policy import Policy

GAP = Metric("bound_gap", None, better="lower", description="return below the bound of whoever knows all requests beforehand")
WORDS = {"": "all requests", "similar_": "similar requests", "new_": "new requests"}


def extend(
    results: Results,
    scenario: VeloScenario,
    seeds: Tensor,
    solver_s: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Results, list[str]]:
    """The results with the metric above, and what to say of the bound.

    Args:
        solver_s: 0 leaves the gap out.
    """
    remember(results, scenario, seeds)
    if solver_s <= 0:
        return results, []
    bounds = Clairvoyant(scenario).bounds(seeds)
    if progress is not None:
        progress(len(seeds), len(seeds))
    remark = (
        f"upper bound of the return: {bounds.mean():.4g} on average ({bounds.mean() / scenario.measured_steps:.4g} per "
        "request), all requests known beforehand and no waits at the LLM; it need not be reachable."
    )
    return with_gap(results, GAP, bounds, "return"), [remark]


def figures(policies: Mapping[str, Policy], scenario: VeloScenario, seed: int) -> dict[str, tuple[str, Figure]]:
    """Satisfaction against delay, one point for each policy: a name for files to (caption, figure).

    All episodes of the comparison that `extend` saw are in it; without one, the episode `seed` is played.
    """
    caption = "Satisfaction against delay of a request, with 95 % intervals; better is up and to the left"
    return {"tradeoff": (caption, tradeoff(recall(policies, scenario, seed), scenario))}


def tradeoff(results: Results, scenario: VeloScenario) -> Figure:
    """One panel for each part of the test; one for all requests where there are not two parts."""
    prefixes = [f"{part}_" for part in scenario.parts] if len(scenario.parts) > 1 else [""]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 4.4), layout="constrained")
        axes_of = figure.subplots(1, len(prefixes), squeeze=False, sharey=True)[0]
        look_of = looks(results)
        for axes, prefix in zip(axes_of, prefixes, strict=True):
            _draw_panel(axes, results, prefix, look_of)
            axes.set_title(WORDS[prefix])
            axes.set_xlabel("mean delay of a request (s)")
        axes_of[0].set_ylabel("mean satisfaction")
        legend_below(figure, axes_of[0])
    return figure


def _draw_panel(axes: Axes, results: Results, prefix: str, look_of: Mapping[str, Look]) -> None:
    for label, runs in results.items():
        delay, satisfaction = interval(runs, f"{prefix}delay_s"), interval(runs, f"{prefix}satisfaction")
        draw_point(axes, label, delay, satisfaction, look_of[label], learned=label not in HEURISTICS)
    axes.set_xlim(left=0.0)
    axes.grid(alpha=0.25, linewidth=0.6)
