"""Heuristics for the vehicular problem.

All of them see what agents observe and nothing else. `Scene` turns the observations of a whole team back into the requests and
the network of a slot, so that the simulator's own physics (`envs.vehicular.slot`) can price any decision.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from envs.errors import InputError
from envs.team import TeamSpec, random_actions
from envs.vehicular.compute import request_cycles
from envs.vehicular.experts import nearest_experts, working_experts
from envs.vehicular.scenario import VehicularScenario
from envs.vehicular.slot import Decision, Network, Outcome, Requests, SlotModel, total
from envs.vehicular.spec import VehicularSpec
from envs.vehicular.sums import count_by
from trainers.policy import Policy, RandomPolicy


class Scene:
    """A slot as the team's observations show it: `[E, Q]` with Q = M * R request slots per episode.

    What agents do not see one by one is approximate: requests beyond the request slots are counted but not priced and take no
    part in the radio's limit; that requests of the macro cell wait longer at a busier cloud is left out.
    """

    def __init__(self, spec: VehicularSpec, model: SlotModel, experts: Tensor, seen: dict[str, Tensor]) -> None:
        s = spec.physics
        edges, slots = s.num_edges, s.request_slots
        rows, device = seen["service"].shape[0], seen["service"].device
        self.scenario, self._model = s, model
        self.empty = seen["service"].flatten(1) < 0
        own = torch.arange(edges, device=device).repeat_interleave(slots).expand(rows, -1)
        size_mb, importance = seen["size_mb"].flatten(1), seen["importance"].flatten(1)
        self.requests = Requests(
            own=own,
            service=seen["service"].flatten(1).clamp(min=0),
            size_bits=size_mb * 8e6,
            cycles=request_cycles(size_mb, importance, s.cycles_per_mb_importance),
            demand_level=seen["demand_level"].flatten(1),
            gain=10.0 ** (seen["channel_gain_db"].flatten(1) / 10.0),
            held_capability=torch.zeros_like(size_mb),
            displaced_capability=seen["displaced_capability"].flatten(1),
        )
        health = seen["node_health"][:, 0]
        self.experts = working_experts(experts.to(device), health > 0)
        overflow_to = self.experts.flatten(1)
        other = count_by(overflow_to, edges + 1, seen["overflow"].flatten(1).long())
        other[:, edges] += seen["macro_requests"][:, 0].long()
        self.network = Network(
            radio_requests=seen["requests"].long(),
            other_tasks=other,
            capability=seen["target_capability"][:, 0],
            link_factor=torch.nn.functional.pad(torch.where(health > 0, health, 1.0), (0, 1), value=1.0),
        )
        self.all_requests = seen["all_vehicles"][:, 0].long()
        self.last_tasks = seen["last_tasks"][:, 0].long()
        self.levels = torch.tensor(s.compute_levels, device=device)
        self.powers = torch.tensor(s.power_levels, device=device)

    def repeat(self, times: int) -> Scene:
        """The same scene for `times` candidates each: row `e` becomes rows `e * times …`."""
        scene = object.__new__(Scene)
        scene.__dict__.update(self.__dict__)
        for name in ("requests", "network"):
            part = getattr(self, name)
            repeated = {f.name: getattr(part, f.name).repeat_interleave(times, 0) for f in fields(part)}
            setattr(scene, name, type(part)(**repeated))
        for name in ("empty", "experts", "all_requests", "last_tasks"):
            setattr(scene, name, getattr(self, name).repeat_interleave(times, 0))
        return scene

    def decision(self, actions: Tensor) -> Decision:
        """What actions `[E, M, H]` mean."""
        s = self.scenario
        slots, edges = s.request_slots, s.num_edges
        route = actions[:, :, :slots].flatten(1).masked_fill(self.empty, edges + 2)
        wish = actions[:, :, slots + 2]
        source = self.experts.gather(2, (wish - 1).clamp(min=0)[..., None]).squeeze(-1)
        return Decision(
            route=route,
            compute_level=self.levels[actions[:, :, slots]],
            power_level=self.powers[actions[:, :, slots + 1]],
            fetch_from=torch.where(wish > 0, source, edges),
        )

    def outcome(self, decision: Decision, tasks: Tensor | None = None) -> Outcome:
        """What becomes of the requests; with `tasks [E, M+1]` as if so many tasks shared each processor."""
        network = self.network
        if tasks is not None:
            own_tasks = count_by(decision.route, self.scenario.num_edges + 3)[:, :-2]
            network = Network(network.radio_requests, tasks - own_tasks, network.capability, network.link_factor)
        return self._model.evaluate(self.requests, decision, network)

    def reward(self, actions: Tensor) -> Tensor:
        """`[E]`: the slot's reward without what vehicles and the macro cell contribute, which decisions hardly change."""
        decision = self.decision(actions)
        return total(self.outcome(decision), decision, self.scenario).reward(self.scenario, self.all_requests, 0.0)

    def worth(self, outcome: Outcome) -> Tensor:
        """`[E, Q]`: what each request adds to the team's reward (times the number of requests)."""
        s = self.scenario
        excess = (outcome.latency_s - s.latency_limit_s).clamp(min=0.0)
        energy = (outcome.energy_j + outcome.patch_energy_j) / s.cost_energy_j
        cost = energy + outcome.patch_sent / s.cost_patches
        return outcome.score + s.weight_gain * outcome.gain - s.weight_excess * excess - s.weight_cost * cost


