"""What is drawn for an episode, and every figure that follows from it before the first decision.

E  parallel episodes   I  tasks   J  places for subtasks   L  locations, the cloud last   G  graphs
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from envs import random
from envs.dag.pool import GraphPool, hosts, seconds_per_bit
from envs.dag.radio import path_gain, shannon_bps
from envs.dag.scenario import DagScenario
from envs.exact import on_grid


class Stream(IntEnum):
    """First counter of a random number."""

    GRAPH = 0
    INPUT = 1
    OUTPUT = 2
    DISTANCE = 3
    FAILURE = 4


@dataclass(frozen=True)
class Episode:
    """`[E, I, J]` or `[E, I, J, L]` float64 unless noted; times, costs and tolls lie on the grid of `timing.on_grid`.

    Attributes:
        graph: `[E, I]` int64, the task's graph in the pool.
        modality: int64, -1 in an empty place.
        allowed: `[E, I, J, L]` bool.
        uplink_bps, downlink_bps: `[E, I, L]`.
        input_s, compute_s, service_s, cost_usd: `[E, I, J, L]`, also where not allowed; 0 in empty places.
        return_s: `[E, I, J, L]`, of a subtask without successors, else 0.
        toll: `[E, I, J, L]`, what the reward takes for time and cost: gamma * service + (1 - gamma) * cost.
        rank_s: Upward rank, see `instance.upward_ranks`.
    """

    seeds: Tensor
    graph: Tensor
    modality: Tensor
    allowed: Tensor
    input_bits: Tensor
    output_bits: Tensor
    cycles: Tensor
    uplink_bps: Tensor
    downlink_bps: Tensor
    input_s: Tensor
    compute_s: Tensor
    service_s: Tensor
    cost_usd: Tensor
    return_s: Tensor
    toll: Tensor
    rank_s: Tensor


class EpisodeSource:
    """Draws episodes of one scenario."""

    def __init__(self, s: DagScenario, pool: GraphPool, device: torch.device) -> None:
        self._s, self._pool, self._device = s, pool, device
        self._hosts = hosts(s, device)
        self._hz = torch.tensor(s.location_hz, dtype=torch.float64, device=device)
        self._price = torch.tensor(s.location_usd_per_gcycle, dtype=torch.float64, device=device)
        # [K, K]: mean seconds per bit over the pairs of locations that host two modalities
        pairs = self._hosts.double()
        total = pairs @ seconds_per_bit(s, device) @ pairs.T
        mean = total / (pairs.sum(1)[:, None] * pairs.sum(1)).clamp(min=1.0)
        kinds = pool.modality
        self._mean_s_per_bit = torch.where(pool.successors, mean[kinds[:, :, None], kinds[:, None, :]], 0.0)
        self._is_sink = ~pool.successors.any(2) & (kinds >= 0)

    def draw(self, seeds: Tensor) -> Episode:
        """The episodes that belong to `seeds [E]`."""
        s, pool = self._s, self._pool
        seeds = seeds.to(self._device)
        tasks, places = torch.arange(s.num_tasks, device=self._device), torch.arange(pool.places, device=self._device)
        graph = self._draw_graphs(seeds[:, None], tasks)
        modality = pool.modality[graph]
        allowed = self._hosts[modality]  # -1 is the last row
        cell = (seeds[:, None, None], tasks[:, None], places)
        input_bits = _draw_size(pool.input_bits[graph], *cell, stream=Stream.INPUT)
        output_bits = _draw_size(pool.output_bits[graph], *cell, stream=Stream.OUTPUT)
        cycles = input_bits * s.cycles_per_bit

        uplink_bps, downlink_bps = self._links(seeds[:, None], tasks)
        input_s = input_bits[..., None] / uplink_bps[:, :, None]
        input_s[..., -1] += s.cloud_round_trip_s * (modality >= 0)
        input_s = on_grid(input_s)
        compute_s = on_grid(cycles[..., None] / self._hz)
        service_s = input_s + compute_s
        cost_usd = on_grid(cycles[..., None] * 1e-9 * self._price)
        return_s = on_grid(output_bits[..., None] / downlink_bps[:, :, None]) * self._is_sink[graph][..., None]
        return Episode(
            seeds=seeds,
            graph=graph,
            modality=modality,
            allowed=allowed,
            input_bits=input_bits,
            output_bits=output_bits,
            cycles=cycles,
            uplink_bps=uplink_bps,
            downlink_bps=downlink_bps,
            input_s=input_s,
            compute_s=compute_s,
            service_s=service_s,
            cost_usd=cost_usd,
            return_s=return_s,
            toll=on_grid(s.weight * service_s + (1.0 - s.weight) * cost_usd),
            rank_s=self._ranks(graph, allowed, service_s, output_bits),
        )

    def edges_up(self, seeds: Tensor, step: int) -> Tensor:
        """`[E, L]` bool: which locations accept subtasks in a step."""
        s = self._s
        up = torch.ones(len(seeds), s.num_locations, dtype=torch.bool, device=self._device)
        if s.failure_probability:
            edges = torch.arange(s.num_locations - 1, device=self._device)
            up[:, :-1] = random.uniform(seeds[:, None], Stream.FAILURE, step, edges) >= s.failure_probability
        return up

    def _draw_graphs(self, seeds: Tensor, tasks: Tensor) -> Tensor:
        """`[E, I]` int64."""
        graphs = len(self._pool.modality)
        if self._s.random_graphs is None:
            return (tasks % graphs).expand(len(seeds), -1).contiguous()
        return random.randint(graphs, seeds, Stream.GRAPH, tasks)

    def _links(self, seeds: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Rates `[E, I, L]` up and down: the same wireless link to all edges, a wired one to the cloud."""
        s = self._s
        share = random.uniform(seeds, Stream.DISTANCE, tasks).double()
        gain = path_gain(
            s.min_distance_m + (s.max_distance_m - s.min_distance_m) * share, s.reference_gain, s.path_loss_exponent
        )
        links = []
        for power_w, cloud_bps in ((s.device_w, s.cloud_uplink_bps), (s.edge_w, s.cloud_downlink_bps)):
            rate = shannon_bps(s.bandwidth_hz, power_w, gain, s.noise_w)
            edges = rate[..., None].expand(-1, -1, s.num_locations - 1)
            links.append(torch.cat([edges, torch.full_like(rate, cloud_bps)[..., None]], dim=2))
        return links[0], links[1]

    def _ranks(self, graph: Tensor, allowed: Tensor, service_s: Tensor, output_bits: Tensor) -> Tensor:
        """`[E, I, J]`, from the last place to the first: places are in topological order."""
        own_s = (service_s * allowed).sum(3) / allowed.sum(3).clamp(min=1)
        rank_s = own_s.clone()
        for j in reversed(range(self._pool.places - 1)):
            transfer_s = output_bits[:, :, j, None] * self._mean_s_per_bit[graph, j]
            tail_s = torch.where(self._pool.successors[graph, j], transfer_s + rank_s, 0.0).amax(2)
            rank_s[:, :, j] += tail_s
        return rank_s


def _draw_size(limits: Tensor, seeds: Tensor, tasks: Tensor, places: Tensor, stream: Stream) -> Tensor:
    """Uniform between `limits[..., 0]` and `limits[..., 1]`, float64."""
    share = random.uniform(seeds, stream, tasks, places).double()
    return limits[..., 0] + (limits[..., 1] - limits[..., 0]) * share
