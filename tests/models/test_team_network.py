"""The team's network: unrolling, who influences whom, and what is exchanged."""

import pytest
import torch
from pydantic import ValidationError

from envs.team import ActionHead, Field, TeamSpec
from models.team_network import (
    IntentConfig,
    NetworkConfig,
    SeparateNetworks,
    TeamNetwork,
    make_team_network,
    masked_argmax,
)

AGENTS, STEPS, TEAMS = 5, 4, 3
SPEC = TeamSpec(
    problem="test",
    scenario="test/line",
    agents=tuple(f"agent_{i}" for i in range(AGENTS)),
    observation={
        "load": Field((3,), 0.0, 1.0),
        "kind": Field((4,), -1, 1, scale="category", entity="job"),
        "size": Field((4,), 0.0, 1.0, entity="job"),
    },
    heads=(ActionHead("target", 3, 4, "job"), ActionHead("level", 2)),
    state_size=1,
    max_steps=STEPS,
    positions=((0.0, 0.0), (1.0, 0.0), (3.0, 0.0), (7.0, 0.0), (15.0, 0.0)),
)
INTENT = IntentConfig(size=6, key_size=5, tokens=4)
VARIANTS = {
    "no intents": None,
    "full": INTENT,
    "star": INTENT.model_copy(update={"topology": "star"}),
    "ring": INTENT.model_copy(update={"topology": "ring"}),
    "k-nearest": INTENT.model_copy(update={"topology": "k-nearest", "neighbours": 1}),
    "without message attention": INTENT.model_copy(update={"message_attention": False}),
    "without environment attention": INTENT.model_copy(update={"environment_attention": False}),
}


def network(variant: str = "full") -> TeamNetwork:
    torch.manual_seed(4)
    return TeamNetwork(SPEC, NetworkConfig(hidden=16, entity_hidden=8, intent=VARIANTS[variant]))


def packed(seed: int = 0) -> torch.Tensor:
    """`[TEAMS, STEPS, AGENTS, D]`."""
    generator = torch.Generator().manual_seed(seed)
    load, size = (torch.rand(TEAMS, STEPS, AGENTS, n, generator=generator) for n in (3, 4))
    kind = torch.randint(-1, 2, size.shape, generator=generator)
    return torch.cat([load, kind, size * (kind >= 0)], dim=-1).to(torch.float16)


