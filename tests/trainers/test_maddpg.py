"""MADDPG: who gets which gradient, targets and loss, against numbers worked by hand."""

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from envs.registry import make_scenario
from envs.team import ActionHead, Field, TeamSpec
from models.team_module import ACTION_MASK, ACTIONS, ALIVE, FILLED, OBSERVATION, REWARD, STATE, TERMINATED
from models.team_network import NetworkConfig
from trainers.algorithms.maddpg import MaddpgConfig, MaddpgSettings
from trainers.rollout import TeamEnvRunner

AGENTS, STEPS, CHOICES = 2, 3, 3
SPEC = TeamSpec(
    problem="test",
    scenario="test/two-heads",
    agents=("a", "b"),
    observation={"seen": Field((4,), 0.0, 1.0)},
    heads=(ActionHead("first", CHOICES), ActionHead("second", 2)),
    state_size=3,
    max_steps=STEPS,
)
NETWORK = NetworkConfig(hidden=8, entity_hidden=4)
LENGTHS = torch.tensor([3, 2, 1])


def learner_of(shared: bool = True, **changes):
    """A learner with fresh weights."""
    network = NETWORK.model_copy(update={"shared": shared})
    config = (
        MaddpgConfig()
        .team(make_scenario("games/two-step"), SPEC, network, MaddpgSettings(**changes), env_steps=1000)
        .debugging(seed=5, log_level="ERROR")
    )
    return config.build_learner(spaces={DEFAULT_MODULE_ID: TeamEnvRunner.spaces_of(SPEC)})


def module_of(learner):
    return learner.module[DEFAULT_MODULE_ID].unwrapped()


