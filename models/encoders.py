"""From an observation in physical units to the vectors that a network reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from envs.team import Field, TeamSpec

_UNBOUNDED_CLIP = 1e4  # stays inside float16


def _scale(field: Field, values: Tensor) -> Tensor:
    """The field's values in about [0, 1] (categories and unbounded fields: unchanged), see `Field.scale`."""
    if field.scale == "category":
        return values
    if not (math.isfinite(field.low) and math.isfinite(field.high)):
        return values.clamp(-_UNBOUNDED_CLIP, _UNBOUNDED_CLIP)
    if field.scale == "log":
        smallest = field.low if field.low > 0 else field.high * 1e-3
        return torch.log1p(values / smallest) / math.log1p(field.high / smallest)
    return (values - field.low) / (field.high - field.low)


@dataclass(frozen=True)
class _Slice:
    """Where one field lies in the packed vector."""

    field: Field
    start: int
    stop: int


class ObservationPacker:
    """Scales an observation and packs it into one float16 vector per agent.

    The runner packs once; networks, replay and learner all read the packed form, so that acting and learning see the same bits
    and replay needs half the memory. Categories stay indices (exact in float16 up to 2048) and become one-hot in the encoder.
    """

    def __init__(self, spec: TeamSpec) -> None:
        self.slices: dict[str, _Slice] = {}
        start = 0
        for name, field in spec.observation.items():
            size = math.prod(field.shape)
            self.slices[name] = _Slice(field, start, start + size)
            start += size
        self.size = start

    def __call__(self, observation: dict[str, Tensor]) -> Tensor:
        """Fields `[E, N, *shape]` to `[E, N, D]` float16."""
        parts = [
            _scale(piece.field, observation[name].to(torch.float32)).flatten(2).to(torch.float16)
            for name, piece in self.slices.items()
        ]
        return torch.cat(parts, dim=-1)


class ObservationEncoder(nn.Module):
    """One vector per agent, and one per member of each entity that an action head or attention may refer to.

    Entity members share one network; their mean and maximum join the agent's plain fields, so the encoding of the agent does
    not depend on the members' number or order.
    """

    def __init__(self, spec: TeamSpec, hidden: int, entity_hidden: int) -> None:
        super().__init__()
        packer = ObservationPacker(spec)
        self.packed_size = packer.size
        self._plain = [piece for piece in packer.slices.values() if piece.field.entity is None]
        self._entities: dict[str, list[_Slice]] = {}
        for piece in packer.slices.values():
            if piece.field.entity is not None:
                self._entities.setdefault(piece.field.entity, []).append(piece)
        self.entity_networks = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(sum(_member_size(p.field) for p in pieces), entity_hidden), nn.ReLU())
                for name, pieces in self._entities.items()
            }
        )
        plain_size = sum(math.prod(p.field.shape) * _depth(p.field) for p in self._plain)
        self.network = nn.Sequential(nn.Linear(plain_size + 2 * entity_hidden * len(self._entities), hidden), nn.ReLU())

    def forward(self, packed: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`[..., D]` float16 to `[..., hidden]` and entity name to `[..., members, entity_hidden]`."""
        packed = packed.to(torch.float32)
        inputs = [_expand(piece, packed).flatten(packed.dim() - 1) for piece in self._plain]
        entities = {}
        for name, pieces in self._entities.items():
            members = torch.cat([_expand(p, packed).flatten(packed.dim()) for p in pieces], dim=-1)
            entities[name] = self.entity_networks[name](members)
            inputs += [entities[name].mean(-2), entities[name].amax(-2)]
        return self.network(torch.cat(inputs, dim=-1)), entities


def _depth(field: Field) -> int:
    """Inputs per number of the field: one-hot length for categories ("none", -1, is all zeros)."""
    return int(field.high) + 1 if field.scale == "category" else 1


def _member_size(field: Field) -> int:
    return math.prod(field.shape[1:]) * _depth(field)


def _expand(piece: _Slice, packed: Tensor) -> Tensor:
    """The piece of `[..., D]` as `[..., *shape]`, or `[..., *shape, classes]` for a category."""
    values = packed[..., piece.start : piece.stop].unflatten(-1, piece.field.shape or (1,))
    if piece.field.scale != "category":
        return values
    index = values.to(torch.int64)
    return F.one_hot(index.clamp(min=0), _depth(piece.field)).to(torch.float32) * (index >= 0).unsqueeze(-1)


class ActionEncoder(nn.Module):
    """What an agent did, as a short vector: for each head the share of its branches that took each choice (no parameters)."""

    def __init__(self, spec: TeamSpec) -> None:
        super().__init__()
        self.size = sum(head.choices for head in spec.heads)
        self._heads = [(head.count, head.choices) for head in spec.heads]

    def forward(self, actions: Tensor) -> Tensor:
        """`[..., H]` integers, -1 for "no action yet" (encoded as zeros), to `[..., sum of choices]` float32."""
        actions = actions.to(torch.int64)
        taken = (actions >= 0).to(torch.float32)
        parts, start = [], 0
        for count, choices in self._heads:
            piece = slice(start, start + count)
            one_hot = F.one_hot(actions[..., piece].clamp(min=0), choices).to(torch.float32)
            parts.append((one_hot * taken[..., piece, None]).mean(-2))
            start += count
        return torch.cat(parts, dim=-1)


class BranchHeads(nn.Module):
    """A score for every choice of every branch (Tavakoli et al. 2018: one branch per action dimension), and a value.

    Branches that belong to an entity's members share one network that reads the agent's vector and the member's.
    """

    def __init__(self, spec: TeamSpec, hidden: int, entity_hidden: int) -> None:
        super().__init__()
        self._heads = spec.heads
        self._max_choices = spec.max_choices
        self.agent_layers = nn.ModuleDict()
        self.entity_layers = nn.ModuleDict()
        self.outputs = nn.ModuleDict()
        for head in spec.heads:
            if head.entity:
                self.agent_layers[head.name] = nn.Linear(hidden, entity_hidden)
                self.entity_layers[head.name] = nn.Linear(entity_hidden, entity_hidden, bias=False)
                self.outputs[head.name] = nn.Linear(entity_hidden, head.choices)
            else:
                self.outputs[head.name] = nn.Linear(hidden, head.count * head.choices)
        self.value = nn.Linear(hidden, 1)

    def forward(self, hidden: Tensor, entities: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`[..., hidden]` and `[..., members, entity_hidden]` to scores `[..., H, C]` (0 beyond a branch) and value `[...]`."""
        scores = []
        for head in self._heads:
            if head.entity:
                mixed = self.agent_layers[head.name](hidden).unsqueeze(-2) + self.entity_layers[head.name](
                    entities[head.entity]
                )
                out = self.outputs[head.name](F.relu(mixed))
            else:
                out = self.outputs[head.name](hidden).unflatten(-1, (head.count, head.choices))
            scores.append(F.pad(out, (0, self._max_choices - head.choices)))
        return torch.cat(scores, dim=-2), self.value(hidden).squeeze(-1)