class VehicularPolicy(Policy):
    """Base of the heuristics that compute with the scenario's physics.

    Raises:
        InputError: The spec is not one of the vehicular problem.
    """

    def __init__(self, spec: TeamSpec, seed: int = 0) -> None:
        super().__init__(spec)
        if not isinstance(spec, VehicularSpec):
            raise InputError(f"policy {self.name!r} is for the vehicular problem, not for {spec.problem}/{spec.scenario}")
        self.scenario: VehicularScenario = spec.physics
        self._spec, self._seed = spec, seed
        self._experts = nearest_experts(torch.tensor(spec.positions), self.scenario.num_services)
        self._models: dict[torch.device, SlotModel] = {}

    def scene(self, observation: dict[str, Tensor]) -> Scene:
        device = observation["service"].device
        if device not in self._models:
            self._models[device] = SlotModel(self.scenario, device)
        return Scene(self._spec, self._models[device], self._experts, observation)

    def _actions(self, target: Tensor, level: Tensor | int, power: Tensor | int, mask: Tensor) -> Tensor:
        """`[E, M, H]` int64 from targets `[E, M, R]` and indices of levels `[E, M]`, without a fetch, made legal."""
        actions = torch.zeros(mask.shape[:3], dtype=torch.int64, device=mask.device)
        slots = self.scenario.request_slots
        actions[:, :, :slots] = target
        actions[:, :, slots] = level
        actions[:, :, slots + 1] = power
        return legalise(actions, mask)


def legalise(actions: Tensor, mask: Tensor) -> Tensor:
    """`actions [..., H]` with each choice that `mask [..., H, C]` forbids replaced by the first that it allows."""
    legal = mask.gather(-1, actions[..., None]).squeeze(-1)
    return torch.where(legal, actions, mask.to(torch.uint8).argmax(-1))