def previous_actions(seed: int = 1) -> torch.Tensor:
    """`[TEAMS, STEPS, AGENTS, H]`, none before the first step."""
    actions = torch.randint(0, 2, (TEAMS, STEPS, AGENTS, 5), generator=torch.Generator().manual_seed(seed))
    actions[:, 0] = -1
    return actions


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes(variant):
    out = network(variant)(packed(), previous_actions(), torch.zeros(TEAMS, AGENTS, 16))
    assert out.scores.shape == (TEAMS, STEPS, AGENTS, 5, 3)
    assert out.value.shape == (TEAMS, STEPS, AGENTS)
    assert out.hidden.shape == (TEAMS, AGENTS, 16)
    if variant == "no intents":
        assert out.intent is out.intent_mean is out.intent_deviation is None
    else:
        assert out.intent.shape == out.intent_mean.shape == out.intent_deviation.shape == (TEAMS, STEPS, AGENTS, 6)
        assert (out.intent_deviation > 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_many_steps_at_once_are_the_same_as_one_by_one(variant):
    """What the learner computes of an episode is what the agents computed while they acted."""
    net, observation, previous = network(variant), packed(), previous_actions()
    at_once = net(observation, previous, net.initial_state(TEAMS))
    hidden = net.initial_state(TEAMS)
    for t in range(STEPS):
        one = net(observation[:, t : t + 1], previous[:, t : t + 1], hidden)
        hidden = one.hidden
        torch.testing.assert_close(one.scores[:, 0], at_once.scores[:, t], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(one.value[:, 0], at_once.value[:, t], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(hidden, at_once.hidden, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_those_whom_an_agent_hears_influence_it(variant):
    net = network(variant)
    observation = packed().float().requires_grad_()
    out = net(observation, previous_actions(), net.initial_state(TEAMS))
    influences = torch.zeros(AGENTS, AGENTS, dtype=torch.bool)
    for i in range(AGENTS):
        (gradient,) = torch.autograd.grad(out.scores[:, :, i].sum(), observation, retain_graph=True)
        influences[i] = (gradient != 0).any(-1).flatten(0, 1).any(0)
    expected = torch.eye(AGENTS, dtype=torch.bool)
    if net.hears is not None:
        expected = expected | net.hears
    assert influences.tolist() == expected.tolist()


def test_the_past_matters_and_the_future_does_not():
    net = network()
    observation = packed().float().requires_grad_()
    out = net(observation, previous_actions(), net.initial_state(TEAMS))
    (gradient,) = torch.autograd.grad(out.scores[:, 1].sum(), observation)
    assert (gradient != 0).flatten(2).any(-1).any(0).tolist() == [True, True, False, False]
    other = previous_actions()
    other[:, 1] = 1 - other[:, 1]
    changed = net(observation, other, net.initial_state(TEAMS)).scores != out.scores
    assert changed.flatten(2).any(-1).any(0).tolist() == [False, True, True, True]


def test_agents_with_equal_observations_are_told_apart():
    net = network("no intents")
    observation = packed()[:, :, :1].expand(-1, -1, AGENTS, -1)
    value = net(observation, torch.full((TEAMS, STEPS, AGENTS, 5), -1), net.initial_state(TEAMS)).value
    assert len({round(number, 6) for number in value[0, 0].tolist()}) == AGENTS


def test_some_agents_perceive_what_they_do_in_the_team():
    net, observation, previous = network(), packed(), previous_actions()
    hidden = torch.randn(TEAMS, AGENTS, 16, generator=torch.Generator().manual_seed(2))
    team = net.perceive(observation, previous, hidden, torch.arange(AGENTS))
    some = torch.tensor([3, 1])
    part = net.perceive(observation[:, :, some], previous[:, :, some], hidden[:, some], some)
    torch.testing.assert_close(part.mean, team.mean[:, :, some], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(part.last_hidden, team.last_hidden[:, some], atol=1e-6, rtol=1e-5)


def test_intents_are_means_or_samples_around_them():
    net = network()
    noise = torch.randn(TEAMS, STEPS, AGENTS, 6, generator=torch.Generator().manual_seed(5))
    start = net.initial_state(TEAMS)
    greedy = net(packed(), previous_actions(), start)
    assert torch.equal(greedy.intent, greedy.intent_mean)
    sampled = net(packed(), previous_actions(), start, noise)
    assert torch.equal(sampled.intent, sampled.intent_mean + sampled.intent_deviation * noise)
    assert torch.equal(sampled.intent_mean, greedy.intent_mean)
    assert not torch.equal(sampled.scores, greedy.scores)


@pytest.mark.parametrize(
    ("variant", "messages"),
    [
        ("no intents", 0),
        ("without message attention", 0),
        ("full", 5 * 4),
        ("star", 2 * 4),
        ("ring", 2 * 5),
        ("k-nearest", 5),
        ("without environment attention", 5 * 4),
    ],
)
def test_message_bytes(variant, messages):
    assert network(variant).message_bytes == messages * 6 * 4


def test_ablations_have_no_parameters_for_what_they_lack():
    def names(variant: str) -> set[str]:
        return {name.partition(".")[0] for name in network(variant).state_dict()}

    base = names("no intents")
    assert names("full") == base | {"intent_encoder", "message_attention", "environment_attention", "merge"}
    assert names("without message attention") == names("full") - {"message_attention"}
    assert names("without environment attention") == names("full") - {"environment_attention"}


def test_masked_argmax_takes_the_first_of_the_best_legal_choices():
    scores = torch.tensor([[9.0, 2.0, 2.0, 1.0], [-5.0, -7.0, 0.0, 0.0]])
    mask = torch.tensor([[False, True, True, True], [True, True, False, False]])
    assert masked_argmax(scores, mask).tolist() == [1, 0]


# ------------------------------------------------------------------------------------------------------- separate networks


def separate() -> SeparateNetworks:
    torch.manual_seed(4)
    net = make_team_network(SPEC, NetworkConfig(hidden=16, entity_hidden=8, shared=False))
    assert isinstance(net, SeparateNetworks)
    return net


def test_agents_with_networks_of_their_own_have_their_own_weights_and_gradients():
    net = separate()
    assert len(net.networks) == AGENTS
    assert not torch.equal(net.networks[0].heads.value.weight, net.networks[1].heads.value.weight)
    out = net(packed(), previous_actions(), net.initial_state(TEAMS))
    for agent in range(AGENTS):
        net.zero_grad()
        (out.scores[:, :, agent].sum() + out.value[:, :, agent].sum()).backward(retain_graph=True)
        moved = [any(p.grad is not None and (p.grad != 0).any() for p in one.parameters()) for one in net.networks]
        assert moved == [i == agent for i in range(AGENTS)]


def test_a_network_of_ones_own_is_a_team_network_of_which_one_agent_is_used():
    net, observation, previous = separate(), packed(), previous_actions()
    hidden = torch.randn(TEAMS, AGENTS, 16, generator=torch.Generator().manual_seed(2))
    out = net(observation, previous, hidden)
    assert net.initial_state(TEAMS).shape == (TEAMS, AGENTS, 16)
    for i, one in enumerate(net.networks):
        alone = one(observation, previous, hidden)
        torch.testing.assert_close(out.scores[:, :, i], alone.scores[:, :, i])
        torch.testing.assert_close(out.value[:, :, i], alone.value[:, :, i])
        torch.testing.assert_close(out.hidden[:, i], alone.hidden[:, i])
    torch.testing.assert_close(out.branches.dense(), out.scores)
    assert out.intent is None
    assert net.message_bytes == 0


def test_separate_networks_take_the_same_statistics():
    net = separate()
    net.fit(packed()[0, 0])
    shifts = [one.encoder.plain_standard.shift for one in net.networks]
    assert (shifts[0] != 0).all()
    assert all(torch.equal(shift, shifts[0]) for shift in shifts)


def test_intents_need_shared_weights():
    with pytest.raises(ValidationError, match="shared = false: expected true where agents exchange intents"):
        NetworkConfig(shared=False, intent=INTENT)
    assert isinstance(make_team_network(SPEC, NetworkConfig(intent=INTENT)), TeamNetwork)
