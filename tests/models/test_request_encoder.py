"""The request encoder: what it reads, what it makes of it, and whose place it takes."""

import pytest
import torch
from pydantic import ValidationError

from envs.errors import InputError
from envs.team import ActionHead, Field, TeamSpec
from models.encoders import ObservationEncoder
from models.request_encoder import RequestEncoder, RequestEncoderConfig
from models.team_network import NetworkConfig, make_team_network

CONFIG = RequestEncoderConfig(patches=4, width=6, heads=3, layers=2, linear=8, size=5)
OBSERVATION = {
    "kind": Field((1,), 0, 2, scale="category"),
    "request": Field((10,), -1.0, 1.0),
    "load": Field((2,), 0.0, 1.0),
    "size": Field((3,), 0.0, 1.0, entity="job"),
}
SPEC = TeamSpec("test", "test/requests", ("a", "b"), OBSERVATION, (ActionHead("level", 2),), state_size=1, max_steps=4)


def observation(seed: int = 0) -> torch.Tensor:
    """`[7, D]` packed: kind, request, load, size."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 3, (7, 1), generator=generator)
    return torch.cat([kind, torch.randn(7, 15, generator=generator)], dim=-1).to(torch.float16)


def encoder(field: str | None = "request") -> ObservationEncoder:
    torch.manual_seed(1)
    return ObservationEncoder(SPEC, 8, 4, request=CONFIG.model_copy(update={"field": field}))


def test_patches_are_padded_to_a_whole_number():
    torch.manual_seed(0)
    made = RequestEncoder(10, CONFIG)
    assert made.patch.in_features == 3  # 10 numbers and two zeros in four patches
    x = torch.randn(7, 10)
    out = made(x)
    assert out.shape == (7, 5)
    assert out.abs().max() < 1.0
    assert torch.equal(made(x), out)
    for k in range(10):  # each number counts
        moved = x.clone()
        moved[:, k] += 1.0
        assert (made(moved) != out).any()


def test_the_place_of_a_patch_matters():
    torch.manual_seed(0)
    made = RequestEncoder(12, CONFIG)
    made.linear[0].weight.data = made.linear[0].weight.data[:, :6].repeat(1, 4)  # what follows treats all patches alike
    x = torch.randn(3, 12)
    swapped = x.unflatten(1, (4, 3)).flip(1).flatten(1)
    assert not torch.allclose(made(swapped), made(x), atol=1e-4)
    made.position.data.zero_()
    torch.testing.assert_close(made(swapped), made(x))


def test_five_linear_layers_and_signals_that_survive_them():
    torch.manual_seed(0)
    made = RequestEncoder(384, RequestEncoderConfig())
    assert sum(isinstance(part, torch.nn.Linear) for part in made.linear) == 5
    assert made(torch.randn(200, 384)).std(0).mean() > 0.2
    assert made(torch.randn(200, 384)).shape == (200, 30)


def test_it_reads_one_field_and_stands_in_its_place():
    made, packed = encoder(), observation()
    plain = made._plain_inputs(packed)
    compressed = made._compressed(plain)
    assert plain.shape == (7, 3 + 10 + 2)
    assert torch.equal(compressed[:, :3], plain[:, :3])
    assert torch.equal(compressed[:, 3:8], made.request_encoder(packed[:, 1:11].float()))
    assert torch.equal(compressed[:, 8:], plain[:, 13:])
    assert made(packed)[0].shape == (7, 8)


def test_without_a_field_it_reads_all_plain_ones():
    made, packed = encoder(None), observation()
    compressed = made._compressed(made._plain_inputs(packed))
    assert torch.equal(compressed, made.request_encoder(made._plain_inputs(packed)))
    assert made(packed)[0].shape == (7, 8)


def test_it_reads_standardised_numbers():
    made, packed = encoder(), observation()
    before = made(packed)[0]
    made.fit(torch.cat([observation(seed) * 3 + 1 for seed in range(5)]))
    assert not torch.allclose(made(packed)[0], before, atol=1e-3)
    large = made(packed * 1000)[0]
    assert large.isfinite().all()


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_reach_every_parameter(shared):
    torch.manual_seed(2)
    net = make_team_network(SPEC, NetworkConfig(hidden=8, entity_hidden=4, shared=shared, request_encoder=CONFIG))
    packed = observation()[:4].view(1, 2, 2, -1).expand(3, -1, -1, -1)
    out = net(packed, torch.full((3, 2, 2, 1), -1), net.initial_state(3))
    (out.scores.square().sum() + out.value.square().sum()).backward()
    named = [(name, p) for name, p in net.named_parameters() if "request_encoder" in name]
    assert len(named) > 20
    # a softmax does not see what is added to all keys: that third of a layer's input bias is 0 up to rounding
    assert [name for name, p in named if not p.grad.any()] == []


def test_fields_that_it_cannot_read_are_refused():
    with pytest.raises(
        InputError, match=r"request_encoder.field = 'prompt': expected a plain field of test/requests, kind, requ"
    ):
        encoder("prompt")
    with pytest.raises(InputError, match=r"request_encoder.field = 'size': expected a plain field"):
        encoder("size")
    jobs = {"size": OBSERVATION["size"]}
    spec = TeamSpec("test", "test/jobs", ("a",), jobs, (ActionHead("level", 2),), state_size=1, max_steps=4)
    with pytest.raises(InputError, match="test/jobs has no plain field"):
        ObservationEncoder(spec, 8, 4, request=RequestEncoderConfig(field=None))
    with pytest.raises(ValidationError, match="width = 40: expected a multiple of heads = 6"):
        RequestEncoderConfig(width=40)