class NearestExpertPolicy(VehicularPolicy):
    """The own edge where it can answer, else the nearest working expert; full compute, least radio power, no fetch."""

    name = "nearest-expert"

    def act(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        s, scene = self.scenario, self.scene(observation)
        service = observation["service"].clamp(min=0)
        edge = torch.arange(s.num_edges, device=mask.device)[:, None].expand_as(service)
        own = observation["capability"].gather(2, service) > 0
        target = torch.where(own, edge, scene.experts.gather(2, service))
        return self._actions(target, len(s.compute_levels) - 1, 0, mask), state


class LeastLoadedPolicy(VehicularPolicy):
    """The target that had the fewest tasks per hertz in the last slot; full compute, least radio power, no fetch."""

    name = "least-loaded"

    def act(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        s = self.scenario
        hertz = torch.full((s.num_edges + 1,), s.edge_hz, device=mask.device)
        hertz[-1] = s.cloud_hz
        load = (observation["last_tasks"] + 1.0) / hertz
        legal = mask[:, :, : s.request_slots, : s.num_edges + 1]
        target = load[:, :, None].expand(legal.shape).masked_fill(~legal, torch.inf).argmin(-1)
        return self._actions(target, len(s.compute_levels) - 1, 0, mask), state


class GreedyPolicy(VehicularPolicy):
    """Every edge takes what is best in this slot by the simulator's own cost model, not knowing what the others take.

    Each request goes where its worth is highest if every processor is shared as in the last slot (and with the request itself);
    then each edge takes the level and the power that are best for the requests at hand. A fetch costs now and helps later, so
    greedy never fetches.
    """

    name = "greedy"

    def act(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.decide(self.scene(observation), mask), state

    def decide(self, scene: Scene, mask: Tensor) -> Tensor:
        """`[E, M, H]` int64."""
        s = self.scenario
        edges, slots = s.num_edges, s.request_slots
        shape = (mask.shape[0], edges, slots)
        top = len(s.compute_levels) - 1
        legal = mask[:, :, :slots, : edges + 1].flatten(1, 2)
        worths = []
        for node in range(edges + 1):
            actions = self._actions(torch.full(shape, node, device=mask.device), top, 0, torch.ones_like(mask))
            worths.append(scene.worth(scene.outcome(scene.decision(actions), scene.last_tasks + 1)))
        target = torch.stack(worths, -1).masked_fill(~legal, -torch.inf).argmax(-1).view(shape)
        return self._best_levels(scene, target, mask)

    def _best_levels(self, scene: Scene, target: Tensor, mask: Tensor) -> Tensor:
        """Levels do not touch other edges' requests, so every edge tries each level at the same time."""
        s = self.scenario
        route = target.flatten(1).masked_fill(scene.empty, s.num_edges)
        own = scene.requests.own
        top = len(s.compute_levels) - 1
        trials = [self._actions(target, top, i, mask) for i in range(len(s.power_levels))]
        power = self._best(scene, trials, own)
        trials = [self._actions(target, i, power, mask) for i in range(len(s.compute_levels))]
        return self._actions(target, self._best(scene, trials, route), power, mask)

    def _best(self, scene: Scene, trials: list[Tensor], edge_of: Tensor) -> Tensor:
        """`[E, M]` int64: the trial with the highest worth of the requests that belong to each edge by `edge_of [E, Q]`."""
        worth = torch.stack([scene.worth(scene.outcome(scene.decision(actions))) for actions in trials])
        belongs = edge_of[..., None] == torch.arange(self.scenario.num_edges, device=edge_of.device)
        return torch.einsum("leq,eqm->lem", worth, belongs.float()).argmax(0)


class GeneticPolicy(GreedyPolicy):
    """A population of the team's joint actions evolves within each slot, by the slot's reward (Lambora et al., 2019).

    One individual starts as greedy, the others as greedy with some of its genes at random. Each generation keeps the best and
    fills up with children of parents chosen by tournaments of two, who inherit each gene from either parent; some mutate.
    """

    name = "genetic"

    def __init__(
        self,
        spec: TeamSpec,
        seed: int = 0,
        population: int = 16,
        generations: int = 12,
        mutation: float = 0.02,
        spread: float = 0.1,
    ) -> None:
        super().__init__(spec, seed)
        self.population, self.generations, self.mutation, self.spread = population, generations, mutation, spread
        self._generator = torch.Generator().manual_seed(seed)

    def act(self, observation: dict[str, Tensor], state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        scene = self.scene(observation)
        rows, size = mask.shape[0], self.population
        crowd, masks = scene.repeat(size), mask.repeat_interleave(size, 0)
        first = self.decide(scene, mask).repeat_interleave(size, 0)
        people = self._mutate(first, masks, self.spread)
        people[::size] = first[::size]
        fitness = crowd.reward(people).view(rows, size)
        for _ in range(self.generations):
            children = self._mutate(self._children(people, fitness), masks, self.mutation)
            best = fitness.argmax(1) + torch.arange(rows, device=mask.device) * size
            children[::size] = people[best]
            people = children
            fitness = crowd.reward(people).view(rows, size)
        best = fitness.argmax(1) + torch.arange(rows, device=mask.device) * size
        return people[best], state

    def _mutate(self, people: Tensor, masks: Tensor, share: float) -> Tensor:
        device = people.device
        fresh = random_actions(masks.cpu(), self._generator).to(device)
        return torch.where(torch.rand(people.shape, generator=self._generator).to(device) < share, fresh, people)

    def _children(self, people: Tensor, fitness: Tensor) -> Tensor:
        """As many children as there are people, `[E * population, M, H]`."""
        rows, size = fitness.shape
        draws = torch.randint(size, (2, rows, size, 2), generator=self._generator).to(people.device)
        winners = draws.gather(
            3, fitness[None, :, :].expand(2, -1, -1).gather(2, draws.flatten(2)).view(draws.shape).argmax(3, keepdim=True)
        )
        offset = torch.arange(rows, device=people.device)[:, None] * size
        mother, father = (people[(w.squeeze(-1) + offset).flatten()] for w in winners)
        from_mother = torch.rand(people.shape, generator=self._generator).to(people.device) < 0.5
        return torch.where(from_mother, mother, father)


HEURISTICS: dict[str, type[Policy]] = {
    policy.name: policy for policy in (RandomPolicy, GreedyPolicy, GeneticPolicy, NearestExpertPolicy, LeastLoadedPolicy)
}