def batch(seed: int = 0, noise_seed: int | None = None) -> dict[str, torch.Tensor]:
    """Episodes of `LENGTHS` steps, the second truncated; with `noise_seed` everything after them is other noise."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.arange(STEPS + 1) <= LENGTHS[:, None]

    def numbers(steps: int, *shape: int) -> torch.Tensor:
        inside = torch.rand(3, steps, *shape, generator=generator)
        if noise_seed is None:
            return inside
        outside = torch.rand(inside.shape, generator=torch.Generator().manual_seed(noise_seed))
        keep = (seen if steps == STEPS + 1 else seen[:, 1:]).reshape(3, steps, *[1] * len(shape))
        return torch.where(keep, inside, outside)

    rows = {
        OBSERVATION: numbers(STEPS + 1, AGENTS, 4).to(torch.float16),
        STATE: numbers(STEPS + 1, 3),
        ACTION_MASK: (numbers(STEPS + 1, AGENTS, 2, CHOICES) < 0.7) & SPEC.choice_exists(),
        ALIVE: numbers(STEPS + 1, AGENTS) < 0.8,
        REWARD: numbers(STEPS) * 3,
        TERMINATED: torch.tensor([[False, False, True], [False] * 3, [True] * 3]),
        FILLED: torch.arange(STEPS) < LENGTHS[:, None],
    }
    rows[ALIVE][..., 0] = True
    rows[ACTION_MASK][..., 0] |= ~rows[ACTION_MASK].any(-1)
    chance = numbers(STEPS, AGENTS, 2, CHOICES).masked_fill(~rows[ACTION_MASK][:, :-1], -1.0)
    rows[ACTIONS] = chance.argmax(-1).to(torch.int16)
    return rows


def outputs(learner, rows):
    torch.manual_seed(7)
    return learner.module[DEFAULT_MODULE_ID].forward_train(rows)


def loss_of(learner, rows, fwd_out=None):
    fwd_out = outputs(learner, rows) if fwd_out is None else fwd_out
    return learner.compute_loss_for_module(module_id=DEFAULT_MODULE_ID, config=learner.config, batch=rows, fwd_out=fwd_out)


def reached(output: torch.Tensor, parameters: list[torch.Tensor]) -> bool:
    """Whether any parameter gets a gradient that is not 0."""
    gradients = torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
    return any(g is not None and bool((g != 0).any()) for g in gradients)


def test_the_actor_learns_through_a_critic_that_does_not():
    learner, rows = learner_of(), batch()
    groups = module_of(learner).trained_parameters()
    out = outputs(learner, rows)
    assert reached(out["improved"], groups["actor"])
    assert not reached(out["improved"], groups["critic"])
    assert reached(out["q"], groups["critic"])
    assert not reached(out["q"], groups["actor"])
    assert not out["targets"].requires_grad


def test_each_agents_loss_reaches_its_own_actor_alone():
    learner, rows = learner_of(shared=False), batch()
    rows[ACTION_MASK][:] = SPEC.choice_exists()
    out = outputs(learner, rows)
    networks = module_of(learner).network.networks
    for agent in range(AGENTS):
        got = [reached(out["improved"][..., agent], list(net.parameters())) for net in networks]
        assert got == [i == agent for i in range(AGENTS)]


def test_an_agents_proposal_is_valued_among_what_the_others_did():
    """The first agent's proposal replaces its own action only: its value is that of one of the choices it could propose."""
    learner, rows = learner_of(), batch()
    module = module_of(learner)
    mask = torch.zeros_like(rows[ACTION_MASK])
    mask[..., 0, :] = True  # the first head decides freely
    mask[..., 1, 0] = True
    rows[ACTION_MASK] = mask
    out = outputs(learner, rows)
    seen, state = rows[OBSERVATION][:, :-1], rows[STATE][:, :-1]
    taken = torch.nn.functional.one_hot(rows[ACTIONS].long(), CHOICES).float() * (mask.sum(-1) > 1)[:, :-1, ..., None]
    with torch.no_grad():
        possible = torch.stack(  # what the critic says of each choice that agent 0 may propose
            [
                module.critic(seen, state, torch.cat([replaced(taken[:, :, :1], choice), taken[:, :, 1:]], dim=2))
                for choice in range(CHOICES)
            ],
            dim=-1,
        )
    distance = (out["improved"][..., 0].detach().unsqueeze(-1) - possible).abs()
    assert (distance.amin(-1) < 1e-5).all()
    assert (possible.amax(-1) - possible.amin(-1) > 1e-4).all()
    assert len(distance.argmin(-1).unique()) > 1


def replaced(taken: torch.Tensor, choice: int) -> torch.Tensor:
    taken = taken.clone()
    taken[..., 0, :] = torch.nn.functional.one_hot(torch.tensor(choice), CHOICES).float()
    return taken


def test_targets_by_hand():
    """The slow critic's value of the slow actors' choices, all forced here, so that they are known."""
    learner, rows = learner_of(gamma=0.5), batch()
    module = module_of(learner)
    with torch.no_grad():
        for parameter in module.target_critic.parameters():
            parameter.mul_(1.7)
    rows[ACTION_MASK][:] = False
    rows[ACTION_MASK][..., 1] = True
    rows[ACTIONS][:] = 1
    with torch.no_grad():
        nothing = torch.zeros(3, STEPS + 1, AGENTS, 2, CHOICES)  # forced choices tell nothing
        value = module.target_critic(rows[OBSERVATION], rows[STATE], nothing)
    out = outputs(learner, rows)
    reward, targets = rows[REWARD], out["targets"]
    torch.testing.assert_close(targets[0, :2], reward[0, :2] + 0.5 * value[0, 1:3])
    assert targets[0, 2] == reward[0, 2]  # it terminated
    torch.testing.assert_close(targets[1, 1], reward[1, 1] + 0.5 * value[1, 2])  # truncated: it goes on
    assert targets[2, 0] == reward[2, 0]
    torch.testing.assert_close(out["q"], module.critic(rows[OBSERVATION][:, :-1], rows[STATE][:, :-1], nothing[:, 1:]))


