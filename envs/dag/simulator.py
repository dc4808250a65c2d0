"""The dag problem as a `TeamSimulator`: E episodes as tensors (UCB-COMA paper, Secs. 3 and 4.1).

Dimensions beside those of `envs.team` (whose N agents are the I tasks here):

    I  tasks      J  places for subtasks in a task      L  locations: the edges, and the cloud last
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.dag import spec
from envs.dag.episode import Episode, EpisodeSource
from envs.dag.graphs import MODALITIES
from envs.dag.instance import Instance, Schedule
from envs.dag.pool import hosts, load_pool, seconds_per_bit
from envs.dag.scenario import DagScenario
from envs.dag.timing import serve
from envs.exact import on_grid
from envs.team import StepResult, TeamSimulator

SUMS = (
    *("reward", "objective", "completed", "violations", "latency_s", "cost_usd", "illegal", "choices"),
    *("accepted", "on_cloud", "wait_s"),
)


@dataclass
class Progress:
    """What has been decided, and what follows from it. Times are float64 on the grid of `timing.on_grid`.

    Attributes:
        blocked: `[E, I, J]` float32: predecessors that are not scheduled; 1 where it is scheduled itself or does not exist.
            0 means ready.
        data_ready_s: `[E, I, J, L]`: WT on each location as far as predecessors are scheduled.
        location: `[E, I, J]` int64, -1 where not scheduled.
        place: `[E, I, J]` int64, in the order of acceptance.
        start_s, end_s: `[E, I, J]`, 0 where not scheduled.
        left: `[E, I]` int64, subtasks that are not scheduled.
        first_start_s, last_end_s, return_s, cost_usd: `[E, I]` of the task so far.
        free_s: `[E, L-1]`, when each edge ends what it has accepted.
        finished: `[E]` bool.
    """

    blocked: Tensor
    data_ready_s: Tensor
    location: Tensor
    place: Tensor
    start_s: Tensor
    end_s: Tensor
    left: Tensor
    first_start_s: Tensor
    last_end_s: Tensor
    return_s: Tensor
    cost_usd: Tensor
    free_s: Tensor
    finished: Tensor


@dataclass(frozen=True)
class Shown:
    """Parts of what is shown that stay the same during an episode: fields of the observation, and of the state.

    Attributes:
        state: `[E, S]` float32, 0 from column `state_changes_at` on.
        quickest_edge: `[E, I, J, 1]` int64, the edge with the shortest service time of those that host the subtask.
    """

    fields: dict[str, Tensor]
    state: Tensor
    state_changes_at: int
    quickest_edge: Tensor


class DagSimulator(TeamSimulator):
    """Fine-grained inference task offloading: see `README.md` for every choice that the paper leaves open.

    Raises:
        InputError: A graph of the scenario cannot be used.
    """

    def __init__(self, scenario: DagScenario, num_envs: int = 1, device: torch.device | str = "cpu") -> None:
        self.scenario, self.num_envs, self.device = scenario, num_envs, torch.device(device)
        self.pool = load_pool(scenario, self.device)
        self.spec = spec.team_spec(scenario, self.pool)
        self._source = EpisodeSource(scenario, self.pool, self.device)
        self._seconds_per_bit = seconds_per_bit(scenario, self.device)
        self._successors = self.pool.successors.double()
        self.episode: Episode | None = None

    @torch.no_grad()
    def reset(self, seeds: Tensor) -> StepResult:
        episode = self.episode = self._source.draw(seeds)
        rows, tasks, places, locations = episode.allowed.shape
        exists = episode.modality >= 0
        predecessors = self._successors.sum(1).float()[episode.graph]
        zeros = torch.zeros(rows, tasks, places, dtype=torch.float64, device=self.device)
        self._progress = Progress(
            blocked=torch.where(exists, predecessors, 1.0),
            data_ready_s=torch.zeros(rows, tasks, places, locations, dtype=torch.float64, device=self.device),
            location=torch.full_like(episode.modality, -1),
            place=torch.zeros_like(episode.modality),
            start_s=zeros,
            end_s=zeros.clone(),
            left=exists.sum(2),
            first_start_s=torch.full_like(zeros[:, :, 0], torch.inf),
            last_end_s=zeros[:, :, 0].clone(),
            return_s=zeros[:, :, 0].clone(),
            cost_usd=zeros[:, :, 0].clone(),
            free_s=torch.zeros(rows, locations - 1, dtype=torch.float64, device=self.device),
            finished=torch.zeros(rows, dtype=torch.bool, device=self.device),
        )
        self._constant = self._constant_parts(episode)
        self._step = 0
        self._up = self._source.edges_up(episode.seeds, 0)
        nothing = torch.zeros(rows, tasks, device=self.device)
        return self._show(nothing, {name: nothing[:, 0].clone() for name in SUMS})

    @torch.no_grad()
    def step(self, actions: Tensor) -> StepResult:
        episode, now, s = self._episode, self._progress, self.scenario
        chosen = actions.to(self.device)[:, :, 0]
        subtask = chosen // s.num_locations
        location = chosen - subtask * s.num_locations
        acting = (now.left > 0) & ~now.finished[:, None]
        blocked = _pick(now.blocked, subtask)
        usable = _pick(episode.allowed, chosen) & self._up.gather(1, location)
        legal = acting & (blocked == 0) & usable

        service_s, data_ready_s = _pick(episode.service_s, chosen), _pick(now.data_ready_s, chosen)
        at = torch.where(legal, location, s.num_locations)
        start_s, end_s, now.free_s, place = serve(at, data_ready_s, service_s, now.free_s)

        gain = s.legal_reward - s.penalty * (end_s - s.deadline_s).clamp(min=0.0) - _pick(episode.toll, chosen)
        loss = -s.penalty * (blocked + ~usable)
        reward = on_grid(torch.where(legal, gain, loss.double() * acting))

        wait_s = torch.where(at < s.num_locations - 1, start_s - data_ready_s, 0.0)
        done = self._accept(legal, chosen, (subtask, location), start_s, end_s, place)
        self._step = min(self._step + 1, self.spec.max_steps)
        now.finished = (now.left == 0).all(1) | (self._step >= self.spec.max_steps)
        self._up = self._source.edges_up(episode.seeds, self._step)
        return self._show(reward, self._metrics(reward, acting, legal, at, wait_s, done))

    def instance(self, row: int) -> Instance:
        """The row's episode as a plain problem, without failures."""
        episode, s = self._episode, self.scenario
        transfer_s = on_grid(episode.output_bits[row, :, :, None, None] * self._seconds_per_bit)
        tensors = {
            "exists": episode.modality[row] >= 0,
            "modality": episode.modality[row],
            "successors": self.pool.successors[episode.graph[row]],
            "allowed": episode.allowed[row],
            "input_s": episode.input_s[row],
            "compute_s": episode.compute_s[row],
            "transfer_s": transfer_s,
            "return_s": episode.return_s[row],
            "cost_usd": episode.cost_usd[row],
        }
        arrays = {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}
        return Instance(**arrays, deadline_s=s.deadline_s, weight=s.weight)

    def schedule(self, row: int) -> Schedule:
        """What has been decided in the row so far."""
        now = self._progress
        location, place = now.location[row].cpu(), now.place[row].cpu()
        scheduled = [(int(i), int(j)) for i, j in (location >= 0).nonzero()]
        return Schedule(
            location=location.numpy().copy(),
            order=sorted(scheduled, key=lambda cell: int(place[cell])),
            start_s=now.start_s[row].cpu().numpy().copy(),
            end_s=now.end_s[row].cpu().numpy().copy(),
        )

    @property
    def _episode(self) -> Episode:
        if self.episode is None:
            raise RuntimeError("step before reset")
        return self.episode

    # What follows from the choices

    def _accept(
        self, legal: Tensor, chosen: Tensor, pair: tuple[Tensor, Tensor], start_s: Tensor, end_s: Tensor, place: Tensor
    ) -> Tensor:
        """Writes the legal choices `[E, I]` down; returns which tasks `[E, I]` have left with them.

        Args:
            pair: The chosen subtasks and locations.
        """
        episode, now, (subtask, location) = self._episode, self._progress, pair
        _put(now.location, subtask, location, legal)
        _put(now.place, subtask, self._step * legal.shape[1] + place, legal)
        _put(now.start_s, subtask, start_s, legal)
        _put(now.end_s, subtask, end_s, legal)
        now.left = now.left - legal.long()
        now.first_start_s = torch.where(legal, torch.minimum(now.first_start_s, start_s), now.first_start_s)
        now.last_end_s = torch.where(legal, torch.maximum(now.last_end_s, end_s), now.last_end_s)
        now.return_s = now.return_s + _pick(episode.return_s, chosen) * legal
        now.cost_usd = now.cost_usd + _pick(episode.cost_usd, chosen) * legal

        graphs, places, _ = self._successors.shape
        row = (episode.graph * places + subtask).flatten()
        needs = self._successors.view(graphs * places, places).index_select(0, row).view_as(now.end_s) * legal[..., None]
        bits = _pick(episode.output_bits, subtask)
        transfer_s = on_grid(bits[..., None] * self._seconds_per_bit[location])
        arrival_s = end_s[..., None] + transfer_s  # [E, I, L]
        torch.maximum(now.data_ready_s, needs[..., None] * arrival_s[:, :, None], out=now.data_ready_s)
        now.blocked -= needs
        _put(now.blocked, subtask, torch.ones_like(chosen, dtype=torch.float32), legal)
        return legal & (now.left == 0)

    def _metrics(
        self, reward: Tensor, acting: Tensor, legal: Tensor, at: Tensor, wait_s: Tensor, done: Tensor
    ) -> dict[str, Tensor]:
        s, now = self.scenario, self._progress
        latency_s = torch.where(done, now.last_end_s - now.first_start_s + now.return_s, 0.0)
        cost_usd = torch.where(done, now.cost_usd, 0.0)
        values = {
            "reward": reward,
            "objective": on_grid(s.weight * latency_s + (1.0 - s.weight) * cost_usd),
            "completed": done,
            "violations": latency_s > s.deadline_s,
            "latency_s": latency_s,
            "cost_usd": cost_usd,
            "illegal": acting & ~legal,
            "choices": acting,
            "accepted": legal,
            "on_cloud": at == s.num_locations - 1,
            "wait_s": wait_s,
        }
        return {name: values[name].sum(1).float() for name in SUMS}

    # What is shown

    def _constant_parts(self, episode: Episode) -> Shown:
        s, (rows, tasks) = self.scenario, episode.graph.shape
        hosted_s = episode.service_s * episode.allowed

        def everyone(values: Tensor) -> Tensor:
            """The same for every agent and row."""
            return values.float().expand(rows, tasks, -1).contiguous()

        fields = {
            "subtask_modality": episode.modality,
            "subtask_input_bits": episode.input_bits,
            "subtask_output_bits": episode.output_bits,
            "subtask_cycles": episode.cycles,
            "subtask_rank_s": episode.rank_s,
            "subtask_service_s": hosted_s,
            "subtask_cost": episode.cost_usd * episode.allowed,
            "subtask_successors": self.pool.successors.float()[episode.graph],
            "server_speed_hz": everyone(torch.tensor(s.location_hz, device=self.device)),
            "server_price": everyone(torch.tensor(s.location_usd_per_gcycle, device=self.device)),
            "server_hosts": everyone(hosts(s, self.device)[:-1].T.flatten()),
            "uplink_bps": episode.uplink_bps,
            "downlink_bps": episode.downlink_bps,
        }
        fields = {name: value if name == "subtask_modality" else value.float() for name, value in fields.items()}
        edge_s = episode.service_s.masked_fill(~episode.allowed, torch.inf)[..., :-1]
        quickest_s, quickest = edge_s.min(3, keepdim=True)
        quickest_s = quickest_s.squeeze(3).nan_to_num(posinf=0.0)
        kinds = [(episode.modality == kind).float() for kind in range(len(MODALITIES))]
        shares = [self._share(time_s) for time_s in (quickest_s, hosted_s[..., -1], episode.rank_s)]
        state = torch.cat([part.flatten(1) for part in (*kinds, *shares)], dim=1)
        width = state.shape[1]
        return Shown(fields, torch.nn.functional.pad(state, (0, self.spec.state_size - width)), width, quickest)

    def _share(self, time_s: Tensor) -> Tensor:
        """Seconds to [0, 1), half at the deadline."""
        time_s = time_s.float()
        return time_s / (time_s + self.scenario.deadline_s)

    def _show(self, reward: Tensor, metrics: dict[str, Tensor]) -> StepResult:
        now = self._progress
        ready, alive = now.blocked == 0, now.left > 0
        return StepResult(
            observation=self._observation(ready),
            state=self._state(ready),
            action_mask=self._action_mask(ready, alive),
            reward=reward.double().sum(1).float(),
            terminated=now.finished.clone(),
            truncated=torch.zeros_like(now.finished),
            alive=alive,
            metrics=metrics,
            agent_reward=reward.float(),
        )

    def _observation(self, ready: Tensor) -> dict[str, Tensor]:
        """`[E, I, *shape]` for every field of `spec.observation_fields`."""
        now, tasks = self._progress, ready.shape[1]

        def everyone(x: Tensor) -> Tensor:
            """The same for every agent: `[E, X]` to `[E, I, X]`."""
            return x.float()[:, None].expand(-1, tasks, -1).clone(memory_format=torch.contiguous_format)

        shown = {name: value.clone() for name, value in self._constant.fields.items()}
        shown["subtask_scheduled"] = (now.location >= 0).float()
        shown["subtask_ready"] = ready.float()
        shown["subtask_end_s"] = now.end_s.float()
        shown["subtask_data_ready_s"] = now.data_ready_s.float().mul_(ready[..., None])
        shown["server_free_s"] = everyone(torch.nn.functional.pad(now.free_s, (0, 1)))
        shown["server_up"] = everyone(self._up)
        shown["step_share"] = torch.full((*ready.shape[:2], 1), self._step / self.spec.max_steps, device=self.device)
        return {name: shown[name] for name in self.spec.observation}

    def _state(self, ready: Tensor) -> Tensor:
        """`[E, S]` float32, every figure in [0, 1].

        Seven blocks and one for each modality, `[I * J]` each: whether a subtask has the modality; its service time on the
        quickest edge that hosts it and on the cloud, upward rank; whether it is scheduled, EN, and WT on that edge and on the
        cloud if it is ready. Then when each edge is free, which edges are up, and the step.
        """
        now = self._progress
        quickest_s = now.data_ready_s[..., :-1].gather(3, self._constant.quickest_edge).squeeze(3)
        times_s = (now.end_s, quickest_s * ready, now.data_ready_s[..., -1] * ready, now.free_s)
        state, at = self._constant.state.clone(), self._constant.state_changes_at
        for part in (now.location >= 0, *(self._share(time_s) for time_s in times_s), self._up[:, :-1]):
            width = part[0].numel()
            state[:, at : at + width] = part.flatten(1)
            at += width
        state[:, at] = self._step / self.spec.max_steps
        return state

    def _action_mask(self, ready: Tensor, alive: Tensor) -> Tensor:
        """`[E, I, 1, J * L]` bool, exact; every pair of an existing subtask if `mask_invalid` is off."""
        episode = self._episode
        if self.scenario.mask_invalid:
            legal = ready[..., None] & episode.allowed
            if self.scenario.failure_probability:
                legal &= self._up[:, None, None]
        else:
            legal = (alive[..., None] & (episode.modality >= 0))[..., None].expand_as(episode.allowed).contiguous()
        mask = legal.flatten(2)
        mask[:, :, 0] |= ~alive
        return mask[:, :, None]


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """`table [E, I, ...]`, flat in its last dimensions, at `index [E, I]`: `[E, I]`."""
    return table.flatten(2).gather(2, index[..., None]).squeeze(2)


def _put(table: Tensor, index: Tensor, value: Tensor, where: Tensor) -> None:
    """Sets `table [E, I, J]` at `index [E, I]` to `value`, but only `where [E, I]`."""
    old = table.gather(2, index[..., None])
    table.scatter_(2, index[..., None], torch.where(where[..., None], value[..., None].to(table.dtype), old))
