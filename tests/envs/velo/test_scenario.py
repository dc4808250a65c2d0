"""What a velo scenario refuses, in one line, and the LLMs of users."""

from dataclasses import replace

import pytest
import torch

from envs.errors import InputError
from envs.registry import make_scenario, make_simulator, scenario_from_dict
from envs.velo import PRESETS
from envs.velo.corpus import SIMILAR, corpus_from
from envs.velo.episode import EpisodeSource
from envs.velo.llm import PROFILES


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_rebuilt_from_what_a_run_stores(preset):
    scenario = make_scenario(f"velo/{preset}")
    assert scenario_from_dict(scenario.model_dump(mode="json")) == scenario


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"num_servers": 0}, "num_servers = 0: input should be greater than or equal to 1"),
        ({"servers": 3}, "unknown key 'servers', expected one of"),
        ({"relevance_near": 1.2}, "relevance_near = 1.2, expected less than relevance_far = 1.1"),
        ({"initial_exchanges": 0, "build_requests": 3}, "query_results = 10, expected at most 6"),
        ({"llm": "qwen-8b"}, "expected a YAML file or one of qwen-7b-int8, qwen-14b"),
        ({"llm": {"slots": 0}}, "llm.slots = 0"),
        ({"interval_s": float("inf")}, "interval_s = inf"),
        ({"test": "old"}, "test = 'old'"),
    ],
)
def test_bad_values_are_refused(overrides, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        make_scenario("velo/n3", overrides)
    assert "\n" not in str(error.value)


def test_llms_are_named_or_read_from_files(tmp_path):
    assert make_scenario("velo/n3", {"llm": "gpt-3.5"}).llm == PROFILES["gpt-3.5"]
    path = tmp_path / "mine.yaml"
    path.write_text("noise: 0.5\nslots: 7\n")
    llm = make_scenario("velo/n3", {"llm": str(path)}).llm
    assert (llm.noise, llm.slots, llm.network_s) == (0.5, 7, 0.05)
    path.write_text("speed: 3\n")
    with pytest.raises(InputError, match=r"mine\.yaml: unknown key speed"):
        make_scenario("velo/n3", {"llm": str(path)})
    with pytest.raises(InputError, match="cannot be read"):
        make_scenario("velo/n3", {"llm": str(tmp_path / "none.yml")})


def test_every_preset_of_a_size_shows_the_same():
    """So that a policy trained on `n3` plays `n3-test` and `n3-all`."""
    one, *others = (make_simulator(make_scenario(f"velo/{name}")).spec for name in ("n3", "n3-test", "n3-all"))
    for other in others:
        assert list(other.observation) == list(one.observation)
        assert (other.branches, other.state_size) == (one.branches, one.state_size)


def test_a_test_needs_questions():
    scenario = make_scenario("velo/n3-test", {"corpus": {"questions": 50}})
    corpus = corpus_from(scenario.corpus)
    split = corpus.split.masked_fill(corpus.split == SIMILAR, 0)
    with pytest.raises(InputError, match="has no similar questions"):
        EpisodeSource(scenario, replace(corpus, split=split), 8, torch.device("cpu"))
