"""One slot's decision-dependent physics, as a function of the requests and of what the edges decide.

The simulator calls it with all vehicles, heuristics with the requests that the agents see and with many candidate decisions at
once: both are flat lists of Q requests per row.

    B  rows (episodes, or candidates)   Q  requests of a row   M  edges   K  services

A request's `route` says who serves it: 0 .. M-1 an edge, M the cloud, M+1 the vehicle itself, M+2 nobody (there is no request).
Its `own` edge is the one whose radio it uses; M is the macro cell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from envs.vehicular import compute, radio, service
from envs.vehicular.experts import primary_services
from envs.vehicular.scenario import VehicularScenario
from envs.vehicular.sums import count_by, exact_sum, look_up


@dataclass(frozen=True)
class Requests:
    """The requests of a slot, `[B, Q]` each.

    Attributes:
        own: int64, the edge whose radio the vehicle uses, M for the macro cell.
        service: int64 in 0 .. K-1.
        size_bits, cycles, demand_level, gain: float32; `gain` is the channel's (eq. 6).
        held_capability: float32, of the vehicle's own patch where it serves itself.
        displaced_capability: float32, of the patch that a new one would push out of the vehicle's store, 0 if there is room.
    """

    own: Tensor
    service: Tensor
    size_bits: Tensor
    cycles: Tensor
    demand_level: Tensor
    gain: Tensor
    held_capability: Tensor
    displaced_capability: Tensor


@dataclass(frozen=True)
class Decision:
    """What the edges decided.

    Attributes:
        route: `[B, Q]` int64, see the module.
        compute_level, power_level: `[B, M]` float32, in (0, 1].
        fetch_from: `[B, M]` int64, the edge from which each edge fetches a patch; M where it fetches none.
    """

    route: Tensor
    compute_level: Tensor
    power_level: Tensor
    fetch_from: Tensor


@dataclass(frozen=True)
class Network:
    """What the requests find.

    Attributes:
        radio_requests: `[B, M]` int64, requests that share each edge's radio.
        other_tasks: `[B, M+1]` int64, tasks on the edges and the cloud that are not among the Q requests.
        capability: `[B, M+1, K]` float32, of what each edge and the cloud answers with.
        link_factor: `[B, M+1]` float32, share of its rate that a node's wires have left; the cloud's is 1.
    """

    radio_requests: Tensor
    other_tasks: Tensor
    capability: Tensor
    link_factor: Tensor


@dataclass(frozen=True)
class Outcome:
    """What became of each request, `[B, Q]` (0 where there is none), and of each edge.

    Attributes:
        latency_s, energy_j: Of the task itself, eqs. 5 and 14-17.
        patch_energy_j: Of sending the patch that comes with the answer.
        patch_sent, patched: bool; a patch that does not fit into the slot is sent in vain.
        gain: Capability that the vehicle's store gained.
        qos, score: Eqs. 3 and 4 (normalised).
        fetch_energy_j: `[B, M]`.
        tasks: `[B, M+1]` int64, tasks that share each edge's processor and the cloud's.
    """

    latency_s: Tensor
    energy_j: Tensor
    patch_energy_j: Tensor
    patch_sent: Tensor
    patched: Tensor
    gain: Tensor
    qos: Tensor
    score: Tensor
    fetch_energy_j: Tensor
    tasks: Tensor


class SlotModel:
    """The physics of a scenario, with its constant tables on a device."""

    def __init__(self, scenario: VehicularScenario, device: torch.device | str = "cpu") -> None:
        self.scenario = scenario
        edges, services = scenario.num_edges, scenario.num_services
        self.edges, self.services = edges, services
        nobody_else = torch.zeros(3, services, dtype=torch.bool)
        self._gives_patch = torch.cat([primary_services(edges, services), nobody_else]).flatten().to(device)
        wire = torch.full((edges + 1, edges + 1), scenario.fiber_bps)
        wire[:, edges] = scenario.cloud_link_bps
        self._wire_bps = wire.flatten().to(device)
        wire_j = scenario.fiber_w / wire
        wire_j.fill_diagonal_(0.0)
        self._wire_j_per_bit = wire_j.flatten().to(device)

    def evaluate(self, requests: Requests, decision: Decision, network: Network) -> Outcome:
        """What becomes of the requests."""
        s, cloud = self.scenario, self.edges
        route, own = decision.route, requests.own
        on_radio = (route <= cloud) & (own < cloud)
        tasks = count_by(route, cloud + 3)
        tasks[:, : cloud + 1] += network.other_tasks
        cycle_s, cycle_j = self._per_cycle(tasks, decision.compute_level)
        response_bits = requests.size_bits * s.response_fraction
        uplink_bps, downlink_bps, downlink_w = self._rates(requests, on_radio, decision.power_level, network.radio_requests)

        patch_sent = look_up(self._gives_patch, route * self.services + requests.service) & on_radio
        patch_s = (s.patch_bits / downlink_bps).masked_fill_(~patch_sent, 0.0)
        patched = patch_sent & (patch_s <= s.slot_s)

        wire = self._wire(own, torch.where(on_radio, route, own))
        wire_bit_s = self._wire_seconds_per_bit(wire, on_radio, patch_sent, decision.fetch_from, network.link_factor)
        wire_bit_j = look_up(self._wire_j_per_bit, wire)
        wire_bits = requests.size_bits + response_bits

        sent = route <= cloud
        # In a deep fade the vehicle gives up at the slot's end.
        uplink_s = (requests.size_bits / uplink_bps).clamp_(max=s.slot_s).masked_fill_(~sent, 0.0)
        downlink_s = (response_bits / downlink_bps).clamp_(max=s.slot_s).masked_fill_(~sent, 0.0)
        wired_s = wire_bits * wire_bit_s + (route == cloud) * s.cloud_rtt_s
        latency_s = (requests.cycles * cycle_s.gather(1, route) + uplink_s + downlink_s + wired_s).clamp_(max=s.slot_s)
        air_j = uplink_s * s.vehicle_radio_w + downlink_s * downlink_w
        energy_j = requests.cycles * cycle_j.gather(1, route) + air_j + wire_bits * wire_bit_j
        patch_energy_j = patch_s.clamp_(max=s.slot_s) * downlink_w + patch_sent * (s.patch_bits * wire_bit_j)

        served_by = network.capability.flatten(1).gather(1, route.clamp(max=cloud) * self.services + requests.service)
        capability = torch.where(sent, served_by, requests.held_capability)
        quality = service.qos(capability, requests.demand_level, s.qos_max, s.qos_alpha)
        utility = s.weight_qos * quality - s.weight_latency * latency_s - s.weight_energy * energy_j
        nobody = route == cloud + 2
        return Outcome(
            latency_s=latency_s.masked_fill_(nobody, 0.0),
            energy_j=energy_j.masked_fill_(nobody, 0.0),
            patch_energy_j=patch_energy_j,
            patch_sent=patch_sent,
            patched=patched,
            gain=(capability - requests.displaced_capability).masked_fill_(~patched, 0.0),
            qos=quality.masked_fill_(nobody, 0.0),
            score=service.task_score(utility, s.score_threshold, s.score_temperature).masked_fill_(nobody, 0.0),
            fetch_energy_j=s.patch_bits * self._fetch_joules_per_bit(decision.fetch_from),
            tasks=tasks[:, : cloud + 1],
        )

    def own_answers(self, cycles: Tensor, demand_level: Tensor, capability: Tensor) -> tuple[Tensor, Tensor]:
        """Score and latency, `[B, Q]` each, of requests that vehicles answer with their own patch: nothing that edges decide
        matters to them. The same numbers as `evaluate`'s."""
        s = self.scenario
        latency_s = (cycles * (1.0 / s.vehicle_hz)).clamp(max=s.slot_s)
        energy_j = cycles * compute.joules_per_cycle(s.vehicle_compute_w, s.vehicle_hz, 1.0)
        quality = service.qos(capability, demand_level, s.qos_max, s.qos_alpha)
        utility = s.weight_qos * quality - s.weight_latency * latency_s - s.weight_energy * energy_j
        return service.task_score(utility, s.score_threshold, s.score_temperature), latency_s

    def _per_cycle(self, tasks: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Seconds and joules that a cycle takes on each route: `[B, M+3]`."""
        s, cloud = self.scenario, self.edges
        second = torch.zeros(tasks.shape, device=tasks.device)
        second[:, :cloud] = compute.seconds_per_cycle(tasks[:, :cloud], s.edge_hz * level)
        second[:, cloud] = compute.seconds_per_cycle(tasks[:, cloud], s.cloud_hz)
        second[:, cloud + 1] = 1.0 / s.vehicle_hz  # a vehicle has one request
        joule = torch.zeros(tasks.shape, device=tasks.device)
        joule[:, :cloud] = compute.joules_per_cycle(s.edge_compute_w, s.edge_hz, level)
        joule[:, cloud] = compute.joules_per_cycle(s.cloud_compute_w, s.cloud_hz, 1.0)
        joule[:, cloud + 1] = compute.joules_per_cycle(s.vehicle_compute_w, s.vehicle_hz, 1.0)
        return second, joule

    def _rates(self, requests: Requests, on_radio: Tensor, level: Tensor, sharers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Uplink and downlink rate of each vehicle and the power that its edge spends on its band: `[B, Q]` each.

        The band is shared equally. A vehicle puts its whole power into its share; an edge spreads its power evenly over the
        band, so its SNR is the same for every share.
        """
        s = self.scenario
        sharers = sharers.clamp(min=1)
        uplink_hz = s.radio_bandwidth_hz * s.uplink_share
        downlink_hz = s.radio_bandwidth_hz - uplink_hz
        own = requests.own.clamp(max=self.edges - 1)
        share = (1.0 / sharers).gather(1, own)
        power_w = (s.edge_radio_w * level).gather(1, own)
        macro = requests.own == self.edges

        band_hz = share * uplink_hz
        uplink = radio.rate_bps(band_hz, radio.snr(s.vehicle_radio_w, requests.gain, band_hz, s.noise_w_per_hz))
        downlink = radio.rate_bps(share * downlink_hz, radio.snr(power_w, requests.gain, downlink_hz, s.noise_w_per_hz))
        uplink = self._capped(uplink, own, on_radio).masked_fill_(macro, s.macro_rate_bps)
        downlink = self._capped(downlink, own, on_radio).masked_fill_(macro, s.macro_rate_bps)
        return uplink, downlink, (share * power_w).masked_fill_(macro, s.macro_radio_w)

    def _capped(self, rate: Tensor, own: Tensor, on_radio: Tensor) -> Tensor:
        """Rates `[B, Q]` scaled down where an edge's sum exceeds its limit. Summed in whole bit/s, which is exact."""
        total = count_by(own, self.edges, (rate * on_radio).long())
        return rate * radio.cap_factor(total.float(), self.scenario.radio_cap_bps).gather(1, own)

    def _wire(self, a: Tensor, b: Tensor) -> Tensor:
        """Index of the wire between two nodes (edges, or the cloud as M); a node's wire to itself carries nothing."""
        return torch.minimum(a, b) * (self.edges + 1) + torch.maximum(a, b)

    def _wire_seconds_per_bit(
        self, wire: Tensor, on_radio: Tensor, patch_sent: Tensor, fetch_from: Tensor, link_factor: Tensor
    ) -> Tensor:
        """Eqs. 10 and 12: a wire's rate is shared equally by the slot's transfers on it (tasks, patches and fetches)."""
        nodes = self.edges + 1
        transfers = count_by(wire, nodes * nodes, on_radio.long() + patch_sent)
        edge = torch.arange(self.edges, device=wire.device).expand_as(fetch_from)
        transfers.scatter_add_(1, self._wire(edge, fetch_from), (fetch_from < self.edges).long())
        rate = self._wire_bps * (link_factor[:, :, None] * link_factor[:, None, :]).flatten(1)
        seconds = transfers / rate
        seconds.view(-1, nodes, nodes).diagonal(dim1=1, dim2=2).zero_()
        return seconds.gather(1, wire)

    def _fetch_joules_per_bit(self, fetch_from: Tensor) -> Tensor:
        edge = torch.arange(self.edges, device=fetch_from.device).expand_as(fetch_from)
        return look_up(self._wire_j_per_bit, self._wire(edge, fetch_from)) * (fetch_from < self.edges)


@dataclass(frozen=True)
class Totals:
    """Sums over a slot, `[B]` float32 each: the terms of the reward and the metrics."""

    score: Tensor
    qos: Tensor
    latency_s: Tensor
    excess_s: Tensor
    energy_j: Tensor
    gain: Tensor
    patches: Tensor
    in_time: Tensor

    def reward(self, scenario: VehicularScenario, requests: Tensor, illegal_share: Tensor | float) -> Tensor:
        """`[B]`, the team's reward for a slot with that many requests."""
        s, requests = scenario, requests.clamp(min=1)
        cost = (self.energy_j / s.cost_energy_j + self.patches / s.cost_patches) / requests
        benefit = (self.score + s.weight_gain * self.gain - s.weight_excess * self.excess_s) / requests
        return benefit - s.weight_cost * cost - s.weight_invalid * illegal_share


def total(outcome: Outcome, decision: Decision, scenario: VehicularScenario) -> Totals:
    """The sums over a slot's requests."""
    latency = outcome.latency_s
    served = decision.route < scenario.num_edges + 2
    terms = (
        outcome.score,
        outcome.qos,
        latency,
        (latency - scenario.latency_limit_s).clamp(min=0.0),
        outcome.energy_j + outcome.patch_energy_j,
        outcome.gain,
        outcome.patch_sent.float(),
        (served & (latency <= scenario.latency_limit_s)).float(),
    )
    sums = Totals(*exact_sum(torch.stack(terms, dim=1)).unbind(1))
    fetches = (decision.fetch_from < scenario.num_edges).sum(1)
    return replace(
        sums,
        energy_j=sums.energy_j + exact_sum(outcome.fetch_energy_j),
        patches=sums.patches + fetches,
    )
