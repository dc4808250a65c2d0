"""The vehicular problem as a `TeamSimulator`: E episodes as tensors (Algorithm 1 of the IDMAC paper).

Dimensions beside those of `envs.team` (whose N agents are the M edges here):

    M  edges      N  vehicles     K  services      R  request slots of an edge
    P  places in a vehicle's store                 V  versions of a model
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from envs.team import StepResult, TeamSimulator
from envs.vehicular import spec, stores
from envs.vehicular.episode import Episode, EpisodeSource
from envs.vehicular.experts import nearest_experts, primary_services, working_experts
from envs.vehicular.scenario import VehicularScenario
from envs.vehicular.service import tuned_capability
from envs.vehicular.slot import Decision, Network, Requests, SlotModel, Totals, total
from envs.vehicular.sums import count_by, from_fixed, look_up, look_up_rows, to_fixed
from envs.vehicular.traces import Trace, TraceReport, edge_positions, grid_positions, load_trace, synthetic_trace

SUMS = (
    *("reward", "score", "qos", "latency_s", "energy_j", "gain", "in_time", "fetches", "patch_mb", "illegal", "choices"),
    *("requests", "by_vehicle", "by_own_edge", "by_peer_edge", "by_cloud", "steps"),
)


@lru_cache(maxsize=8)
def place(scenario: VehicularScenario) -> tuple[Trace, Tensor, TraceReport | None]:
    """The scenario's trace, the positions `[M, 2]` of its edges, and what its file's loader has to report.

    Raises:
        InputError: The trace's file cannot be used.
    """
    s = scenario
    if s.traces is not None:
        trace, report = load_trace(s.traces, s.slot_s, s.trace_box, s.trace_first_slot, s.trace_slots)
        return trace, edge_positions(trace, s.num_edges), report
    vehicles = s.trace_vehicles or 2 * s.num_vehicles
    trace = synthetic_trace(vehicles, max(s.trace_slots, s.horizon_slots), s.area_m, s.trace_seed, s.slot_s)
    return trace, grid_positions(s.area_m, s.num_edges), None


def trace_report(scenario: VehicularScenario) -> TraceReport | None:
    """What the loader kept and dropped of the scenario's trace file; None where the city is synthetic."""
    return place(scenario)[2]


@dataclass
class Slot:
    """What is known of a slot before the edges decide, `[E, N]` unless noted.

    Attributes:
        hit_at: `[P, E, N]` bool, where in its store a vehicle holds a patch for its request.
        held: int64, that patch's code, `stores.EMPTY` if there is none.
        radio: bool, whether the request needs an edge.
        macro: bool, whether it reaches the cloud over the macro cell.
        request_slot: int64, its place `own * R + rank` among all request slots; M * R where it has none.
        vehicle_in: `[E, M * R]` int64, the vehicle in each request slot, N in an empty one.
        displaced: float32, capability that a new patch would push out.
        radio_requests: `[E, M]` int64.
        expert: `[E, M, K]` int64, nearest working expert of each service for each edge; M where there is none.
        legal: `[E, K + 1, M + 1]` bool, which targets can answer each service; the last row is for empty request slots.
        fetchable: `[E, M, K]` bool.
        own_answers: `[E, M+1]` int64 each, see `_own_answers`.
        capability: `[E, M+1, K]` float32, of what each edge and the cloud answers with, 0 where it cannot.
    """

    hit_at: Tensor
    held: Tensor
    radio: Tensor
    macro: Tensor
    request_slot: Tensor
    vehicle_in: Tensor
    displaced: Tensor
    radio_requests: Tensor
    expert: Tensor
    legal: Tensor
    fetchable: Tensor
    own_answers: tuple[Tensor, Tensor, Tensor]
    capability: Tensor


