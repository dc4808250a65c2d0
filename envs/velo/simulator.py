"""The velo problem as a `TeamSimulator`: E episodes as tensors.

Dimensions beside those of `envs.team`, whose N agents are the servers:

    B  E * N stores   J  exchanges of a store   K = 2 kinds of entries   P  results of a query
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.exact import on_grid
from envs.queueing import serve
from envs.team import StepResult, TeamSimulator
from envs.velo import answers, spec
from envs.velo.corpus import corpus_from
from envs.velo.episode import Episode, EpisodeSource
from envs.velo.expert import Foresight
from envs.velo.pool import Nearest, Pool
from envs.velo.scenario import VeloScenario
from envs.velo.vectors import DIRECTIONS, Vectors

ANSWER, CLOUD, AUGMENT = 0, 1, 2
"""Actions A, B and C of the paper, in the order of the ternary choices."""

SUMS = ("return", "slots", "requests", "satisfaction", "delay_s", "direct", "hits", "wrong_hits", "augmented")
"""Of each part of the test too."""
MORE_SUMS = ("wait_s", "asked", "entries")
AHEAD = 2**28
"""Distances that are computed ahead, at most: 1 GB."""


@dataclass(frozen=True)
class Outcome:
    """What each server's action brings: `[E, N]`, amounts float64 on the grid of `on_grid`.

    Attributes:
        route: int64, the action that is carried out.
        exchange, kind: int64, the entry that it uses or, with CLOUD, would have used; -1 for none.
        satisfaction: Eq. 2.
        cached: Satisfaction with the answer that belongs to that entry, 0 without one.
        own_s: Delay without waits (eq. 3).
        service_s: For how long a slot of the LLM is occupied, 0 with ANSWER.
    """

    route: Tensor
    exchange: Tensor
    kind: Tensor
    satisfaction: Tensor
    cached: Tensor
    own_s: Tensor
    service_s: Tensor

    @property
    def asks(self) -> Tensor:
        """`[E, N]` bool: whether the LLM is called."""
        return self.route != ANSWER


@dataclass
class Progress:
    """What follows from the decisions so far.

    Attributes:
        free_s: `[E]` float64, when the LLM has served what it has accepted, from this interval's beginning on.
        direct, direct_satisfaction: `[E, N]` float64, count and sum over each server's direct requests.
        reuse_satisfaction: `[E, N]` float64, see `Outcome.cached`; 0 unless the last request was direct.
    """

    free_s: Tensor
    direct: Tensor
    direct_satisfaction: Tensor
    reuse_satisfaction: Tensor


class VeloSimulator(TeamSimulator):
    """Edge servers with vector stores in front of a shared LLM: see `README.md` for every choice that the paper leaves open."""

    def __init__(self, scenario: VeloScenario, num_envs: int = 1, device: torch.device | str = "cpu") -> None:
        self.scenario, self.num_envs, self.device = scenario, num_envs, torch.device(device)
        self.corpus = corpus_from(scenario.corpus)
        self.spec = spec.team_spec(scenario, self.corpus)
        self._source = EpisodeSource(scenario, self.corpus, DIRECTIONS, self.device)
        self.vectors = Vectors(self.corpus, scenario.corpus.seed, self.device)
        self._group = self.corpus.group.to(self.device)
        self._prompt = self.corpus.prompt_tokens.double().to(self.device)
        self._episode: Episode | None = None

    @torch.no_grad()
    def reset(self, seeds: Tensor) -> StepResult:
        s = self.scenario
        episode = self._episode = self._source.draw(seeds)
        zeros = torch.zeros(self.num_envs, s.num_servers, dtype=torch.float64, device=self.device)
        self._progress = Progress(zeros[:, 0].clone(), zeros.clone(), zeros.clone(), zeros.clone())
        self._step = 0
        self._ahead = (0, 0)
        self._foresight: Foresight | None = None
        self.pool = Pool(zeros.numel(), s.exchanges, self.device)
        past = slice(0, s.initial_exchanges)
        plain_s = s.llm.network_s + answers.service_s(s.llm, self._prompt[episode.question], episode.answer_tokens)
        value = on_grid(-episode.distance - plain_s)[:, :, past].flatten(0, 1)
        self.pool.insert(past, value, torch.ones_like(value, dtype=torch.bool))
        self._evictions = self._due()
        self._look()
        return self._show(zeros, {name: torch.zeros(self.num_envs, device=self.device) for name in self._sums()})

    @torch.no_grad()
    def step(self, actions: Tensor) -> StepResult:
        s, now = self.scenario, self._progress
        if self._step >= s.steps:
            return self._show(*self._idle())
        outcome = self.outcome(actions.to(self.device)[:, :, 0])
        wait_s = self._queue(outcome)
        delay_s = outcome.own_s + wait_s
        direct = (outcome.route == CLOUD).double()
        reward = on_grid(self._reward(outcome.satisfaction, delay_s, direct))
        evicted = torch.zeros_like(now.free_s) if self.frozen else self._update_stores(outcome, delay_s)
        now.direct += direct
        now.direct_satisfaction += outcome.satisfaction * direct
        now.reuse_satisfaction = outcome.cached * direct
        figures = {
            **{"satisfaction": outcome.satisfaction, "delay_s": delay_s, "direct": direct, "hits": ~outcome.asks},
            **{"wrong_hits": self._wrong_hits(outcome), "augmented": outcome.route == AUGMENT},
        }
        if self.frozen and s.offloading == "all":
            reward, figures = self._first_answer(figures, delay_s)
        figures |= {"wait_s": wait_s, "asked": outcome.asks, "entries": self._stored() / s.num_servers}
        sums = self._metrics(reward, figures) | {"evicted": evicted.float()}
        self._step += 1
        if (self._step - s.build_requests) % s.test_requests == 0 and self.frozen:
            now.free_s = torch.zeros_like(now.free_s)  # a part of the test begins
        self._look()
        return self._show(reward / s.num_servers, sums)

    @torch.no_grad()
    def expert_actions(self) -> Tensor:
        """See `envs.velo.expert`."""
        if self._foresight is None:
            self._foresight = Foresight(self.scenario, self.episode, self.vectors, self._group, self._prompt)
        rewards = [self._expected_reward(choice) for choice in range(self.spec.max_choices)]
        if self.scenario.expert_foresight and not self.frozen:
            rewards[CLOUD] = rewards[CLOUD] + self._foresight.gain(self.pool.present[:, 0], self._slot) * self._store_up()
        best = torch.stack(rewards, dim=-1).masked_fill(~self._action_mask()[:, :, 0], -torch.inf).argmax(-1)
        return best[..., None]

    def _expected_reward(self, choice: int) -> Tensor:
        """`[E, N]` float64: of one choice of every server, behind what waits at the LLM already."""
        arrival_s = self._arrival_s()
        outcome = self.outcome(torch.full_like(arrival_s, choice, dtype=torch.int64))
        wait_s = (self._progress.free_s[:, None] - arrival_s).clamp(min=0.0) * outcome.asks
        return on_grid(self._reward(outcome.satisfaction, outcome.own_s + wait_s, (outcome.route == CLOUD).double()))

    @property
    def episode(self) -> Episode:
        """What has been drawn for the rows' episodes."""
        if self._episode is None:
            raise RuntimeError("step before reset")
        return self._episode

    @property
    def frozen(self) -> bool:
        """Whether the present request belongs to the test."""
        return self._slot >= self.scenario.build_requests

    # The rules

    @property
    def _slot(self) -> int:
        """The present step, counted from 0; after the end the last one."""
        return min(self._step, self.scenario.steps - 1)

    @property
    def _exchange(self) -> int:
        """Of the present request."""
        return self.scenario.initial_exchanges + self._slot

    def _arrival_s(self) -> Tensor:
        return self.episode.arrival_s[:, :, self._slot]

    def _store_up(self) -> Tensor:
        return self.episode.store_up[:, :, self._slot]

    def _network_s(self) -> Tensor:
        """`[E, N]` float64, to the cloud and back."""
        s = self.scenario
        return s.llm.network_s * torch.where(self.episode.slow_link[:, :, self._slot], s.link_degradation, 1.0).double()

    def outcome(self, choice: Tensor) -> Outcome:
        """What `choice [E, N]` brings for the present requests; what is illegal is passed to the LLM directly."""
        s, episode, exchange = self.scenario, self.episode, self._exchange
        legal = self._legal().gather(2, choice[..., None]).squeeze(2)
        wanted = choice
        if s.action_space == "binary":
            wanted = torch.where(choice == 1, CLOUD, torch.where(self._reusable, ANSWER, AUGMENT))
        route = torch.where(legal, wanted, CLOUD)
        best = torch.where(route == ANSWER, self._best_question, self._best)
        used = self._found.exchange.gather(2, best[..., None]).squeeze(2)
        plain = episode.distance[:, :, exchange]
        cached = self._cached_distance(used)
        relevant = answers.relevance(cached, s.relevance_near, s.relevance_far)
        augmented = answers.augmented_distance(plain, relevant, s.augmentation_gain, s.augmentation_harm)
        prompt, tokens = self._prompt[episode.question[:, :, exchange]], episode.answer_tokens[:, :, exchange]
        plain_s = answers.service_s(s.llm, prompt, tokens)
        augmented_s = answers.service_s(s.llm, prompt + s.retrieved_tokens, tokens * s.augmented_length)
        service_s = on_grid(torch.where(route == CLOUD, plain_s, augmented_s) * (route != ANSWER))
        away_s = on_grid(self._network_s() * (route != ANSWER) + s.edge_s * (route != CLOUD))
        return Outcome(
            route=route,
            exchange=used,
            kind=self._found.kind.gather(2, best[..., None]).squeeze(2),
            satisfaction=on_grid(-torch.where(route == ANSWER, cached, torch.where(route == CLOUD, plain, augmented))),
            cached=on_grid(-cached * (used >= 0)),
            own_s=away_s + service_s,
            service_s=service_s,
        )

    def _cached_distance(self, exchange: Tensor) -> Tensor:
        """`[E, N]` float64: from the answer of an exchange to the reference of the present request."""
        episode, past = self.episode, exchange.clamp(min=0)[..., None]
        question, direction, distance = (
            values.gather(2, past).squeeze(2) for values in (episode.question, episode.direction, episode.distance)
        )
        return self.vectors.from_reference(episode.question[:, :, self._exchange], question, direction, distance)

    def _reward(self, satisfaction: Tensor, delay_s: Tensor, direct: Tensor) -> Tensor:
        s = self.scenario
        return answers.reward(satisfaction, delay_s, direct, s.phi_satisfaction, s.weight_ratio, s.phi_direct, s.reward_scale)

    def _queue(self, outcome: Outcome) -> Tensor:
        """`[E, N]` float64: waits at the LLM; its slots are one server of as many times the speed."""
        s, now, arrival_s = self.scenario, self._progress, self._arrival_s()
        work_s = on_grid(outcome.service_s / s.llm.slots)
        begun_s, free_s = serve(outcome.asks, arrival_s, work_s, now.free_s)
        now.free_s = (free_s - s.interval_s).clamp(min=0.0)
        return torch.where(outcome.asks, begun_s - arrival_s, 0.0)

    def _update_stores(self, outcome: Outcome, delay_s: Tensor) -> Tensor:
        """Insertion, use and eviction (Algorithm 2); `[E]` float64, entries dropped."""
        pool, satisfaction = self.pool, outcome.satisfaction.flatten()
        delay, exchange, kind = delay_s.flatten(), outcome.exchange.flatten(), outcome.kind.flatten()
        direct = (outcome.route == CLOUD).flatten()
        value = on_grid(answers.used_value(pool.value_of(exchange, kind), satisfaction, delay))
        pool.use(exchange, kind, value, ~direct)
        new = slice(self._exchange, self._exchange + 1)
        pool.insert(new, (satisfaction - delay)[:, None], (direct & self._store_up().flatten())[:, None])
        due = self._evictions[self._step]
        dropped = torch.zeros_like(delay).index_put_((due,), pool.evict(due).double())
        return dropped.view_as(delay_s).sum(1)

    def _wrong_hits(self, outcome: Outcome) -> Tensor:
        """`[E, N]` bool: answered from the store with the answer to a question of another group."""
        question = self.episode.question
        asked = question.gather(2, outcome.exchange.clamp(min=0)[..., None]).squeeze(2)
        return ~outcome.asks & (self._group[asked] != self._group[question[:, :, self._exchange]])

    def _first_answer(self, figures: dict[str, Tensor], delay_s: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Where all servers got the same request: reward `[E, N]` in equal parts, and the figures `[E, 1]` of the fastest."""
        fastest = delay_s.argmin(1, keepdim=True)
        won = {name: value.double().gather(1, fastest) for name, value in figures.items()}
        won["direct"] = on_grid(figures["direct"].sum(1, keepdim=True) / self.scenario.num_servers)
        reward = on_grid(self._reward(won["satisfaction"], won["delay_s"], won["direct"]))
        return reward.expand_as(delay_s), won

    # Figures

    def _sums(self) -> tuple[str, ...]:
        parts = self.scenario.parts
        of_parts = (f"{part}_{name}" for part in (parts if len(parts) > 1 else ()) for name in SUMS)
        return *SUMS, *MORE_SUMS, "evicted", *of_parts

    def _idle(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Reward and metrics of a finished episode."""
        zeros = torch.zeros(self.num_envs, self.scenario.num_servers, dtype=torch.float64, device=self.device)
        return zeros, {name: torch.zeros(self.num_envs, device=self.device) for name in self._sums()}

    def _metrics(self, reward: Tensor, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Name to `[E]` float32: 0 for what is not measured now."""
        s = self.scenario
        parts = s.parts
        part = parts[(self._slot - s.build_requests) // s.test_requests] if self.frozen else None
        sums = {name: value.double().sum(1).float() for name, value in figures.items()}
        sums["return"] = (reward.sum(1) / s.num_servers).float()
        sums["slots"] = torch.ones_like(sums["return"])
        sums["requests"] = torch.full_like(sums["return"], figures["satisfaction"].shape[1])
        nothing = torch.zeros_like(sums["return"])
        measured = not parts or self.frozen
        shown = {name: sums[name] if measured else nothing.clone() for name in (*SUMS, *MORE_SUMS)}
        for of_part in parts if len(parts) > 1 else ():
            shown |= {f"{of_part}_{name}": (sums[name] if part == of_part else nothing).clone() for name in SUMS}
        return shown

    # What is shown

    def _look(self) -> None:
        """Queries every store with the present request, and picks the entries that an action would use."""
        s = self.scenario
        question = self.episode.question[:, :, self._exchange].flatten()
        found = self.pool.nearest(self._distances(), self.vectors.length[question], s.query_results)
        up, shape = self._store_up()[..., None], (self.num_envs, s.num_servers, s.query_results)
        self._found = found = Nearest(
            exchange=torch.where(up, found.exchange.view(shape), -1),
            kind=torch.where(up, found.kind.view(shape), -1),
            distance=found.distance.view(shape).masked_fill(~up, torch.inf),
            uses=found.uses.view(shape) * up,
        )
        score = answers.entry_score(found.distance, found.uses, s.phi_distance, s.phi_uses)
        self._best = score.argmax(2)
        self._best_question = score.masked_fill(found.kind != 0, -torch.inf).argmax(2)
        best = self._best[..., None]
        close = (found.kind.gather(2, best) == 0) & (found.distance.gather(2, best) <= s.reuse_distance)
        self._reusable = close.squeeze(2)

    def _distances(self) -> Tensor:
        """`[B, K, j]` float32 of the present requests (`relative_distances`), from a block that is computed ahead."""
        s, episode, slot = self.scenario, self.episode, self._slot
        first, last = self._ahead
        if not first <= slot < last:
            first = slot
            last = min(s.steps, first + max(1, AHEAD // (self.num_envs * s.num_servers * s.entries)))
            past = slice(s.exchanges)
            requests = slice(s.initial_exchanges + first, s.initial_exchanges + last)
            self._block = self.vectors.distances(
                episode.question[:, :, requests].flatten(0, 1),
                *(x[:, :, past].flatten(0, 1) for x in (episode.question, episode.direction, episode.distance)),
            )
            self._ahead = (first, last)
        return self._block[slot - first, :, :, : max(1, self._exchange)]

    def _due(self) -> list[Tensor]:
        """For each request before the test, the stores that drop entries after it, `[n]` int64 each."""
        s = self.scenario
        request = torch.arange(1, s.build_requests + 1, device=self.device)[:, None]
        due = (request + self.episode.eviction.flatten()) % s.eviction_period == 0
        return list(due.nonzero()[:, 1].split(due.sum(1).tolist()))

    def _stored(self) -> Tensor:
        """`[E, N]` int64, entries of each store."""
        return self.pool.present.flatten(1).sum(1).view(self.num_envs, -1)

    def _show(self, reward: Tensor, metrics: dict[str, Tensor]) -> StepResult:
        finished = torch.full((self.num_envs,), self._step >= self.scenario.steps, device=self.device)
        stored = self._stored()
        return StepResult(
            observation=self._observation(stored),
            state=self._state(stored),
            action_mask=self._action_mask(),
            reward=reward.sum(1).float(),
            terminated=finished,
            truncated=torch.zeros_like(finished),
            alive=torch.ones_like(reward, dtype=torch.bool),
            metrics=metrics,
            agent_reward=reward.float(),
        )

    def _observation(self, stored: Tensor) -> dict[str, Tensor]:
        """`[E, N, *shape]` for every field of `spec.observation_fields`."""
        episode, now, found = self.episode, self._progress, self._found
        question = episode.question[:, :, self._exchange]
        there = found.kind >= 0
        age = self.scenario.initial_exchanges + self._step - found.exchange
        mean = on_grid(now.direct_satisfaction / now.direct.clamp(min=1.0))
        up = self._store_up()
        shown = {
            "request": self.vectors.question[question],
            "prompt_tokens": self._prompt[question],
            "distance": found.distance.masked_fill(~there, 2.0),
            "kind": found.kind,
            "uses": found.uses,
            "age": age * there,
            "entries": stored * up,
            "store_up": up,
            "network_s": self._network_s(),
            "queue_backlog_s": now.free_s[:, None].expand_as(mean),
            "direct_satisfaction": mean.clamp(min=-2.0),
            "reuse_satisfaction": now.reuse_satisfaction,
            "frozen": torch.full_like(mean, self.frozen),
        }
        numbers = {name: value.clone() if name == "kind" else value.float().contiguous() for name, value in shown.items()}
        return {name: numbers[name].view(*mean.shape, *field.shape) for name, field in self.spec.observation.items()}

    def _state(self, stored: Tensor) -> Tensor:
        """`[E, S]` float32, every figure in [-1, 1].

        For each server: distances, kinds and uses of its results, 30 fixed orthogonal coordinates of its request in place of
        all its H numbers, its length, and how full the store is. Then the LLM's backlog `t / (t + interval)`, whether the
        stores are frozen, and the step.
        """
        s, found = self.scenario, self._found
        question = self.episode.question[:, :, self._exchange]
        there = found.kind >= 0
        server = torch.cat(
            [
                found.distance.masked_fill(~there, 2.0) / 2.0,
                (found.kind + 1.0) / 2.0,
                found.uses / (1.0 + found.uses),
                self.vectors.coordinates[question],
                (self._prompt[question] / self.spec.observation["prompt_tokens"].high).float()[..., None],
                (stored / s.entries)[..., None],
            ],
            dim=2,
        )
        free_s = self._progress.free_s
        backlog = (free_s / (free_s + s.interval_s)).float()
        shared = [backlog, torch.full_like(backlog, self.frozen), torch.full_like(backlog, self._step / s.steps)]
        return torch.cat([server.flatten(1), torch.stack(shared, dim=1)], dim=1)

    def _legal(self) -> Tensor:
        """`[E, N, C]` bool: the cloud always; the store where it holds what the choice needs."""
        any_entry, any_question = self._found.kind[..., 0] >= 0, (self._found.kind == 0).any(2)
        always = torch.ones_like(any_entry)
        choices = [any_entry, always] if self.scenario.action_space == "binary" else [any_question, always, any_entry]
        return torch.stack(choices, dim=2)

    def _action_mask(self) -> Tensor:
        """`[E, N, 1, C]` bool, exact; all True where `mask_invalid` is off."""
        legal = self._legal()
        return (legal if self.scenario.mask_invalid else torch.ones_like(legal))[:, :, None]
