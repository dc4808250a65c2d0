"""Graphs of single agents: under onnxruntime they do what the team's torch policy does, over whole episodes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.errors import InputError
from envs.registry import make_simulator
from envs.team import TeamSpec, episode_seeds
from models.decentralised import DecentralisedAgent
from trainers.bundle import WEIGHTS, spec_to_json
from trainers.cli import cli
from trainers.config import RunConfig, make_run_config
from trainers.export import AGENT, export_bundle, export_heuristic
from trainers.learned_policy import LearnedPolicy, build_module, export_policy, load_policy
from trainers.onnx_export import agent_graph

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

TOLERANCE = 1e-3  # onnxruntime's logarithm differs in the last bit, which at times rounds an input to the neighbouring float16
CASES = {
    "vehicular with intents": (
        "idmac",
        "vehicular/v50-e6",
        ["scenario.num_vehicles=12", "scenario.horizon_slots=15", "network.intent.topology=ring"],
    ),
    "dialogue": ("mappo", "dialogue/d8", []),
    "dag": ("coma", "dag/t5", []),
    "velo, denoised": ("dlrs", "velo/n3", ["network.diffusion.steps=5", "network.diffusion.hidden=32"]),
    "games": ("qmix", "games/two-step", []),
    "weights of their own": ("maddpg", "dialogue/d8", ["network.shared=false"]),
    "another environment": ("vdn", "pettingzoo:mpe2.simple_spread_v3", ["scenario.kwargs.max_cycles=6"]),
}


def trained(case: str) -> tuple[RunConfig, LearnedPolicy]:
    """A policy with standardised inputs and weights so large that what is remembered and heard matters."""
    algorithm, scenario, overrides = CASES[case]
    config = make_run_config(algorithm, scenario, overrides=overrides)
    simulator = make_simulator(config.scenario, 4)
    torch.manual_seed(8)
    module = build_module(algorithm, simulator.spec, config.network, config.algorithm).eval()
    module.network.fit(module.packer(simulator.reset(episode_seeds(9, 0, 4)).observation).flatten(0, 1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    return config, LearnedPolicy(simulator.spec, module, algorithm)


class FieldAgent:
    """An agent that knows nothing but its number and the file."""

    def __init__(self, session, number: int) -> None:
        self.session, self.number = session, number
        self.shapes = {value.name: value.shape for value in session.get_inputs()}
        self.outputs = [value.name for value in session.get_outputs()]
        self.hidden = np.zeros(self.shapes["hidden"], np.float32)
        self.previous = np.full(self.shapes["previous_actions"], -1)

    def run(self, observation, mask, messages) -> dict[str, np.ndarray]:
        feed = {f"observation.{name}": value for name, value in observation.items()}
        feed |= {"agent": np.array(self.number), "action_mask": mask, "hidden": self.hidden, "previous_actions": self.previous}
        if messages is not None:
            feed["messages"] = messages
        return dict(zip(self.outputs, self.session.run(None, feed), strict=True))

    def remember(self, out: dict[str, np.ndarray]) -> None:
        self.hidden, self.previous = out["next_hidden"], out["actions"]


def own(step, agent: int):
    return {name: value[0, agent].numpy() for name, value in step.observation.items()}, step.action_mask[0, agent].numpy()


def silence(session) -> np.ndarray | None:
    shapes = {value.name: value.shape for value in session.get_inputs()}
    return np.full(shapes["messages"], np.nan, np.float32) if "messages" in shapes else None


@pytest.fixture(scope="module", params=CASES)
def exported(request):
    config, policy = trained(request.param)
    graph = agent_graph(policy)
    onnx.checker.check_model(onnx.load_from_string(graph))
    return request.param, config, policy, ort.InferenceSession(graph)


def test_agents_with_a_graph_decide_as_the_torch_team(exported) -> None:
    case, config, policy, session = exported
    spec = policy.spec
    simulator = make_simulator(config.scenario, 1)
    agents = [FieldAgent(session, i) for i in range(spec.num_agents)]
    step, state = simulator.reset(episode_seeds(3, 0, 1)), policy.initial_state(1)
    taken = set()
    while not step.finished.all():
        actions, state = policy.act(step.observation, state, step.action_mask)
        messages = silence(session)
        if messages is not None:
            messages = np.stack([agent.run(*own(step, i), messages)["message"] for i, agent in enumerate(agents)])
        for i, agent in enumerate(agents):
            out = agent.run(*own(step, i), messages)
            assert out["actions"].tolist() == actions[0, i].tolist()
            np.testing.assert_allclose(out["next_hidden"], state["hidden"][0, i], atol=TOLERANCE)
            agent.remember(out)
        step = simulator.step(actions)
        taken |= set(actions.flatten().tolist())
    assert len(taken) > 1 or case == "games"
    assert ("messages" in {value.name for value in session.get_inputs()}) == (case == "vehicular with intents")


def test_messages_that_do_not_arrive_are_not_attended_to(exported) -> None:
    _, config, policy, session = exported
    if silence(session) is None:
        assert {value.name for value in session.get_outputs()} == {"actions", "next_hidden"}
        return
    step = make_simulator(config.scenario, 1).reset(episode_seeds(4, 0, 1))
    torch_agent = DecentralisedAgent(policy.spec, policy.module.network, 1)
    agent, silent = FieldAgent(session, 1), silence(session)
    observation, mask = own(step, 1)
    inputs = ({name: torch.as_tensor(value)[None] for name, value in observation.items()}, torch.as_tensor(mask)[None])
    generator = np.random.default_rng(0)
    heard_mattered = False
    for _ in range(20):
        heard = generator.normal(0, 3, silent.shape).astype(np.float32)
        heard[generator.random(len(heard)) < 0.4] = np.nan
        arrived = {policy.spec.agents[i]: torch.tensor(row)[None] for i, row in enumerate(heard) if not np.isnan(row).any()}
        expected = torch_agent.step(*inputs, torch_agent.initial_state(), arrived)
        out = agent.run(observation, mask, heard)
        assert out["actions"].tolist() == expected.actions[0].tolist()
        np.testing.assert_allclose(out["message"], expected.intent[0], atol=TOLERANCE)
        heard_mattered |= out["actions"].tolist() != agent.run(observation, mask, silent)["actions"].tolist()
    assert heard_mattered


def test_the_file_tells_what_a_stranger_needs(exported) -> None:
    case, _, policy, session = exported
    told = json.loads(session.get_modelmeta().custom_metadata_map["edgeflock"])
    spec = spec_to_json(policy.spec)
    assert told["algorithm"] == CASES[case][0]
    for name in ("problem", "scenario", "agents", "observation", "heads", "max_steps"):
        assert told[name] == spec[name], name
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert {name: shapes[f"observation.{name}"] for name in spec["observation"]} == {
        name: field["shape"] for name, field in spec["observation"].items()
    }
    hears = ["edge_1", "edge_5"] if case == "vehicular with intents" else []
    assert told["hears"][policy.spec.agents[0]] == hears


# -- the command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    config, policy = trained("games")
    export_policy(config, policy.spec, policy.module, tmp_path / "bundle", {})
    return tmp_path / "bundle"


def test_export_adds_the_graph_to_the_bundle_and_takes_it_away_again(bundle: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    cli(["export", str(bundle), "--out", str(out), "--onnx"], standalone_mode=False)
    assert ort.InferenceSession(out / AGENT).get_outputs()[0].name == "actions"
    step = make_simulator(make_run_config("qmix", "games/two-step").scenario, 1).reset(episode_seeds(0, 0, 1))
    policy = load_policy(out)
    actions, _ = policy.act(step.observation, policy.initial_state(1), step.action_mask)
    agent = FieldAgent(ort.InferenceSession(out / AGENT), 1)
    assert agent.run(*own(step, 1), None)["actions"].tolist() == actions[0, 1].tolist()
    export_bundle(bundle, out)
    assert (out / WEIGHTS).exists()
    assert not (out / AGENT).exists()


def test_the_network_is_left_as_it_was(bundle: Path) -> None:
    policy = load_policy(bundle)
    agent_graph(policy)
    assert not policy.module.network.encoder.every_place


@pytest.mark.parametrize("learner", ["random", "cs-ucb"])
def test_what_has_no_network_is_refused_in_one_line_and_nothing_is_written(learner: str, tmp_path: Path) -> None:
    config = make_run_config("cs-ucb", "games/two-step")
    source, out = tmp_path / "source", tmp_path / "out"
    if learner == "random":
        export_heuristic("random", config.scenario, source)
    else:
        spec: TeamSpec = make_simulator(config.scenario).spec
        export_policy(config, spec, build_module("cs-ucb", spec, config.network, config.algorithm), source, {})
    with pytest.raises(InputError, match=f"{learner}: expected a policy with a network") as refused:
        export_bundle(source, out, onnx=True)
    assert "\n" not in str(refused.value)
    assert not out.exists()


def test_without_the_packages_the_message_says_how_to_get_them(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"^ONNX is not installed: pip install -e '\.\[onnx\]'$"):
        export_bundle(bundle, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


def test_a_heuristic_by_name_has_no_graph_either(tmp_path: Path) -> None:
    command = ["export", "random", "--scenario", "games/two-step", "--out", str(tmp_path / "out"), "--onnx"]
    with pytest.raises(InputError, match="--onnx: 'random' is a heuristic"):
        cli(command, standalone_mode=False)
    assert not (tmp_path / "out").exists()