class VehicularSimulator(TeamSimulator):
    """Personalised LLM service updating: see `README.md` for every choice that the paper leaves open.

    Raises:
        InputError: The scenario's trace cannot be used.
    """

    def __init__(self, scenario: VehicularScenario, num_envs: int = 1, device: torch.device | str = "cpu") -> None:
        self.scenario, self.num_envs, self.device = scenario, num_envs, torch.device(device)
        trace, edges_m, _ = place(scenario)
        self._source = EpisodeSource(scenario, trace, edges_m, self.device)
        self._model = SlotModel(scenario, self.device)
        self.spec = spec.team_spec(scenario, edges_m)
        self._constants(edges_m)
        self.episode: Episode | None = None

    def _constants(self, edges_m: Tensor) -> None:
        s, device = self.scenario, self.device
        edges, services = s.num_edges, s.num_services
        self._primary = primary_services(edges, services).to(device)
        self._experts = nearest_experts(edges_m, s.num_services).to(device)
        self._levels = torch.tensor(s.compute_levels, device=device)
        self._powers = torch.tensor(s.power_levels, device=device)
        exists = self.spec.choice_exists(device)
        self._mask = exists.expand(self.num_envs, edges, *exists.shape)
        self._edge = torch.arange(edges, device=device)

    @torch.no_grad()
    def reset(self, seeds: Tensor) -> StepResult:
        s, device, rows = self.scenario, self.device, self.num_envs
        edges, services = s.num_edges, s.num_services
        self.episode = self._source.draw(seeds)
        self._features = request_features(self.episode)
        self._slot = 0
        self._store = torch.full((s.store_slots, rows, s.num_vehicles), stores.EMPTY, device=device)
        self._history = torch.zeros(rows, services, s.num_versions, device=device)
        self._history[:, :, 0] = s.initial_capability
        self._version = torch.zeros(rows, services, dtype=torch.int64, device=device)
        self._edge_version = torch.where(self._primary, 0, stores.EMPTY).repeat(rows, 1, 1)
        self._last_used = torch.zeros_like(self._edge_version)
        self._logs = torch.zeros_like(self._version)
        self._last_tasks = torch.zeros(rows, edges + 1, dtype=torch.int64, device=device)
        return self._show(*self._nothing())

    @torch.no_grad()
    def step(self, actions: Tensor) -> StepResult:
        s = self.scenario
        if self._slot >= s.horizon_slots:
            return self._show(*self._nothing())
        now, episode, t = self._now, self._episode, self._slot
        decision, illegal, fetched = self._decide(actions.to(self.device))
        requests = Requests(
            own=episode.own[t],
            service=episode.service[t],
            size_bits=episode.size_mb[t] * 8e6,
            cycles=episode.cycles[t],
            demand_level=episode.demand_level[t],
            gain=episode.gain[t],
            held_capability=self._capability_of(now.held),
            displaced_capability=now.displaced,
        )
        others = torch.zeros_like(self._last_tasks)
        network = Network(now.radio_requests, others, now.capability, episode.link_factor[t])
        outcome = self._model.evaluate(requests, decision, network)
        sums = total(outcome, decision, s)

        served = episode.present[t].sum(1)
        choices = now.radio_requests.clamp(max=s.request_slots).sum(1) + s.num_edges
        reward = sums.reward(s, served, illegal / choices)
        metrics = self._metrics(sums, decision, reward, served, illegal, choices)
        self._advance(requests, decision, outcome.patched, fetched)
        self._last_tasks = outcome.tasks
        return self._show(reward, metrics)

    @property
    def _episode(self) -> Episode:
        if self.episode is None:
            raise RuntimeError("step before reset")
        return self.episode

    # What the edges find

    def _open_slot(self) -> Slot:
        """Matches requests with stores and sorts those that need an edge into its request slots."""
        s, episode, t = self.scenario, self._episode, self._slot
        edges, slots = s.num_edges, s.num_edges * s.request_slots
        own, present, order, first = episode.own[t], episode.present[t], episode.order[t], episode.first[t]
        hit_at, held = stores.find(self._store, episode.service[t], s.num_versions)
        wanting = present & (held == stores.EMPTY)
        macro = wanting & (own == edges)
        radio = wanting & (own < edges)

        # In `order`, an edge's vehicles are adjacent: the rank of a request is the number of requests before it in the segment.
        radio_in_order, own_in_order = radio.gather(1, order), own.gather(1, order)
        before = torch.nn.functional.pad(radio_in_order.long().cumsum(1), (1, 0))
        at_first = before.gather(1, first)
        rank = before[:, :-1] - at_first.gather(1, own_in_order)
        has_slot = radio_in_order & (rank < s.request_slots)
        slot_in_order = torch.where(has_slot, own_in_order * s.request_slots + rank, slots)
        request_slot = torch.empty_like(order).scatter_(1, order, slot_in_order)
        vehicle_in = torch.full((self.num_envs, slots + 1), s.num_vehicles, device=self.device)
        vehicle_in.scatter_(1, slot_in_order, order)

        expert = working_experts(self._experts, episode.up[t])
        answerable = (self._edge_version != stores.EMPTY) & episode.up[t][..., None]
        legal = torch.zeros(self.num_envs, s.num_services + 1, edges + 1, dtype=torch.bool, device=self.device)
        legal[:, :-1, :-1] = answerable.transpose(1, 2)
        legal[:, :-1, -1] = True
        legal[:, -1, 0] = True
        return Slot(
            hit_at=hit_at,
            held=held,
            radio=radio,
            macro=macro,
            request_slot=request_slot,
            vehicle_in=vehicle_in[:, :-1].contiguous(),
            displaced=self._capability_of(self._store[-1]),
            radio_requests=at_first[:, 1:] - at_first[:, :-1],
            expert=expert,
            legal=legal,
            capability=self._target_capability(),
            own_answers=self._own_answers(held),
            fetchable=(self._version[:, None] > self._edge_version) & (expert < edges) & episode.up[t][..., None],
        )

    def _own_answers(self, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Number, score and latency above the limit of what vehicles answer by themselves: `[E, M+1]` by edge, outside last.

        Scores and seconds are fixed-point sums (`sums.py`).
        """
        s, episode, t = self.scenario, self._episode, self._slot
        answers = episode.present[t] & (held != stores.EMPTY)
        score, latency_s = self._model.own_answers(episode.cycles[t], episode.demand_level[t], self._capability_of(held))
        excess_s = (latency_s - s.latency_limit_s).clamp(min=0.0)
        weights = (answers.long(), to_fixed(score) * answers, to_fixed(excess_s) * answers)
        number, scores, excess = (count_by(episode.own[t], s.num_edges + 1, weight) for weight in weights)
        return number, scores, excess

    def _capability_of(self, code: Tensor) -> Tensor:
        """Capability of the patch `[E, N]` with that code, 0 for none."""
        return self._history.flatten(1).gather(1, code.clamp(min=0)).masked_fill(code == stores.EMPTY, 0.0)

    def _cloud_capability(self) -> Tensor:
        """`[E, K]`."""
        return self._history.gather(2, self._version[..., None]).squeeze(-1)

    def _target_capability(self) -> Tensor:
        """`[E, M+1, K]`: of what each edge and the cloud answers with, 0 where it cannot."""
        version = self._edge_version
        history = self._history[:, None].expand(-1, version.shape[1], -1, -1)
        edge = history.gather(3, version.clamp(min=0)[..., None]).squeeze(-1)
        edge = edge.masked_fill((version == stores.EMPTY) | ~self._episode.up[self._slot][..., None], 0.0)
        return torch.cat([edge, self._cloud_capability()[:, None]], dim=1)

    # What they decide

    def _decide(self, actions: Tensor) -> tuple[Decision, Tensor, Tensor]:
        """Decision, number of illegal choices `[E]`, and which model each edge fetches `[E, M, K]` (bool).

        An illegal target becomes the cloud, an illegal fetch none.
        """
        s, now, episode, t = self.scenario, self._now, self._episode, self._slot
        edges, slots, services = s.num_edges, s.num_edges * s.request_slots, s.num_services
        own, service = episode.own[t], episode.service[t]
        chosen = actions[:, :, : s.request_slots].flatten(1).gather(1, now.request_slot.clamp(max=slots - 1))
        overflow = now.radio & (now.request_slot == slots)
        expert = now.expert.flatten(1).gather(1, own.clamp(max=edges - 1) * services + service)
        chosen = torch.where(overflow, expert, chosen)
        legal = now.legal.flatten(1).gather(1, service * (edges + 1) + chosen)
        illegal = (now.radio & ~legal).sum(1)

        route = torch.where(now.radio & legal, chosen, edges)  # the cloud: also for the macro cell's requests
        route = torch.where(now.held != stores.EMPTY, edges + 1, route)
        route = torch.where(episode.present[t], route, edges + 2)

        wish = actions[:, :, s.request_slots + 2]
        model = (wish - 1).clamp_(min=0)[..., None]
        fetches = now.fetchable.gather(2, model).squeeze(-1) & (wish > 0)
        illegal = illegal + ((wish > 0) & ~fetches).sum(1)
        fetched = torch.zeros_like(now.fetchable).scatter_(2, model, fetches[..., None])
        decision = Decision(
            route=route,
            compute_level=look_up(self._levels, actions[:, :, s.request_slots]),
            power_level=look_up(self._powers, actions[:, :, s.request_slots + 1]),
            fetch_from=torch.where(fetches, now.expert.gather(2, model).squeeze(-1), edges),
        )
        return decision, illegal, fetched

    # What follows

    def _advance(self, requests: Requests, decision: Decision, patched: Tensor, fetched: Tensor) -> None:
        """Stores, logs and versions for the next slot."""
        s, now, route = self.scenario, self._now, decision.route
        edges, services = s.num_edges, s.num_services
        version = self._version.gather(1, requests.service)  # a patch comes from an expert, which has the cloud's version
        code = torch.where(patched, requests.service * s.num_versions + version, now.held)
        present = self._episode.present[self._slot]
        self._store = stores.touch(self._store, now.hit_at, code, patched | (present & (now.held != stores.EMPTY)))

        served = count_by(route * services + requests.service, (edges + 3) * services)[:, : edges * services]
        self._last_used = self._last_used.masked_fill(served.view_as(self._last_used) > 0, self._slot)
        self._edge_version, self._last_used = stores.install_on_edge(
            self._edge_version,
            self._last_used,
            self._primary,
            fetched,
            self._version[:, None].expand_as(self._edge_version),
            self._slot,
            s.edge_patch_slots,
        )
        importance = to_fixed(self._episode.importance[self._slot]) * (route <= edges)
        self._logs = self._logs + count_by(requests.service, services, importance)
        self._slot += 1
        if self._slot % s.update_period_slots == 0:
            self._tune()

    def _tune(self) -> None:
        """The cloud fine-tunes from the logs; where that helped there is a new version, which experts get at once."""
        s, old = self.scenario, self._cloud_capability()
        new = tuned_capability(old, from_fixed(self._logs), s.learning_rate, s.max_capability)
        self._version = self._version + (new > old)
        self._history.scatter_(2, self._version[..., None], new[..., None])
        self._edge_version = torch.where(self._primary, self._version[:, None], self._edge_version)
        self._logs = torch.zeros_like(self._logs)

    # What is shown

    def _nothing(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Reward and metrics where no slot was played."""
        reward = torch.zeros(self.num_envs, device=self.device)
        return reward, {name: reward.clone() for name in SUMS}

    def _metrics(
        self, sums: Totals, decision: Decision, reward: Tensor, served: Tensor, illegal: Tensor, choices: Tensor
    ) -> dict[str, Tensor]:
        s, route = self.scenario, decision.route
        own = route == self._episode.own[self._slot]
        edge = route < s.num_edges
        values = {
            "reward": reward.clone(),
            "score": sums.score,
            "qos": sums.qos,
            "latency_s": sums.latency_s,
            "energy_j": sums.energy_j,
            "gain": sums.gain,
            "in_time": sums.in_time,
            "fetches": (decision.fetch_from < s.num_edges).sum(1),
            "patch_mb": sums.patches * s.patch_mb,
            "illegal": illegal,
            "choices": choices,
            "requests": served,
            "by_vehicle": (route == s.num_edges + 1).sum(1),
            "by_own_edge": (edge & own).sum(1),
            "by_peer_edge": (edge & ~own).sum(1),
            "by_cloud": (route == s.num_edges).sum(1),
            "steps": torch.ones_like(reward),
        }
        return {name: values[name].float() for name in SUMS}

    def _show(self, reward: Tensor, metrics: dict[str, Tensor]) -> StepResult:
        s, rows = self.scenario, self.num_envs
        self._now = self._open_slot()
        observation = self._observation()
        no = torch.zeros(rows, dtype=torch.bool, device=self.device)
        return StepResult(
            observation=observation,
            state=self._state(observation),
            action_mask=self._action_mask(),
            reward=reward,
            terminated=torch.full_like(no, self._slot >= s.horizon_slots),  # eq. 28 sums to the horizon: nothing comes after
            truncated=no,
            alive=torch.ones(rows, s.num_edges, dtype=torch.bool, device=self.device),
            metrics=metrics,
        )

    def _observation(self) -> dict[str, Tensor]:
        """`[E, M, *shape]` for every field of `spec.observation_fields`."""
        s, now, episode, t, rows = self.scenario, self._now, self._episode, self._slot, self.num_envs
        edges, services, slots = s.num_edges, s.num_services, s.request_slots
        seen = self._features[t].gather(2, now.vehicle_in.expand(5, -1, -1)).view(5, rows, edges, slots).unbind(0)
        displaced = torch.nn.functional.pad(now.displaced, (0, 1)).gather(1, now.vehicle_in).view(rows, edges, slots)
        up = episode.up[t]
        overflow = now.radio & (now.request_slot == edges * slots)
        own_service = episode.own[t] * services + episode.service[t]
        overflow_by = count_by(own_service, (edges + 1) * services, overflow.long())[:, :-services].view(rows, edges, services)
        gcycles = count_by(episode.own[t], edges + 1, to_fixed(episode.cycles[t] * 1e-9) * now.radio)[:, :edges]
        idle = (t - self._last_used).masked_fill((self._edge_version == stores.EMPTY) | self._primary, 0)

        def everyone(x: Tensor) -> Tensor:
            """The same for every edge: `[E, ...]` to `[E, M, ...]`."""
            return x.float()[:, None].expand(rows, edges, *x.shape[1:]).clone(memory_format=torch.contiguous_format)

        def constant(value: float) -> Tensor:
            return torch.full((rows, edges), float(value), device=self.device)

        return {
            "service": seen[0].long(),
            "size_mb": seen[1],
            "importance": seen[2],
            "demand_level": seen[3],
            "channel_gain_db": seen[4],
            "displaced_capability": displaced,
            "edge": self._edge.repeat(rows, 1),
            "capability": now.capability[:, :edges].clone(),
            "version": self._edge_version.float(),
            "idle_slots": idle.float(),
            "primary": self._primary.float().repeat(rows, 1, 1),
            "cloud_version": everyone(self._version),
            "target_capability": everyone(now.capability),
            "logged_importance": everyone(from_fixed(self._logs)),
            "node_health": everyone(episode.link_factor[t][:, :edges] * up),
            "last_tasks": everyone(self._last_tasks),
            "requests": now.radio_requests.float(),
            "overflow": overflow_by.float(),
            "requested_gcycles": from_fixed(gcycles),
            "vehicles": (episode.first[t][:, 1:] - episode.first[t][:, :-1]).float(),
            "vehicle_answers": now.own_answers[0][:, :edges].float(),
            "vehicle_score": from_fixed(now.own_answers[1][:, :edges]),
            "vehicle_excess_s": from_fixed(now.own_answers[2][:, :edges]),
            "all_vehicles": everyone(episode.present[t].sum(1)),
            "macro_requests": everyone(now.macro.sum(1)),
            "slot": constant(t),
            "slots_to_update": constant(s.update_period_slots - t % s.update_period_slots),
        }

    def _state(self, seen: dict[str, Tensor]) -> Tensor:
        """`[E, S]` float32, see `spec.state_size`: every figure is about in [0, 1]."""
        s, now, episode, t = self.scenario, self._now, self._episode, self._slot
        edges, services, vehicles = s.num_edges, s.num_services, s.num_vehicles
        fair = vehicles / edges  # an edge's share of all vehicles
        load = seen["requested_gcycles"] / (seen["requested_gcycles"] + 0.1 * s.edge_hz * 1e-9)
        last_tasks = seen["last_tasks"][:, 0, :edges] / fair
        per_edge = torch.stack([seen["requests"] / fair, load, seen["node_health"][:, 0], last_tasks], dim=2)
        logs = seen["logged_importance"][:, 0]
        answers, scores, excess = (total.sum(1, keepdim=True) for total in now.own_answers)
        road = episode.present[t].sum(1, keepdim=True).clamp(min=1)
        own_answers = [answers / road, from_fixed(scores) / road, from_fixed(excess) / road]
        wanted = count_by(episode.service[t], services, now.radio.long()) / vehicles
        codes = count_by((self._store - stores.EMPTY).transpose(0, 1).flatten(1), services * s.num_versions + 1)
        patches = codes[:, 1:].unflatten(1, (services, s.num_versions)).sum(2) / vehicles
        figures = [seen["macro_requests"], seen["last_tasks"][:, :, edges], seen["all_vehicles"]]
        system = [figure[:, :1] / vehicles for figure in figures]
        clock = [seen["slot"][:, :1] / s.horizon_slots, seen["slots_to_update"][:, :1] / s.update_period_slots]
        versions = self._version / max(1, s.num_versions - 1)
        parts = [
            per_edge.flatten(1),
            seen["capability"].flatten(1),
            self._cloud_capability(),
            versions,
            logs / (logs + fair),
            patches,
            wanted,
            *system,
            *own_answers,
            *clock,
        ]
        return torch.cat(parts, dim=1)

    def _action_mask(self) -> Tensor:
        """`[E, M, H, C]` bool, exact; all that exists if `mask_invalid` is off."""
        s, now = self.scenario, self._now
        mask = self._mask.clone()
        if not s.mask_invalid:
            return mask
        edges, services, slots = s.num_edges, s.num_services, s.request_slots
        kinds = torch.nn.functional.pad(self._episode.service[self._slot], (0, 1), value=services).gather(1, now.vehicle_in)
        mask[:, :, :slots, : edges + 1] = look_up_rows(now.legal, kinds).view(-1, edges, slots, edges + 1)
        mask[:, :, slots + 2, 1 : services + 1] = now.fetchable
        if s.edge_down_probability:
            mask[:, :, slots:, 1:] &= self._episode.up[self._slot][:, :, None, None]
        return mask


def request_features(episode: Episode) -> Tensor:
    """`[T+1, 5, E, N+1]` float32: what an agent sees of a request beside its own knowledge; the last vehicle is nobody."""
    gain_db = (10.0 * torch.log10(episode.gain)).clamp(spec.MIN_GAIN_DB, spec.MAX_GAIN_DB)
    parts = (episode.service.float(), episode.size_mb, episode.importance, episode.demand_level, gain_db)
    features = torch.nn.functional.pad(torch.stack(parts, dim=1), (0, 1))
    features[:, 0, :, -1] = stores.EMPTY
    return features
