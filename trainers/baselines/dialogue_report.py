"""What `edgeflock compare` shows of the dialogue problem besides metrics: the gap to the optimum, and the survey's Fig. 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from envs.dialogue.scenario import DialogueScenario
from envs.team import Metric
from trainers.baselines.dialogue import HEURISTICS
from trainers.baselines.dialogue_optimum import best_plans, best_returns
from trainers.baselines.tradeoff import Results, draw_point, interval, legend_below, recall, remember, with_gap
from trainers.figures import INK, STYLE, WIDTH_INCHES, Look, looks
from trainers.policy import Policy

GAP = Metric(
    "optimality_gap",
    None,
    better="lower",
    description="return below the clairvoyant optimum (a fleet's: below its upper bound)",
)
BAND = ("random", "device", "cloud", "router-strict", "router-balanced", "router-generous", "uncertainty")
"""Policies that decide request by request and know no prices: their band is shaded."""
EXACT_UP_TO = 2_000  # conversations
PANELS = {"latency_s": "latency of a conversation (s)", "cost_usd": "cost of a conversation ($)"}
WIDEST = 4.0  # budgets that an axis shows; what lies beyond is told, not drawn


def extend(
    results: Results,
    scenario: DialogueScenario,
    seeds: Tensor,
    solver_s: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Results, list[str]]:
    """The results with the metric above, and what to say of the optimum.

    Args:
        solver_s: Time for each episode's optimum; 0 leaves the gap out.
    """
    remember(results, scenario, seeds)
    if solver_s <= 0:
        return results, []
    plans = best_plans(scenario, seeds, solver_s / scenario.num_devices, EXACT_UP_TO)
    if progress is not None:
        progress(len(seeds), len(seeds))
    best = best_returns(plans)
    exact = [plan.exact for of_episode in plans for plan in of_episode]
    relaxed = "; waits at the provider are left out, so a fleet may not reach it" if scenario.num_devices > 1 else ""
    remark = (
        f"optimum: {best.mean():.3f} on average, all draws known beforehand; exact for {sum(exact)} of {len(exact)} "
        f"conversations, an upper bound for the others{relaxed}."
    )
    return with_gap(results, GAP, best, "reward"), [remark]


def figures(policies: Mapping[str, Policy], scenario: DialogueScenario, seed: int) -> dict[str, tuple[str, Figure]]:
    """Quality against latency and against cost, one point for each policy: a name for files to (caption, figure).

    All episodes of the comparison that `extend` saw are in it; without one, the episode `seed` is played.
    """
    caption = (
        "Quality against latency and against cost of a conversation, with 95 % intervals; dotted: the budget; shaded: where "
        "the survey's baselines lie"
    )
    return {"tradeoff": (caption, tradeoff(recall(policies, scenario, seed), scenario))}


def tradeoff(results: Results, scenario: DialogueScenario) -> Figure:
    """The survey's Fig. 4 for some policies' results."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 4.4), layout="constrained")
        axes_of = figure.subplots(1, 2, sharey=True)
        look_of = looks(results)
        budgets = {"latency_s": scenario.latency_budget_s, "cost_usd": scenario.usd_budget}
        for axes, (metric, words) in zip(axes_of, PANELS.items(), strict=True):
            _draw_panel(axes, results, metric, budgets[metric], look_of)
            axes.set_xlabel(words)
        axes_of[0].set_ylabel("mean quality of an answer")
        legend_below(figure, axes_of[0])
    return figure


def _draw_panel(axes: Axes, results: Results, metric: str, budget: float, look_of: Mapping[str, Look]) -> None:
    points = {label: (interval(runs, metric), interval(runs, "quality")) for label, runs in results.items()}
    shown = {label for label, (x, _) in points.items() if x.estimate <= WIDEST * budget}
    _shade(axes, [(x.estimate, y.estimate) for label, (x, y) in points.items() if label in BAND and label in shown])
    for label, (x, y) in points.items():
        edge = None if label in shown else 1.03 * WIDEST * budget
        draw_point(axes, label, x, y, look_of[label], learned=label not in HEURISTICS, edge=edge)
        if edge is not None:
            axes.annotate(
                f"{x.estimate:,.0f}" if x.estimate >= 100 else f"{x.estimate:.3g}",
                (edge, y.estimate),
                (-4, 6),
                textcoords="offset points",
                fontsize=8,
                ha="right",
            )
    axes.axvline(budget, color=INK, linewidth=0.9, linestyle=":")
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.grid(alpha=0.25, linewidth=0.6)


def _shade(axes: Axes, points: list[tuple[float, float]]) -> None:
    """A smooth band around the points: their straight line fitted in the root of the amount, as wide as they scatter."""
    if len(points) < 3:
        return
    x, y = (np.array(values) for values in zip(*points, strict=True))
    amounts = np.linspace(max(0.0, x.min()), x.max(), 200)
    line = np.polyfit(np.sqrt(x), y, 1)
    fitted = np.polyval(line, np.sqrt(amounts))
    residual = y - np.polyval(line, np.sqrt(x))
    low, high = fitted + residual.min(), fitted + residual.max()
    axes.fill_between(amounts, low, high, color="#8A8A8A", alpha=0.18, linewidth=0, label="the survey's baselines")
