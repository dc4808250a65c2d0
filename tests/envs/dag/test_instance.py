"""The timing rules one by one, against a schedule that is worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from envs.dag.instance import Instance, objective, run_schedule, task_cost_usd, task_latency_s, upward_ranks


def two_tasks() -> Instance:
    """Two tasks of two subtasks (0 -> 1) on one edge (location 0) and the cloud (location 1).

    On the edge: input 0.25 s, compute 0.5 s (task 0) or 1 s (task 1). On the cloud: input 0.5 s, compute 0.125 s.
    An output takes 0.25 s between edge and cloud, and 0.125 s (edge) or 0.0625 s (cloud) back to the device.
    """
    shape = (2, 2, 2)
    successors = np.zeros((2, 2, 2), dtype=bool)
    successors[:, 0, 1] = True
    compute_s = np.zeros(shape)
    compute_s[0, :, 0], compute_s[1, :, 0], compute_s[..., 1] = 0.5, 1.0, 0.125
    transfer_s = np.zeros((*shape, 2))
    transfer_s[..., 0, 1] = transfer_s[..., 1, 0] = 0.25
    return Instance(
        exists=np.ones((2, 2), dtype=bool),
        modality=np.zeros((2, 2), dtype=np.int64),
        successors=successors,
        allowed=np.ones(shape, dtype=bool),
        input_s=np.broadcast_to([0.25, 0.5], shape).copy(),
        compute_s=compute_s,
        transfer_s=transfer_s,
        return_s=np.broadcast_to([0.125, 0.0625], shape).copy(),
        cost_usd=np.broadcast_to([0.5, 2.0], shape).copy(),
        deadline_s=2.0,
        weight=0.5,
    )


def test_a_schedule_worked_out_by_hand():
    """
    (0, 0) on the edge:  ST = 0                             EN = 0    + 0.25 + 0.5   = 0.75
    (1, 0) on the edge:  ST = max(0, 0.75)        = 0.75    EN = 0.75 + 0.25 + 1     = 2
    (0, 1) on the cloud: ST = 0.75 + 0.25         = 1       EN = 1    + 0.5  + 0.125 = 1.625
    (1, 1) on the edge:  ST = max(2 + 0, free 2)  = 2       EN = 2    + 0.25 + 1     = 3.25
    """
    instance = two_tasks()
    schedule = run_schedule(instance, [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 0)])
    assert schedule.order == [(0, 0), (1, 0), (0, 1), (1, 1)]
    np.testing.assert_array_equal(schedule.location, [[0, 1], [0, 0]])
    np.testing.assert_array_equal(schedule.start_s, [[0, 1], [0.75, 2]])
    np.testing.assert_array_equal(schedule.end_s, [[0.75, 1.625], [2, 3.25]])
    # T_0 = 1.625 - 0 + 0.0625 (from the cloud), T_1 = 3.25 - 0.75 + 0.125 (from the edge)
    np.testing.assert_array_equal(task_latency_s(instance, schedule), [1.6875, 2.625])
    np.testing.assert_array_equal(task_cost_usd(instance, schedule), [0.5 + 2.0, 0.5 + 0.5])
    assert objective(instance, schedule) == 0.5 * (1.6875 + 2.625) + 0.5 * (2.5 + 1.0)


def test_the_cloud_has_no_queue_but_waits_for_predecessors():
    """The literal formula would start (0, 1) at 0, before its predecessor ends at 0.625."""
    schedule = run_schedule(two_tasks(), [(0, 0, 1), (1, 0, 1), (0, 1, 1)])
    np.testing.assert_array_equal(schedule.start_s, [[0, 0.625], [0, 0]])
    np.testing.assert_array_equal(schedule.end_s, [[0.625, 1.25], [0.625, 0]])


def test_an_incomplete_task_has_no_figures_and_does_not_count():
    instance = two_tasks()
    schedule = run_schedule(instance, [(0, 0, 0), (0, 1, 0), (1, 0, 1)])
    assert task_latency_s(instance, schedule)[0] == 0.75 + 0.75 + 0.125
    assert np.isnan(task_latency_s(instance, schedule)[1])
    assert np.isnan(task_cost_usd(instance, schedule)[1])
    assert objective(instance, schedule) == 0.5 * 1.625 + 0.5 * 1.0


def test_upward_ranks_by_hand():
    """Own time: mean of edge and cloud, (0.75 + 0.625) / 2 and (1.25 + 0.625) / 2; a transfer: (0 + 0.25 + 0.25 + 0) / 4."""
    own = np.array([0.6875, 0.9375])
    np.testing.assert_array_equal(upward_ranks(two_tasks()), np.stack([own + 0.125 + own, own], axis=1))


@pytest.mark.parametrize(
    ("order", "complaint"),
    [
        ([(0, 1, 0)], "subtask 1 of task 0 comes before its predecessor 0"),
        ([(0, 0, 0), (0, 0, 1)], "subtask 0 of task 0 is scheduled twice"),
        ([(1, 0, 0)], "subtask 0 of task 1 does not exist"),
        ([(0, 0, 1)], "subtask 0 of task 0 may not run at location 1"),
    ],
)
def test_what_cannot_be_is_refused(order, complaint):
    instance = two_tasks()
    allowed = instance.allowed.copy()
    allowed[0, 0, 1] = False
    instance = replace(instance, allowed=allowed, exists=np.array([[True, True], [False, True]]))
    with pytest.raises(ValueError, match=complaint):
        run_schedule(instance, order)
