"""From an observation in physical units to the vectors that a network reads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from envs.errors import InputError
from envs.team import UNBOUNDED_CLIP, ActionHead, Field, TeamSpec
from models.dag_encoder import DagEncoder
from models.request_encoder import RequestEncoder, RequestEncoderConfig


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
        here = torch.device("cpu")
        self._scales = {here: _Scales.of(self.slices.values(), here)}

    def __call__(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Fields `[E, N, *shape]` to `[E, N, D]` float16.

        All fields are scaled at once, number by number as `Field.scaled` does, because a decision for a single team consists of
        little else than the overhead of its operations.
        """
        fields = [observation[name] for name in self.slices]
        numbers = torch.cat([field.to(torch.float32).reshape(*field.shape[:2], -1) for field in fields], dim=-1)
        if numbers.device not in self._scales:
            self._scales[numbers.device] = _Scales.of(self.slices.values(), numbers.device)
        scales = self._scales[numbers.device]
        scaled = numbers.clamp(scales.least, scales.largest).sub_(scales.low).div_(scales.span)
        logarithms = scaled.index_select(-1, scales.logarithmic).log1p_().div_(scales.log_span)
        return scaled.index_copy_(-1, scales.logarithmic, logarithms).to(torch.float16)


@dataclass(frozen=True)
class _Scales:
    """How the numbers of a packed vector are scaled, `[D]` each.

    Attributes:
        least, largest: Limits of unbounded fields, infinite for others.
        low, span: What is subtracted, and what it is divided by then.
        logarithmic: `[L]` int64, the places where log1p comes next, and what its result is divided by, `log_span` `[L]`.
    """

    least: Tensor
    largest: Tensor
    low: Tensor
    span: Tensor
    logarithmic: Tensor
    log_span: Tensor

    @staticmethod
    def of(pieces: Iterable[_Slice], device: torch.device) -> _Scales:
        columns: list[tuple[float, float, float, float]] = []
        logarithmic: list[int] = []
        log_spans: list[float] = []
        for piece in pieces:
            field, size = piece.field, piece.stop - piece.start
            limit, low, span = math.inf, 0.0, 1.0
            if field.scale == "category":
                pass
            elif not (math.isfinite(field.low) and math.isfinite(field.high)):
                limit = UNBOUNDED_CLIP
            elif field.scale == "log":
                span = field.low
                logarithmic += range(piece.start, piece.stop)
                log_spans += [math.log1p(field.high / field.low)] * size
            else:
                low, span = field.low, (field.high - field.low) or 1.0
            columns += [(-limit, limit, low, span)] * size
        least, largest, low_of, span_of = (
            torch.tensor(columns, dtype=torch.float32, device=device).reshape(-1, 4).T.contiguous()
        )
        places = torch.tensor(logarithmic, dtype=torch.int64, device=device)
        return _Scales(least, largest, low_of, span_of, places, torch.tensor(log_spans, dtype=torch.float32, device=device))


@dataclass
class Members:
    """The members of one entity, of all agents and steps in one list.

    On the CPU the list leaves out members that do not exist, which are most of them. An accelerator keeps all, with weight 0:
    picking some would make the host wait for their number. So does an exported graph, whose shapes must not depend on the
    numbers (`ObservationEncoder.every_place`). Both ways give the same results.

    Attributes:
        place: `[M]` int64, their places in the flattened `[rows * capacity]`, where a row is one agent at one step.
        capacity: Members that a row has room for.
        weight: `[M]` float32, 1 for members that exist.
        vectors: `[M, entity_hidden]`, 0 for members that do not exist.
        picked: Whether only members that exist are in the list, so that all weights are 1.
    """

    place: Tensor
    capacity: int
    weight: Tensor
    vectors: Tensor
    picked: bool

    @property
    def row(self) -> Tensor:
        """`[M]` int64, the agent and step that each member belongs to."""
        return self.place // self.capacity


