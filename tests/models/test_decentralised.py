"""Agents that run alone decide as the team does, and go on when messages are lost."""

from dataclasses import dataclass

import pytest
import torch

from envs.registry import make_scenario, make_simulator
from models.decentralised import DecentralisedAgent
from models.diffusion import DiffusionConfig
from models.request_encoder import RequestEncoderConfig
from models.team_network import IntentConfig, NetworkConfig
from trainers.algorithms.mappo import MappoSettings
from trainers.algorithms.value_decomposition import ValueSettings
from trainers.learned_policy import build_module

TEAMS = 2
INTENT = IntentConfig(size=8, key_size=8)
VARIANTS = {
    "no intents": None,
    "without message attention": INTENT.model_copy(update={"message_attention": False}),
    "without environment attention": INTENT.model_copy(update={"environment_attention": False}),
    **{t: INTENT.model_copy(update={"topology": t}) for t in ("full", "star", "ring", "k-nearest")},
    "dlrs": INTENT,
}
TALKING = ("full", "star", "ring", "k-nearest", "dlrs")
DLRS = {
    "request_encoder": RequestEncoderConfig(field="capability", patches=2, width=6, heads=3, linear=8, size=4),
    "diffusion": DiffusionConfig(steps=5, hidden=16),
}
TOLERANCE = 1e-6  # of the largest score: several times float32's own


@pytest.fixture(scope="module")
def simulator():
    return make_simulator(make_scenario("vehicular/v50-e6", {"num_vehicles": 12, "horizon_slots": 15}), TEAMS)


@dataclass
class Setting:
    """A module with large weights, so that messages matter, and its agents one by one."""

    module: object
    agents: list[DecentralisedAgent]

    @property
    def names(self) -> tuple[str, ...]:
        return self.module.spec.agents


def setting(simulator, variant: str) -> Setting:
    torch.manual_seed(11)
    options = DLRS if variant == "dlrs" else {}
    network = NetworkConfig(hidden=32, entity_hidden=16, intent=VARIANTS[variant], **options)
    algorithm, settings = ("dlrs", MappoSettings()) if options else ("idmac", ValueSettings())
    module = build_module(algorithm, simulator.spec, network, settings).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2.0)
    return Setting(module, [DecentralisedAgent(simulator.spec, module.network, i) for i in range(simulator.spec.num_agents)])


def own(step, agent: int):
    """The agent's part of what the simulator shows: its observation and its mask."""
    return {name: value[:, agent] for name, value in step.observation.items()}, step.action_mask[:, agent]


def exchange(setting: Setting, intentions: list) -> dict[str, torch.Tensor]:
    """All intents by the sender's name."""
    return {name: i.intent for name, i in zip(setting.names, intentions, strict=True) if i.intent is not None}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_agents_alone_decide_as_the_whole_team_does(simulator, variant):
    s = setting(simulator, variant)
    step = simulator.reset(torch.tensor([3, 4]))
    joint_state = s.module.initial_state(TEAMS)
    states = [agent.initial_state(TEAMS) for agent in s.agents]
    silence_mattered, steps = 0, 0
    while not step.finished.all():
        packed = s.module.packer(step.observation)
        joint = s.module.network(packed[:, None], joint_state["previous_actions"][:, None], joint_state["hidden"])
        actions, joint_state, _ = s.module.act(packed, step.action_mask, joint_state, explore=False)
        intentions = [agent.intend(own(step, i)[0], states[i]) for i, agent in enumerate(s.agents)]
        messages = exchange(s, intentions)
        for i, agent in enumerate(s.agents):
            decision = agent.decide(intentions[i], step.action_mask[:, i], messages)
            assert torch.equal(decision.actions, actions[:, i])
            largest = joint.scores.abs().max().item()
            tolerance = TOLERANCE * largest * (10 if variant == "dlrs" else 1)  # denoising enlarges differences
            torch.testing.assert_close(decision.scores, joint.scores[:, 0, i], atol=tolerance, rtol=0)
            torch.testing.assert_close(decision.state["hidden"], joint_state["hidden"][:, i], atol=TOLERANCE, rtol=0)
            assert torch.equal(decision.state["previous_actions"], joint_state["previous_actions"][:, i])
            if decision.intent is not None:
                torch.testing.assert_close(decision.intent, joint.intent[:, 0, i], atol=TOLERANCE, rtol=0)
            states[i] = decision.state
            silent = agent.decide(intentions[i], step.action_mask[:, i], {})
            silence_mattered += not torch.allclose(silent.scores, decision.scores, atol=0.01 * largest)
        step = simulator.step(actions)
        steps += 1
    assert steps == 15
    exchanges = variant in TALKING or variant == "without environment attention"
    assert (silence_mattered > steps) == exchanges  # of 6 agents in each step
    assert (messages == {}) == (variant == "no intents")


