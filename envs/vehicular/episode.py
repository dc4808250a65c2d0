"""All that happens to an episode whatever the edges decide, drawn at once when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from envs import random
from envs.errors import InputError
from envs.vehicular import compute, radio
from envs.vehicular.scenario import VehicularScenario
from envs.vehicular.traces import Trace

CHUNK_ELEMENTS = 1 << 16  # draws are made for so many requests at a time, which fits a core's cache
QUANTILES = 4096


class Stream(IntEnum):
    """First counter of every draw: what it is for."""

    START = 0
    COLUMN = 1
    REQUEST = 2
    CHANNEL = 3
    OUTAGE = 4
    LINK_LOSS = 5


@dataclass(frozen=True)
class Episode:
    """Exogenous quantities of E episodes, one slot more than the horizon (for the observation after the last step).

    `[T+1, E, N]` each, N vehicles:

    Attributes:
        present: bool.
        own: int64, the edge whose radio the vehicle uses, M where only the macro cell reaches it (or it is absent).
        service: int64.
        size_mb, importance, demand_level, gain, cycles: float32; the gain is 0 where `own` is M.
        order: int64, vehicles by own edge, then by size times importance, largest first.
        first: `[T+1, E, M+1]` int64, where each edge's vehicles begin in that order (the last: where those of edges end).
        up: `[T+1, E, M]` bool, whether an edge works.
        link_factor: `[T+1, E, M+1]` float32, share of its rate that a node's wires have left; the cloud's is 1.
    """

    present: Tensor
    own: Tensor
    service: Tensor
    size_mb: Tensor
    importance: Tensor
    demand_level: Tensor
    gain: Tensor
    cycles: Tensor
    order: Tensor
    first: Tensor
    up: Tensor
    link_factor: Tensor


class EpisodeSource:
    """Draws episodes of a scenario from a trace.

    An episode is a window of the trace: its first slot is uniform over the windows in which at least one vehicle is ever
    present; its N vehicles are a uniformly random subset of those present in the window, filled up with absent ones.

    Raises:
        InputError: The trace has fewer slots or vehicles than the scenario needs, or is empty in every window.
    """

    def __init__(self, scenario: VehicularScenario, trace: Trace, edges_m: Tensor, device: torch.device | str = "cpu") -> None:
        self.scenario, self.device = scenario, torch.device(device)
        slots, vehicles = trace.present.shape
        if slots < scenario.horizon_slots or vehicles < scenario.num_vehicles:
            raise InputError(
                f"{trace.source}: {slots} slots of {vehicles} vehicles, "
                f"but the scenario needs at least {scenario.horizon_slots} slots (horizon_slots) "
                f"and {scenario.num_vehicles} vehicles (num_vehicles)"
            )
        self._edges_m = edges_m.float()
        self._present = trace.present.to(self.device)
        self._own, self._path_gain = self._links(trace.positions, trace.present)
        seen = torch.cat([torch.zeros(1, vehicles), trace.present.float().cumsum(0)])
        in_window = (seen[scenario.horizon_slots :] - seen[: slots - scenario.horizon_slots + 1]) > 0
        starts = in_window.any(1).nonzero().flatten()
        if len(starts) == 0:
            raise InputError(f"{trace.source}: no vehicle is present in any window of {scenario.horizon_slots} slots")
        self._starts, self._in_window = starts.to(self.device), in_window.to(self.device)
        self._services = torch.tensor(np.cumsum(scenario.service_probabilities)[:-1], dtype=torch.float32, device=self.device)
        self._fading = _fading_quantiles(scenario.fading_blocks).to(self.device)
        self._importance = _beta_quantiles(scenario.importance_alpha, scenario.importance_beta).to(self.device)

    def _links(self, positions: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """The edge in whose radius vehicles at `[..., V, 2]` are, M outside all, and the gain of the path to it: `[..., V]`."""
        s = self.scenario
        distance_m, nearest = torch.cdist(positions, self._edges_m).min(-1)
        covered = present & (distance_m <= s.coverage_radius_m)
        path = radio.channel_gain(distance_m.clamp(min=s.min_distance_m), 1.0, s.reference_gain, s.path_loss_exponent)
        return torch.where(covered, nearest, s.num_edges).to(self.device), (path * covered).to(self.device)

    def move(self, slot: int, positions: Tensor, present: Tensor) -> None:
        """Puts the trace's V vehicles elsewhere in one of its slots, for episodes that are drawn from now on.

        Args:
            positions: `[V, 2]` float32, metres.
            present: `[V]` bool. Which windows of the trace episodes are drawn from, and which vehicles, does not change.
        """
        self._present[slot] = present.to(self.device)
        self._own[slot], self._path_gain[slot] = self._links(positions, present)

    def draw(self, seeds: Tensor) -> Episode:
        """The episodes of `seeds [E]`."""
        s = self.scenario
        seeds = seeds.to(self.device)
        start, columns = self._window(seeds)
        up, link_factor = self._faults(seeds)
        slots = s.horizon_slots + 1
        step = max(1, CHUNK_ELEMENTS // columns.numel())
        spans = [(first, min(first + step, slots)) for first in range(0, slots, step)]
        chunks = [self._chunk(seeds, start, columns, up, a, b) for a, b in spans]
        drawn = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
        return Episode(*drawn, *[up, link_factor])

    def _window(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """First slot `[E]` and vehicles `[E, N]` of each episode."""
        start = self._starts[random.randint(len(self._starts), seeds, Stream.START)]
        candidates = torch.arange(self._present.shape[1], device=self.device)
        lot = random.hash_bits(seeds[:, None], Stream.COLUMN, candidates) >> 1
        lot = lot | (~self._in_window[start]).long() << 62  # vehicles that never show up come last
        return start, lot.sort(dim=1).indices[:, : self.scenario.num_vehicles]

    def _faults(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        s, slots = self.scenario, self.scenario.horizon_slots + 1
        shape = (slots, len(seeds), s.num_edges)
        up = torch.ones(shape, dtype=torch.bool, device=self.device)
        if s.edge_down_probability:
            up = ~_intervals(seeds, Stream.OUTAGE, shape, s.edge_down_probability, s.edge_down_slots)
        factor = torch.ones(slots, len(seeds), s.num_edges + 1, device=self.device)
        if s.link_loss_probability:
            lossy = _intervals(seeds, Stream.LINK_LOSS, shape, s.link_loss_probability, s.link_loss_slots)
            factor[..., :-1] -= s.link_loss_fraction * lossy
        return up, factor

    def _chunk(self, seeds: Tensor, start: Tensor, columns: Tensor, up: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """The slots `first .. last-1` of everything that `Episode` lists before the faults."""
        s, cloud = self.scenario, self.scenario.num_edges
        slot = torch.arange(first, last, device=self.device)[:, None, None]
        # The observation after the last step shows the last slot's positions: a trace need not be longer than the horizon.
        row = start[:, None] + slot.clamp(max=s.horizon_slots - 1)
        present, own, path_gain = self._present[row, columns], self._own[row, columns], self._path_gain[row, columns]
        if s.edge_down_probability:
            alive = torch.nn.functional.pad(up[first:last], (0, 1))
            own = torch.where(alive.gather(2, own), own, cloud)
        vehicle = torch.arange(s.num_vehicles, device=self.device)
        kind, size, importance = _thirds(random.hash_bits(seeds[:, None], Stream.REQUEST, slot, vehicle))
        demand, fading, _ = _thirds(random.hash_bits(seeds[:, None], Stream.CHANNEL, slot, vehicle))

        service = torch.bucketize(kind, self._services, right=True)
        size_mb = (s.size_median_mb * torch.exp(s.size_sigma * _normal(size))).clamp(max=s.size_max_mb)
        # Not `pow`: its last bit depends on an element's place in the tensor, and so on the number of rows.
        importance = torch.exp(torch.log(_quantile(self._importance, importance)) / s.importance_alpha)
        gain = (path_gain * _quantile(self._fading, fading)).masked_fill(own == cloud, 0.0)
        order = (own * (s.size_max_mb + 1.0) - (size_mb * importance).double()).sort(dim=2, stable=True).indices
        counts = torch.zeros(*own.shape[:2], cloud + 1, dtype=torch.int64, device=self.device)
        counts.scatter_add_(2, own, torch.ones_like(own))
        before = counts.cumsum(2) - counts
        cycles = compute.request_cycles(size_mb, importance, s.cycles_per_mb_importance)
        return present, own, service, size_mb, importance, demand * s.demand_max, gain, cycles, order, before


def _quantile(table: Tensor, u: Tensor) -> Tensor:
    """A draw by inversion, linear between the `[QUANTILES + 1]` tabulated quantiles."""
    place = u * QUANTILES
    index = place.long()
    low, high = table[index], table[index + 1]
    return low + (high - low) * (place - index)


def _beta_quantiles(alpha: float, beta: float) -> Tensor:
    """`[QUANTILES + 1]`: for u = 0 .. 1, `x^alpha` with `P(X < x) = u` for X ~ Beta(alpha, beta), beta >= 1.

    In `w = x^alpha` the density is `(1 - w^(1/alpha))^(beta-1)`, bounded even where that of x is not: the trapezoid
    rule and linear interpolation are accurate.
    """
    w = np.linspace(0.0, 1.0, 64 * QUANTILES + 1)
    density = (1.0 - w ** (1.0 / alpha)) ** (beta - 1.0)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return torch.tensor(np.interp(np.linspace(0.0, 1.0, QUANTILES + 1), mass / mass[-1], w), dtype=torch.float32)


def _fading_quantiles(blocks: int) -> Tensor:
    """`[QUANTILES + 1]`: quantiles of the mean of `blocks` exponentials of mean 1 (an Erlang distribution).

    The last is not infinite but such that linear interpolation keeps the mean of the tail beyond the last but one.
    """
    x = np.concatenate([[0.0], np.geomspace(1e-9, 40.0, 64 * QUANTILES)])
    term = np.exp(-blocks * x)
    survival = term.copy()
    for n in range(1, blocks):
        term = term * blocks * x / n
        survival += term
    quantiles = np.interp(np.linspace(0.0, 1.0, QUANTILES + 1), 1.0 - survival, x)
    beyond = x > quantiles[-2]
    excess = np.trapezoid(survival[beyond], x[beyond]) * QUANTILES  # mean of X - x given X > x, x the last but one
    quantiles[-1] = quantiles[-2] + 2.0 * excess
    return torch.tensor(quantiles, dtype=torch.float32)


def _thirds(bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three uniforms in (0, 1) from 63 random bits."""
    mask, unit = (1 << 21) - 1, 2.0**-21
    return (
        ((bits & mask).float() + 0.5) * unit,
        (((bits >> 21) & mask).float() + 0.5) * unit,
        ((bits >> 42).float() + 0.5) * unit,
    )


def _normal(u: Tensor) -> Tensor:
    """Standard normal by inversion."""
    return torch.erfinv(2.0 * u - 1.0) * 2.0**0.5


def _intervals(seeds: Tensor, stream: Stream, shape: tuple[int, int, int], probability: float, length: int) -> Tensor:
    """`[T, E, M]` bool: True in the `length` slots from each start on, and an edge's starts have the given chance per slot."""
    slot = torch.arange(shape[0], device=seeds.device)[:, None, None]
    starts = random.uniform(seeds[:, None], stream, slot, torch.arange(shape[2], device=seeds.device)) < probability
    begun = starts.long().cumsum(0)
    ended = torch.zeros_like(begun)
    ended[length:] = begun[:-length] if length < shape[0] else 0
    return begun > ended
