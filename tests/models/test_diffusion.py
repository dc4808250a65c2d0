"""The diffusion actor's arithmetic against numbers worked by hand, and what its noise does."""

import math

import pytest
import torch
from pydantic import ValidationError

from envs.team import ActionHead, Field, TeamSpec
from models.diffusion import DiffusionActor, DiffusionConfig, chain_factors, variances
from models.encoders import BranchScores
from models.team_network import NetworkConfig, TeamNetwork

HIDDEN = 6
SPEC = TeamSpec(
    problem="test",
    scenario="test/heads",
    agents=("a", "b"),
    observation={
        "load": Field((3,), 0.0, 1.0),
        "kind": Field((2,), -1, 1, scale="category", entity="job"),
        "size": Field((2,), 0.0, 1.0, entity="job"),
    },
    heads=(ActionHead("target", 3, 2, "job"), ActionHead("level", 2), ActionHead("pair", 4, members="job")),
    state_size=1,
    max_steps=4,
)
EXISTING = 3 + 3 + 2 + 4  # of 4 branches of at most 4 choices
TWO_STEPS = DiffusionConfig(steps=2, beta_min=0.2, beta_max=0.5, hidden=8, clip=None)  # alpha .8 .5, alpha-bar .8 .4


def actor(config: DiffusionConfig) -> DiffusionActor:
    torch.manual_seed(3)
    return DiffusionActor(SPEC, HIDDEN, config)