def test_targets_take_the_slow_actors_choices():
    learner, rows = learner_of(gamma=1.0), batch()
    rows[ACTION_MASK][:] = SPEC.choice_exists()
    module = module_of(learner)
    seen: list[torch.Tensor] = []
    module.target_critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    with torch.no_grad():  # agents of the slow copy that are certain: choice 2 of the first head, 0 of the second
        for head, choice in (("first", 2), ("second", 0)):
            layer = module.target_network.heads.outputs[head]
            layer.weight.zero_()
            layer.bias.zero_()
            layer.bias[choice] = 100.0
    outputs(learner, rows)
    assert seen[0].shape == (3, STEPS + 1, AGENTS, 2, CHOICES)
    assert (seen[0].argmax(-1) == torch.tensor([2, 0])).all()
    assert (seen[0].sum(-1) == 1).all()


def test_the_loss_by_hand():
    learner = learner_of(logit_weight=0.5)
    rows = {
        FILLED: torch.tensor([[True, True], [True, False]]),
        ALIVE: torch.tensor([[[True, True], [True, False], [True, True]], [[True, True]] * 3]),
    }
    fwd_out = {
        "q": torch.tensor([[1.0, 2.0], [3.0, 99.0]]),
        "targets": torch.tensor([[2.0, 2.0], [0.0, -99.0]]),
        "improved": torch.tensor([[[1.0, 2.0], [3.0, 99.0]], [[4.0, 5.0], [99.0, 99.0]]]),
        "logits": torch.tensor([[[1.0, 1.0], [2.0, 99.0]], [[3.0, 3.0], [99.0, 99.0]]]),
        "entropy": torch.zeros(2, 2, 2),
    }
    # three steps: (1 + 0 + 9) / 3; five decisions: -(1 + 2 + 3 + 4 + 5) / 5 + 0.5 * (1 + 1 + 2 + 3 + 3) / 5
    assert loss_of(learner, rows, fwd_out).item() == pytest.approx(10 / 3 - 3.0 + 1.0)


def test_padding_changes_neither_loss_nor_gradients():
    learner = learner_of()
    trained = [p for group in module_of(learner).trained_parameters().values() for p in group]
    one, other = batch(), batch(noise_seed=99)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    results = []
    for rows in (one, other):
        loss = loss_of(learner, rows)
        results.append((loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


def test_a_step_of_gradient_makes_proposals_better():
    """Ascent along the actor's gradient raises what the (unchanged) critic says of the choices, on average."""
    learner, rows = learner_of(logit_weight=0.0), batch()
    rows[ACTION_MASK][:] = SPEC.choice_exists()
    rows = {name: value.repeat(60, *[1] * (value.dim() - 1)) for name, value in rows.items()}
    module = module_of(learner)
    optimiser = torch.optim.Adam(module.network.parameters(), lr=0.03)

    def improved() -> torch.Tensor:
        out = outputs(learner, rows)["improved"]
        return out[rows[FILLED]].mean()

    before = improved().item()
    for _ in range(25):
        optimiser.zero_grad()
        (-improved()).backward()
        optimiser.step()
    assert improved().item() > before + 0.01


def test_the_slow_copies_follow_by_the_share_tau():
    learner = learner_of(target_tau=0.25)
    module = module_of(learner)
    pairs = [(module.target_network, module.network), (module.target_critic, module.critic)]
    with torch.no_grad():
        for slow, online in pairs:
            assert [p.tolist() for p in slow.parameters()] == [p.tolist() for p in online.parameters()]  # at the start
            for value, network in ((1.0, slow), (3.0, online)):
                for parameter in network.parameters():
                    parameter.fill_(value)
    learner.after_gradient_based_update(timesteps={})
    for slow, online in pairs:
        assert all((p == 1.5).all() for p in slow.parameters())  # 1 + 0.25 * (3 - 1)
        assert all((p == 3.0).all() for p in online.parameters())
        assert not any(p.requires_grad for p in slow.parameters())
