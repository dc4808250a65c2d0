"""The Gantt chart shows what a schedule holds."""

import numpy as np
import torch
from matplotlib.patches import Rectangle

from envs.dag.instance import run_schedule
from envs.registry import make_scenario, make_simulator
from trainers.figures import save
from trainers.gantt import gantt


def drawn():
    """An instance of one text chain, and its schedule: two subtasks on the edge, the third on the cloud."""
    sim = make_simulator(make_scenario("dag/t5", {"num_tasks": 2, "graphs": ["text-analysis"]}))
    sim.reset(torch.tensor([3]))
    instance = sim.instance(0)
    return instance, run_schedule(instance, [(0, 0, 0), (1, 0, 3), (0, 1, 3), (0, 2, 0)])


def bars(figure):
    """`(row, begin, end)` of every part of a bar."""
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    return [(round(box.get_y() + box.get_height() / 2), box.get_x(), box.get_x() + box.get_width()) for box in boxes]


def test_bars_lie_where_and_when_subtasks_run():
    instance, schedule = drawn()
    shown = bars(gantt(instance, schedule))
    assert len(shown) == 2 * 4  # transfer and compute
    rows = {(0, 0): 0, (0, 2): 0, (1, 0): 3, (0, 1): 4}  # two subtasks overlap on the cloud
    for cell, row in rows.items():
        begin, end = schedule.start_s[cell], schedule.end_s[cell]
        middle = begin + instance.input_s[(*cell, schedule.location[cell])]
        for part in ((begin, middle), (middle, end)):
            assert any(r == row and np.allclose(span, part) for r, *span in shown), (cell, part)


def test_tasks_are_named_and_locations_too():
    figure = gantt(*drawn(), locations=["text", "image", "audio", "far away"], title="a $ sign")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["task-0", "task-1"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["text", "image", "audio", "far away"]


def test_an_empty_schedule_is_drawn_and_saved(tmp_path):
    instance, _ = drawn()
    svg, png = save(gantt(instance, run_schedule(instance, [])), tmp_path / "empty")
    assert svg.stat().st_size
    assert png.stat().st_size