def inputs(rows: int = 5, seed: int = 1) -> tuple[torch.Tensor, BranchScores]:
    """Hidden states, and scores of ordinary heads that are 0 for choices that do not exist."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, 4, 4, generator=generator) * SPEC.choice_exists()
    return torch.randn(rows, HIDDEN, generator=generator), BranchScores.everywhere(scores)


def noise_for(config: DiffusionConfig, rows: int = 5, seed: int = 2) -> torch.Tensor:
    return torch.randn(rows, config.steps, EXISTING, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------------- schedules


def test_the_linear_schedule_grows_evenly_and_forgets_the_start():
    assert variances(DiffusionConfig(steps=5)).tolist() == pytest.approx([0.02, 0.215, 0.41, 0.605, 0.8])
    for steps in (5, 10, 15):
        assert (1 - variances(DiffusionConfig(steps=steps))).prod() < 0.04
    usual = DiffusionConfig(steps=10, beta_min=1e-4, beta_max=0.02)
    assert (1 - variances(usual)).prod() == pytest.approx(0.904, abs=1e-3)


def test_the_variance_preserving_schedule_is_the_published_one():
    betas = variances(DiffusionConfig(steps=5, schedule="vp"))
    assert betas.tolist() == pytest.approx([0.196, 0.459, 0.636, 0.755, 0.835], abs=1e-3)
    for steps in (1, 5, 10, 15):
        left = (1 - variances(DiffusionConfig(steps=steps, schedule="vp"))).prod()
        assert left == pytest.approx(math.exp(-0.1 - 9.9 / 2), rel=1e-9)  # 0.0064, whatever the number of steps


def test_a_variance_that_shrinks_is_refused():
    with pytest.raises(ValidationError, match=r"beta_min = 0.9: expected at most beta_max = 0.8"):
        DiffusionConfig(beta_min=0.9)


# ---------------------------------------------------------------------------------------------------------------- equations


def test_the_factors_of_two_steps_by_hand():
    factors = {name: values.tolist() for name, values in chain_factors(TWO_STEPS).items()}
    assert factors["start"] == pytest.approx([1.118034, 1.581139])  # eq. 15: 1 / sqrt(.8), 1 / sqrt(.4)
    assert factors["removed"] == pytest.approx([0.5, 1.224745])  # sqrt(1 / .8 - 1), sqrt(1 / .4 - 1)
    assert factors["kept"] == pytest.approx([0.0, 0.235702], rel=1e-5)  # eq. 16: alpha-bar_0 = 1; sqrt(.5) * .2 / .6
    assert factors["drawn"] == pytest.approx([1.0, 0.745356], rel=1e-5)  # sqrt(.8) * .5 / .6
    assert factors["deviation"] == pytest.approx([0.0, 0.408248])  # eq. 19: (.2 / .6) * .5 = 1 / 6, and its root
    printed = chain_factors(TWO_STEPS.model_copy(update={"noise_scale": "paper"}))
    assert printed["deviation"].tolist() == pytest.approx([0.0, (1 / 12) ** 2])  # eq. 18 as printed


@pytest.mark.parametrize("schedule", ["linear", "vp"])
@pytest.mark.parametrize("steps", [1, 5, 10, 15])
def test_the_estimate_inverts_the_forward_process_and_its_mean_is_equation_17(steps, schedule):
    config = DiffusionConfig(steps=steps, schedule=schedule)
    beta, f = variances(config), {name: values.double() for name, values in chain_factors(config).items()}
    left = (1 - beta).cumprod(0)
    kappa_0, noise = 0.7, -0.4
    noisy = kappa_0 * left.sqrt() + noise * (1 - left).sqrt()  # eq. 14
    estimate = f["start"] * noisy - f["removed"] * noise
    torch.testing.assert_close(estimate, torch.full_like(estimate, kappa_0), atol=1e-5, rtol=0)
    x, predicted = 1.3, 0.6
    mean = f["kept"] * x + f["drawn"] * (f["start"] * x - f["removed"] * predicted)
    expected = (x - beta * predicted / (1 - left).sqrt()) / (1 - beta).sqrt()  # eq. 17
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
    assert f["deviation"][0] == 0.0  # the last step adds no noise


def predicting(config: DiffusionConfig, value: float) -> DiffusionActor:
    """An actor that predicts the same noise everywhere."""
    made = actor(config)
    with torch.no_grad():
        made.noise_layers[-2].weight.zero_()
        made.noise_layers[-2].bias.fill_(math.atanh(value))
    return made


def test_a_chain_of_two_steps_by_hand():
    noise = torch.zeros(1, 2, EXISTING)
    noise[:, 0], noise[:, 1] = 1.0, -2.0
    got = predicting(TWO_STEPS, 0.5).denoise(torch.zeros(1, HIDDEN + EXISTING), noise)
    # kappa_2 = 1; mean (1 - .5 * .5 / sqrt(.6)) / sqrt(.5) = .957779; kappa_1 = that - 2 * .408248 = .141283;
    # kappa_0 = (.141283 - .2 * .5 / sqrt(.2)) / sqrt(.8) = -.092041
    assert got.flatten().tolist() == pytest.approx([-0.092041] * EXISTING, abs=1e-5)


def test_the_estimate_of_the_scores_is_clipped():
    noise = torch.zeros(1, 2, EXISTING)
    noise[:, 0] = 10.0
    clipped = predicting(TWO_STEPS.model_copy(update={"clip": 2.0}), 0.5)
    # the estimate at step 2 is 15.2, cut to 2: kappa_1 = 10 * .235702 + 2 * .745356 = 3.847737, whose estimate is cut again
    assert clipped.denoise(torch.zeros(1, HIDDEN + EXISTING), noise).flatten().tolist() == [2.0] * EXISTING


@pytest.mark.parametrize("schedule", ["linear", "vp"])
def test_one_step_without_noise_is_the_networks_output(schedule):
    config = DiffusionConfig(steps=1, schedule=schedule, hidden=8, clip=None)
    made, (hidden, heads) = actor(config), inputs()
    condition = torch.cat([hidden, heads.dense().flatten(1)[:, SPEC.choice_exists().flatten()]], dim=-1)
    beta = variances(config)
    factor = (beta / (1 - beta)).sqrt().float()
    mlp = made.noise_layers(made.condition_layer(condition) + made.time_layer(made.time(made._time)))  # ends in tanh
    torch.testing.assert_close(made.denoise(condition), -factor * mlp, rtol=1e-6, atol=0)
    assert torch.equal(made.denoise(condition), made.denoise(condition, torch.zeros(5, 1, EXISTING)))


# -------------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("schedule", ["linear", "vp"])
@pytest.mark.parametrize("steps", [5, 10, 15])
def test_scores_are_a_function_of_inputs_and_noise(steps, schedule):
    config = DiffusionConfig(steps=steps, schedule=schedule, hidden=8)
    made, (hidden, heads), noise = actor(config), inputs(), noise_for(config)
    got = made(hidden, heads, noise).dense()
    assert torch.equal(made(hidden, heads, noise).dense(), got)
    assert got.shape == (5, 4, 4)
    assert got.isfinite().all()
    assert got.abs().max() <= config.clip
    assert not got[:, ~SPEC.choice_exists()].any()  # 0 where there is no choice
    assert (got[:, SPEC.choice_exists()] != 0).all()
    for k in range(steps):  # each of the drawn numbers counts
        other = noise.clone()
        other[:, k] += 0.5
        assert not torch.equal(made(hidden, heads, other).dense(), got)


def test_without_noise_scores_are_those_of_zeros():
    config = DiffusionConfig(hidden=8)
    made, (hidden, heads) = actor(config), inputs()
    zeros = torch.zeros(5, config.steps, EXISTING)
    torch.testing.assert_close(made(hidden, heads).dense(), made(hidden, heads, zeros).dense(), rtol=0, atol=1e-6)


def test_steps_are_told_apart():
    config = DiffusionConfig(hidden=8)
    time = actor(config)._time
    assert time.shape == (10, 16)
    assert time[0, 0] == pytest.approx(math.sin(1.0))
    assert time[2, 15] == pytest.approx(math.cos(3e-4))
    assert len(time.unique(dim=0)) == 10


@pytest.mark.parametrize("schedule", ["linear", "vp"])
def test_gradients_reach_every_parameter_of_the_team(schedule):
    torch.manual_seed(5)
    diffusion = DiffusionConfig(steps=5, schedule=schedule, hidden=16)
    net = TeamNetwork(SPEC, NetworkConfig(hidden=16, entity_hidden=8, diffusion=diffusion))
    generator = torch.Generator().manual_seed(6)
    observation = torch.rand(4, 3, 2, 7, generator=generator)
    observation[..., 3:5] = observation[..., 3:5].round()
    previous = torch.randint(0, 2, (4, 3, 2, 4), generator=generator)
    noise = torch.randn(4, 3, 2, 5, EXISTING, generator=generator)
    out = net(observation.half(), previous, torch.rand(4, 2, 16, generator=generator), denoising=noise)
    (out.scores.softmax(-1).log().square().sum() + out.value.sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
