"""What a scenario refuses, in one line."""

import pytest

from envs.dag import PRESETS
from envs.errors import InputError
from envs.registry import make_scenario, make_simulator, scenario_from_dict


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_rebuilt_from_what_a_run_stores(preset):
    scenario = make_scenario(f"dag/{preset}")
    assert scenario_from_dict(scenario.model_dump(mode="json")) == scenario


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"num_tasks": 0}, "num_tasks = 0: input should be greater than or equal to 1"),
        ({"num_tasks": 101}, "num_tasks = 101: input should be less than or equal to 100"),
        ({"tasks": 3}, "unknown key 'tasks', expected one of bandwidth_hz"),
        ({"graphs": []}, "graphs = []: tuple should have at least 1 item"),
        ({"edge_hz": [2e9, 2e9]}, "edge_modalities has 3 entries, expected one for each of the 2 of edge_hz"),
        ({"edge_modalities": [["smell"], [], []]}, "edge_modalities.0.0 = 'smell': input should be 'text', 'image'"),
        ({"input_bits": [(2, 1), (1, 1), (1, 1), (1, 1)]}, "the range of text begins at 2 and ends at 1"),
        ({"min_distance_m": 200.0}, "min_distance_m = 200, expected at most max_distance_m = 100"),
        ({"cloud_modalities": ["multimodal"], "failure_probability": 0.1}, "needs a cloud that hosts text too"),
        ({"failure_probability": 1.5}, "failure_probability = 1.5: input should be less than or equal to 1"),
        ({"random_graphs": {"node": 3}}, "unknown key 'random_graphs.node'"),
        ({"random_graphs": {"modality_shares": (0, 0, 0, 0)}}, "expected at least one share above 0"),
        ({"deadline_s": float("inf")}, "deadline_s = inf"),
    ],
)
def test_bad_values_are_refused(overrides, complaint):
    with pytest.raises(InputError) as error:
        make_scenario("dag/t5", overrides)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_random_graphs_that_no_server_hosts():
    values = {"cloud_modalities": ["text"], "edge_modalities": [["text"], ["text"], ["text"]]}
    scenario = make_scenario("dag/t5", {**values, "random_graphs": {"modality_shares": (0, 1, 1, 1)}})
    with pytest.raises(InputError, match="modality_shares: no server hosts any modality"):
        make_simulator(scenario)
