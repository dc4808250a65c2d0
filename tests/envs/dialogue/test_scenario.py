"""What a dialogue scenario refuses, in one line, and the tables of users."""

import pytest
import yaml

from envs.dialogue import PRESETS
from envs.dialogue.tables import KITCHEN, REALISTIC
from envs.errors import InputError
from envs.registry import make_scenario, scenario_from_dict

PLAIN = {"share": 1.0, "local_quality": 0.5, "cloud_quality": 1.0, "visual_gain": 0.5, "views": {"side": 1.0}}


def refusal(overrides):
    with pytest.raises(InputError) as error:
        make_scenario("dialogue/d1", overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(folder, content):
    path = folder / "table.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_rebuilt_from_what_a_run_stores(preset):
    scenario = make_scenario(f"dialogue/{preset}")
    assert scenario_from_dict(scenario.model_dump(mode="json")) == scenario


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"latency_budget_s": 0}, "latency_budget_s = 0: input should be greater than 0"),
        ({"usd_budget": -0.05}, "usd_budget = -0.05: input should be greater than 0"),
        ({"random_usd_budget": [0, 1]}, "random_usd_budget.0 = 0: input should be greater than 0"),
        ({"random_latency_budget_s": [9, 3]}, "random_latency_budget_s begins at 9 and ends at 3"),
        ({"latency_budget_s": float("inf")}, "latency_budget_s = inf"),
        ({"num_devices": 0}, "num_devices = 0: input should be greater than or equal to 1"),
        ({"network": "6g"}, "network = '6g', expected walk or one of the table's: wired, wifi, 5g, 4g"),
        ({"min_turns": 9, "max_turns": 3}, "min_turns = 9, expected at most max_turns = 3"),
        ({"devices": 3}, "unknown key 'devices', expected one of"),
        ({"tasks": {"categories": {"chat": {**PLAIN, "share": 0.9}}}}, "the shares of chat sum to 0.9, expected 1"),
        ({"tasks": {"categories": {"chat": {**PLAIN, "views": {"smell": 1.0}}}}}, "smell"),
    ],
)
def test_bad_values_are_refused(overrides, complaint):
    assert complaint in refusal(overrides)


def test_tables_are_read_from_files(tmp_path):
    mix = {"categories": {"chat": {**PLAIN, "share": 0.25}, "look": {**PLAIN, "share": 0.75}}}
    assert make_scenario("dialogue/d1", {"tasks": written(tmp_path, mix)}).categories == ("chat", "look")
    prices = {"local": {"latency_s": 1.0, "history_s_per_token": 0.0}, "cloud": {"usd": [1, 2, 3, 4]}}
    prices["cloud"]["latency_s"] = {"lan": [1, 2, 3, 4]}
    assert make_scenario("dialogue/d1", {"endpoints": written(tmp_path, prices)}).networks == ("lan",)


@pytest.mark.parametrize(
    ("field", "change", "complaint"),
    [
        ("endpoints", lambda table: table.pop("cloud"), "cloud is missing"),
        ("endpoints", lambda table: table.pop("local"), "local is missing"),
        ("endpoints", lambda table: table["cloud"].update(usd=[1, 2, 3]), "cloud.usd"),
        ("endpoints", lambda table: table["cloud"]["usd"].__setitem__(0, -1), "cloud.usd.0 = -1"),
        ("endpoints", lambda table: table.update(fog={}), "unknown key fog"),
        ("tasks", lambda table: table["categories"]["assistance"].update(share=0.5), "sum to 1.25, expected 1"),
        ("tasks", lambda table: table["categories"]["assistance"].update(views={"x-ray": 1.0}), "views.x-ray"),
        ("tasks", lambda table: table["categories"]["assistance"].update(prompt_tokens=[9, 2]), "begins at 9 and ends at 2"),
    ],
)
def test_a_bad_table_is_named_with_its_file_and_field(tmp_path, field, change, complaint):
    table = {"tasks": KITCHEN, "endpoints": REALISTIC}[field].model_dump(mode="json")
    change(table)
    path = written(tmp_path, table)
    text = refusal({field: path})
    assert path in text
    assert complaint in text


@pytest.mark.parametrize("content", ["- 1\n", "{", ""])
def test_files_that_hold_no_table(tmp_path, content):
    path = written(tmp_path, content)
    assert path in refusal({"tasks": path})


def test_a_file_that_is_not_there(tmp_path):
    assert "cannot be read" in refusal({"tasks": str(tmp_path / "none.yaml")})