@pytest.mark.parametrize("variant", TALKING)
@torch.no_grad()
def test_a_lost_message_is_not_attended_to(simulator, variant):
    """With lost messages the team decides as one whose listeners cannot hear the senders."""
    s = setting(simulator, variant)
    step = simulator.reset(torch.tensor([5, 6]))
    lost = 1  # agent 1's messages, in the second team only
    packed, start = s.module.packer(step.observation), s.module.initial_state(TEAMS)
    network = s.module.network
    seen = network.perceive(packed[:, None], start["previous_actions"][:, None], start["hidden"], torch.arange(6))
    hears = network.hears.expand(TEAMS, 1, 6, 6).clone()
    hears[1, :, :, lost] = False
    expected, _ = network.decide(seen.hidden, seen.entities, seen.mean, seen.mean, hears)
    everything, _ = network.decide(seen.hidden, seen.entities, seen.mean, seen.mean, network.hears)
    intentions = [agent.intend(own(step, i)[0], agent.initial_state(TEAMS)) for i, agent in enumerate(s.agents)]
    messages = exchange(s, intentions)
    messages["edge_1"] = messages["edge_1"].clone()
    messages["edge_1"][1, 2] = torch.nan
    for i, agent in enumerate(s.agents):
        scores = agent.decide(intentions[i], step.action_mask[:, i], messages).scores
        torch.testing.assert_close(scores, expected[:, 0, i], atol=1e-5, rtol=1e-5)
        assert scores.isfinite().all()
        hits = network.hears[i, lost].item()
        assert torch.allclose(scores[1], everything[1, 0, i], atol=1e-4) != hits
        torch.testing.assert_close(scores[0], everything[0, 0, i], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_missing_unheard_and_own_messages(simulator):
    s = setting(simulator, "ring")
    step = simulator.reset(torch.tensor([7, 8]))
    agent = s.agents[2]
    observation, mask = own(step, 2)
    intention = agent.intend(observation, agent.initial_state(TEAMS))
    peers = dict(zip(s.names, torch.randn(6, TEAMS, 8, generator=torch.Generator().manual_seed(9)), strict=True))
    nan = {"edge_1": torch.full((TEAMS, 8), torch.nan), "edge_3": torch.full((TEAMS, 8), torch.inf)}

    def scores(messages):
        return agent.decide(intention, mask, messages).scores

    assert agent.sources == agent.listeners == ("edge_1", "edge_3")
    heard = scores({name: peers[name] for name in ("edge_1", "edge_3")})
    assert torch.equal(scores(peers), heard)  # the others', and its own, do not count
    assert torch.equal(scores({**peers, "edge_5": torch.full((TEAMS, 8), torch.nan)}), heard)
    assert torch.equal(scores(nan), scores({}))
    assert not torch.allclose(scores({}), heard)
    assert not torch.allclose(scores({"edge_1": peers["edge_1"]}), heard)


def test_sources_and_listeners(simulator):
    def names(agents):
        return tuple(f"edge_{i}" for i in agents)

    star = setting(simulator, "star").agents
    assert star[0].sources == star[0].listeners == names(range(1, 6))
    assert star[4].sources == star[4].listeners == ("edge_0",)
    for variant in ("no intents", "without message attention"):
        assert setting(simulator, variant).agents[3].sources == setting(simulator, variant).agents[3].listeners == ()
    hears = setting(simulator, "k-nearest").module.network.hears  # need not be mutual
    for i, agent in enumerate(setting(simulator, "k-nearest").agents):
        assert agent.sources == names(hears[i].nonzero().flatten().tolist())
        assert agent.listeners == names(hears[:, i].nonzero().flatten().tolist())


@torch.no_grad()
def test_one_step_from_packed_or_physical_observations(simulator):
    s = setting(simulator, "full")
    step = simulator.reset(torch.tensor([1, 2]))
    agent = s.agents[4]
    observation, mask = own(step, 4)
    assert torch.equal(agent.pack(observation), s.module.packer(step.observation)[:, 4])
    state = agent.initial_state(TEAMS)
    messages = {"edge_0": torch.ones(TEAMS, 8)}
    one = agent.step(observation, mask, state, messages)
    two = agent.decide(agent.intend(agent.pack(observation), state), mask, messages)
    assert torch.equal(one.scores, two.scores)
    assert torch.equal(one.actions, two.actions)
    assert torch.equal(one.intent, two.intent)
    assert mask.gather(-1, one.actions[..., None]).all()
    assert not one.scores.requires_grad


def test_initial_state_is_the_agents_part_of_the_teams(simulator):
    s = setting(simulator, "full")
    for name, value in s.module.initial_state(TEAMS).items():
        assert torch.equal(s.agents[1].initial_state(TEAMS)[name], value[:, 1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["no intents", "ring", "dlrs"])
@torch.no_grad()
def test_a_step_can_be_exported_as_one_graph(simulator, variant):
    s = setting(simulator, variant)
    agent = s.agents[2]
    s.module.network.encoder.every_place = True
    example, other = (simulator.reset(torch.tensor([seed, seed])) for seed in (1, 50))
    state, talks = agent.initial_state(1), variant != "no intents"
    heard = torch.full((1, 6, 8), torch.nan)
    heard[0, 1] = 0.5

    def arguments(step, heard):
        observation, mask = own(step, 2)
        return agent.pack(observation)[:1], mask[:1], state["hidden"], state["previous_actions"], *([heard] if talks else [])

    program = torch.export.export(agent, arguments(example, heard))
    assert not [node for node in program.graph.nodes if "nonzero" in str(node.target)]  # all shapes are fixed
    heard[0, 3] = -0.5
    actions, intent, hidden = program.module()(*arguments(other, heard))
    observation, mask = own(other, 2)
    messages = {"edge_1": heard[:, 1], "edge_3": heard[:, 3]} if talks else {}
    expected = agent.step({name: value[:1] for name, value in observation.items()}, mask[:1], state, messages)
    assert torch.equal(actions, expected.actions)
    torch.testing.assert_close(hidden, expected.state["hidden"])
    torch.testing.assert_close(intent, expected.intent)
    assert (agent.pack(observation) != agent.pack(own(example, 2)[0])).any()


@pytest.mark.parametrize("agent", [-1, 6])
def test_there_is_no_such_agent(simulator, agent):
    with pytest.raises(ValueError, match=f"agent = {agent}: expected the number of an agent, 0 to 5"):
        DecentralisedAgent(simulator.spec, setting(simulator, "full").module.network, agent)


def test_bad_messages_are_refused(simulator):
    agent = setting(simulator, "full").agents[0]
    observation, mask = own(simulator.reset(torch.tensor([1, 2])), 0)
    with pytest.raises(ValueError, match="message from 'edge_9': expected one of edge_0, edge_1"):
        agent.step(observation, mask, agent.initial_state(TEAMS), {"edge_9": torch.zeros(TEAMS, 8)})
    with pytest.raises(ValueError, match=r"message from 'edge_1' is \[2, 7\]: expected \[2, 8\]"):
        agent.step(observation, mask, agent.initial_state(TEAMS), {"edge_1": torch.zeros(TEAMS, 7)})