class Standardiser(nn.Module):
    """`(x - mean) / deviation` column by column, with statistics taken once, before learning; until then it changes nothing.

    A field's bounds are what can occur; what does occur is often a narrow part of them, which networks learn from slowly.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Takes mean and deviation of `[rows, size]`; columns that hardly vary are only shifted."""
        if len(x) < 2:
            return
        deviation, mean = torch.std_mean(x, dim=0)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-3, 1.0 / deviation.clamp(min=1e-3), 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]`, at most 8 deviations away from the mean."""
        return (x - self.shift).mul_(self.scale).clamp_(-8.0, 8.0)


class ObservationEncoder(nn.Module):
    """One vector per agent, and one per member of each entity that an action head may refer to.

    Entity members share one network. The agent's plain fields are joined by the members' mean and by their sum over the
    capacity, so the encoding of the agent does not depend on the members' order. Where the members form a graph (a field with
    scale "adjacency"), graph convolutions add to each member what its neighbours tell, and to the agent the whole graph. Where
    there is a request encoder, what it makes of a plain field stands in the field's place.

    Attributes:
        every_place: True encodes members that do not exist too, on any device (see `Members`).
        graph_convolution: False leaves the edges out: the same layers, but every member hears itself only.
    """

    def __init__(
        self,
        spec: TeamSpec,
        hidden: int,
        entity_hidden: int,
        graph_size: int = 16,
        request: RequestEncoderConfig | None = None,
    ) -> None:
        """Raises `InputError` where `request` names no plain field of the observation."""
        super().__init__()
        self.every_place = False
        self.graph_convolution = True
        pieces = list(ObservationPacker(spec).slices.values())
        plain = [piece for piece in pieces if piece.field.entity is None]
        self._plain = _merged(plain)
        self._entities: dict[str, list[_Slice]] = {}
        self._edges: dict[str, _Slice] = {}
        for piece in pieces:
            if piece.field.entity is not None and piece.field.scale == "adjacency":
                self._edges[piece.field.entity] = piece
            elif piece.field.entity is not None:
                self._entities.setdefault(piece.field.entity, []).append(piece)
        sizes = {name: sum(_inputs(p.field, p.field.shape[1:]) for p in pieces) for name, pieces in self._entities.items()}
        self.entity_standards = nn.ModuleDict({name: Standardiser(size) for name, size in sizes.items()})
        self.entity_networks = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(size, entity_hidden), nn.ReLU()) for name, size in sizes.items()}
        )
        self.graphs = nn.ModuleDict({name: DagEncoder(entity_hidden, entity_hidden, graph_size) for name in self._edges})
        plain_size = sum(_inputs(piece.field, piece.field.shape) for piece in plain)
        self.plain_standard = Standardiser(plain_size)
        self.request_encoder: RequestEncoder | None = None
        if request is not None:
            self._request = first, last = _columns(spec, request.field)
            self.request_encoder = RequestEncoder(last - first, request)
            plain_size += request.size - (last - first)
        size = plain_size + 2 * entity_hidden * len(self._entities) + graph_size * len(self._edges)
        self.network = nn.Sequential(nn.Linear(size, hidden), nn.ReLU())

    def forward(self, packed: Tensor) -> tuple[Tensor, dict[str, Members]]:
        """`[..., D]` float16 to `[..., hidden]`, and the members by entity name (rows: the leading dimensions)."""
        rows = packed.flatten(0, -2)
        inputs = [self._compressed(self.plain_standard(self._plain_inputs(rows)))]
        entities = {}
        for name, pieces in self._entities.items():
            place, weight, values = self._member_inputs(pieces, rows)
            vectors = self.entity_networks[name](self.entity_standards[name](values))
            picked = self._picks(rows)
            if not picked:
                vectors = vectors * weight.unsqueeze(-1)
            if name in self._edges:
                vectors, graph = self._with_neighbours(name, rows, place, weight, vectors)
                inputs.append(graph)
            entities[name] = members = Members(place, pieces[0].field.shape[0], weight, vectors, picked)
            row = members.row
            total = vectors.new_zeros(len(rows), vectors.shape[1]).index_add_(0, row, vectors)
            count = weight.new_zeros(len(rows)).index_add_(0, row, weight)
            inputs += [total / count.clamp(min=1.0).unsqueeze(-1), total / members.capacity]
        return self.network(torch.cat(inputs, dim=-1)).unflatten(0, packed.shape[:-1]), entities

    def _compressed(self, plain: Tensor) -> Tensor:
        """Plain inputs `[rows, plain_size]` with the request's columns replaced by what the request encoder makes of them."""
        if self.request_encoder is None:
            return plain
        first, last = self._request
        return torch.cat([plain[:, :first], self.request_encoder(plain[:, first:last]), plain[:, last:]], dim=-1)

    def _with_neighbours(
        self, name: str, rows: Tensor, place: Tensor, weight: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The members `[M, entity_hidden]` with what the graph adds to them, and the graphs `[rows, graph_size]`."""
        piece = self._edges[name]
        capacity = piece.field.shape[0]
        edges = rows[:, piece.start : piece.stop].to(torch.float32).view(len(rows), capacity, capacity)
        if not self.graph_convolution:
            edges = torch.zeros_like(edges)
        exists = weight.new_zeros(len(rows) * capacity).index_copy_(0, place, weight).view(len(rows), capacity)
        nodes = vectors.new_zeros(len(rows) * capacity, vectors.shape[1]).index_copy_(0, place, vectors)
        nodes, graph = self.graphs[name](nodes.view(len(rows), capacity, -1), edges, exists)
        return vectors + nodes.flatten(0, 1).index_select(0, place), graph

    def fit(self, packed: Tensor) -> None:
        """Takes the inputs' statistics from `[..., D]` observations, once, before learning."""
        rows = packed.flatten(0, -2)
        self.plain_standard.fit(self._plain_inputs(rows))
        for name, pieces in self._entities.items():
            _, weight, values = self._member_inputs(pieces, rows)
            cast(Standardiser, self.entity_standards[name]).fit(values[weight > 0])

    def _picks(self, rows: Tensor) -> bool:
        return rows.device.type == "cpu" and not self.every_place

    def _plain_inputs(self, rows: Tensor) -> Tensor:
        parts = [_expand(piece.field, rows[:, piece.start : piece.stop]) for piece in self._plain]
        return torch.cat(parts, dim=-1) if parts else rows.new_zeros(len(rows), 0, dtype=torch.float32)

    def _member_inputs(self, pieces: list[_Slice], rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places `[M]`, weights `[M]` and inputs `[M, inputs]` of one entity's members in packed `rows` `[rows, D]`."""
        capacity = pieces[0].field.shape[0]
        values = [rows[:, piece.start : piece.stop].reshape(len(rows) * capacity, -1) for piece in pieces]
        exists = torch.ones(len(rows) * capacity, dtype=torch.bool, device=rows.device)
        for piece, value in zip(pieces, values, strict=True):
            if piece.field.scale == "category" and piece.field.low < 0:
                exists = exists & (value >= 0).all(-1)
        place = exists.nonzero().squeeze(-1) if self._picks(rows) else torch.arange(len(exists), device=rows.device)
        inputs = [_expand(piece.field, value[place]) for piece, value in zip(pieces, values, strict=True)]
        return place, exists[place].to(torch.float32), torch.cat(inputs, dim=-1)


def _merged(pieces: list[_Slice]) -> list[_Slice]:
    """The same places of the vector in fewer slices: neighbours are read at once where they are numbers, not categories."""
    merged: list[_Slice] = []
    for piece in pieces:
        before = merged[-1] if merged else None
        if before and before.stop == piece.start and "category" not in (before.field.scale, piece.field.scale):
            merged[-1] = _Slice(before.field, before.start, piece.stop)
        else:
            merged.append(piece)
    return merged


def _columns(spec: TeamSpec, name: str | None) -> tuple[int, int]:
    """First and last column (exclusive) of a field among the plain inputs; of all plain fields where `name` is None."""
    sizes = {plain: _inputs(field, field.shape) for plain, field in spec.observation.items() if field.entity is None}
    if not sizes:
        raise InputError(f"network.request_encoder: {spec.scenario} has no plain field that it could read")
    if name is None:
        return 0, sum(sizes.values())
    if name not in sizes:
        known = ", ".join(sizes)
        raise InputError(
            f"network.request_encoder.field = {name!r}: expected a plain field of {spec.scenario}, {known}; or null"
        )
    names = list(sizes)
    first = sum(sizes[before] for before in names[: names.index(name)])
    return first, first + sizes[name]


def _capacity(spec: TeamSpec, entity: str | None) -> int:
    return next(field.shape[0] for field in spec.observation.values() if field.entity == entity)


def _inputs(field: Field, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * field.depth


def _expand(field: Field, values: Tensor) -> Tensor:
    """Packed numbers `[rows, k]` as a network reads them: float32, categories one-hot, `[rows, k * depth]`."""
    if field.scale == "category":
        return (values.unsqueeze(-1) == torch.arange(field.depth, device=values.device)).flatten(1).to(torch.float32)
    return values.to(torch.float32)


class ActionEncoder(nn.Module):
    """What an agent did, as a short vector: for each head the share of its branches that took each choice (no parameters)."""

    _first: Tensor  # [H], where the choices of each branch's head begin
    _branches: Tensor  # [sum of choices], branches of the head of each choice

    def __init__(self, spec: TeamSpec) -> None:
        super().__init__()
        self._heads = spec.heads
        self.size = sum(head.choices for head in spec.heads)
        ends = itertools.accumulate(head.choices for head in spec.heads)
        first = [end - head.choices for end, head in zip(ends, spec.heads, strict=True) for _ in range(head.count)]
        branches = [float(head.count) for head in spec.heads for _ in range(head.choices)]
        self.register_buffer("_first", torch.tensor(first), persistent=False)
        self.register_buffer("_branches", torch.tensor(branches), persistent=False)

    def forward(self, actions: Tensor) -> Tensor:
        """`[..., H]` integers, -1 for "no action yet" (encoded as zeros), to `[..., sum of choices]` float32."""
        place = torch.where(actions < 0, self.size, actions + self._first)  # those that are none count in a place of their own
        counts = torch.zeros((*actions.shape[:-1], self.size + 1), device=actions.device)
        counts = counts.scatter_add(-1, place, torch.ones_like(place, dtype=torch.float32))
        return counts[..., :-1] / self._branches

    def soft(self, choices: Tensor) -> Tensor:
        """The same of weights for the choices, `[..., H, C]` float32: one-hot ones give what `forward` gives of the indices."""
        parts = choices.split([head.count for head in self._heads], dim=-2)
        shares = [part[..., : head.choices].mean(-2) for part, head in zip(parts, self._heads, strict=True)]
        return torch.cat(shares, dim=-1)


@dataclass
class BranchScores:
    """The scores of all branches in one list, which leaves out the branches of members that are not in the list of `Members`.

    Attributes:
        place: `[P]` int64, their places in the flattened `[rows * H]`, where a row is one agent at one step.
        values: `[P, C]`, 0 for choices beyond a branch and for members that do not exist.
        shape: `(..., H)`, of all branches.
    """

    place: Tensor
    values: Tensor
    shape: tuple[int, ...]

    @staticmethod
    def everywhere(scores: Tensor) -> BranchScores:
        """All branches of dense scores `[..., H, C]`."""
        shape = scores.shape[:-1]
        return BranchScores(torch.arange(shape.numel(), device=scores.device), scores.flatten(0, -2), shape)

    def dense(self) -> Tensor:
        """`[..., H, C]`, 0 for branches that are not in the list."""
        everywhere = self.values.new_zeros(math.prod(self.shape), self.values.shape[-1])
        return everywhere.index_copy_(0, self.place, self.values).unflatten(0, self.shape)

    def listed(self, x: Tensor) -> Tensor:
        """What `[..., H]` or `[..., H, C]` says of the branches in the list: `[P]` or `[P, C]`."""
        return x.flatten(0, len(self.shape) - 1).index_select(0, self.place)

    def spread(self, listed: Tensor, elsewhere: Tensor) -> Tensor:
        """`[P]` and, for the other branches, `[..., H]` to `[..., H]`."""
        return elsewhere.flatten().index_copy(0, self.place, listed).view(self.shape)

    def totals(self, choices: Tensor, counts: Tensor) -> Tensor:
        """Sums over the branches, `[...]`, of the scores of the `choices` `[P]` where it `counts` `[P]`."""
        scores = self.values.gather(-1, choices.unsqueeze(-1)).squeeze(-1) * counts
        rows = scores.new_zeros(math.prod(self.shape[:-1])).index_add_(0, self.place // self.shape[-1], scores)
        return rows.view(self.shape[:-1])


class BranchHeads(nn.Module):
    """A score for every choice of every branch (Tavakoli et al. 2018: one branch per action dimension), and a value.

    Branches that belong to an entity's members share one network that reads the agent's vector and the member's; so do the
    choices of a branch that picks one of the members.
    """

    def __init__(self, spec: TeamSpec, hidden: int, entity_hidden: int) -> None:
        super().__init__()
        self._heads = spec.heads
        self._branches = spec.num_branches
        self._max_choices = spec.max_choices
        self.agent_layers = nn.ModuleDict()
        self.entity_layers = nn.ModuleDict()
        self.outputs = nn.ModuleDict()
        for head in spec.heads:
            if head.entity or head.members:
                self.agent_layers[head.name] = nn.Linear(hidden, entity_hidden)
                self.entity_layers[head.name] = nn.Linear(entity_hidden, entity_hidden, bias=False)
                options = head.choices if head.entity else head.choices // _capacity(spec, head.members)
                self.outputs[head.name] = nn.Linear(entity_hidden, options)
            else:
                self.outputs[head.name] = nn.Linear(hidden, head.count * head.choices)
        self.value = nn.Linear(hidden, 1)

    def forward(self, hidden: Tensor, entities: dict[str, Members]) -> tuple[Tensor, Tensor]:
        """`[..., hidden]` and the members by entity to scores `[..., H, C]` and value `[...]`.

        Scores are 0 for choices beyond a branch and for branches of members that do not exist.
        """
        branches, value = self.listed(hidden, entities)
        return branches.dense(), value

    def listed(self, hidden: Tensor, entities: dict[str, Members]) -> tuple[BranchScores, Tensor]:
        """As `forward`, with the scores in a list."""
        rows = hidden.flatten(0, -2)
        first = torch.arange(0, len(rows) * self._branches, self._branches, device=rows.device)
        places, values, start = [], [], 0
        for head in self._heads:
            if head.entity:
                members = entities[head.entity]
                places.append(members.place + members.row * (self._branches - members.capacity) + start)
                scores = self._member_scores(head, rows, members)
            else:
                places.append((first[:, None] + torch.arange(start, start + head.count, device=rows.device)).flatten())
                scores = self._branch_scores(head, rows, entities)
            missing = self._max_choices - head.choices
            values.append(F.pad(scores, (0, missing)) if missing else scores)
            start += head.count
        shape = (*hidden.shape[:-1], self._branches)
        return BranchScores(torch.cat(places), torch.cat(values), shape), self.value(hidden).squeeze(-1)

    def _branch_scores(self, head: ActionHead, rows: Tensor, entities: dict[str, Members]) -> Tensor:
        """`[rows, hidden]` to `[rows * count, choices]`, for branches that every agent has."""
        if head.members is None:
            return self.outputs[head.name](rows).view(-1, head.choices)
        members = entities[head.members]
        scores = self._member_scores(head, rows, members)
        pairs = scores.new_zeros(len(rows) * members.capacity, scores.shape[1]).index_copy_(0, members.place, scores)
        return pairs.view(len(rows), head.choices)

    def _member_scores(self, head: ActionHead, rows: Tensor, members: Members) -> Tensor:
        """`[rows, hidden]` to `[M, choices]`, or `[M, options]` of a head that picks members."""
        mixed = self.agent_layers[head.name](rows).index_select(0, members.row)
        mixed = mixed.add_(self.entity_layers[head.name](members.vectors)).relu_()
        scores = self.outputs[head.name](mixed)
        return scores if members.picked else scores * members.weight.unsqueeze(-1)
