"""The dialogue problem as a `TeamSimulator`: E episodes as tensors (survey on collaborative intelligence, Sec. V).

Dimensions beside those of `envs.team` (whose N agents are the D devices here):

    D  devices      T  turns of the longest conversation      V  views
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.dialogue import spec
from envs.dialogue.answers import Answer, Rules, Turn
from envs.dialogue.episode import Episode, EpisodeSource
from envs.dialogue.physics import CHOICES, untold_tokens
from envs.dialogue.queueing import admit
from envs.dialogue.scenario import DialogueScenario
from envs.exact import on_grid
from envs.team import StepResult, TeamSimulator

SUMS = (
    *("reward", "quality", "latency_s", "usd", "association", "turns", "conversations", "exceeded", "latency_exceeded"),
    *("usd_exceeded", "lost", "cloud", "views", "wait_s", "history", "refused"),
)


@dataclass
class Progress:
    """What follows from the decisions so far. Amounts are float64 on the grid of `on_grid`.

    Attributes:
        latency_s, usd: `[E, D]`, spent.
        exceeded: `[E, D]` bool.
        on_cloud: `[E, D]` bool, whether the cloud answered the turn before.
        run: `[E, D]` int64, for how many turns that endpoint has answered, 0 at the beginning.
        drained_s, free_s: `[E]`, when the provider's bucket is empty and when its slots are free, from this interval's
            beginning on.
        finished: `[E]` bool.
    """

    latency_s: Tensor
    usd: Tensor
    exceeded: Tensor
    on_cloud: Tensor
    run: Tensor
    drained_s: Tensor
    free_s: Tensor
    finished: Tensor


class DialogueSimulator(TeamSimulator):
    """Budgeted device-cloud routing: see `README.md` for every choice that the paper leaves open."""

    def __init__(self, scenario: DialogueScenario, num_envs: int = 1, device: torch.device | str = "cpu") -> None:
        self.scenario, self.num_envs, self.device = scenario, num_envs, torch.device(device)
        self.spec = spec.team_spec(scenario)
        self.rules = Rules(scenario, self.device)
        self._source = EpisodeSource(scenario, self.device)
        self._table_s = torch.tensor(list(scenario.endpoints.cloud.latency_s.values()), device=self.device)
        self._budget_scale = spec.largest_budgets(scenario)
        self._history_scale = max(spec.most_tokens(scenario)[1], 1)
        self._episode: Episode | None = None

    @torch.no_grad()
    def reset(self, seeds: Tensor) -> StepResult:
        self._episode = self._source.draw(seeds)
        rows, devices = self.num_envs, self.scenario.num_devices
        zeros = torch.zeros(rows, devices, dtype=torch.float64, device=self.device)
        no = torch.zeros(rows, devices, dtype=torch.bool, device=self.device)
        self._progress = Progress(
            latency_s=zeros,
            usd=zeros.clone(),
            exceeded=no,
            on_cloud=no.clone(),
            run=no.long(),
            drained_s=zeros[:, 0].clone(),
            free_s=zeros[:, 0].clone(),
            finished=no[:, 0].clone(),
        )
        self._step = 0
        return self._show(zeros, {name: torch.zeros(rows, device=self.device) for name in SUMS})

    @torch.no_grad()
    def step(self, actions: Tensor) -> StepResult:
        now, acting = self._progress, self._alive()
        choice = actions.to(self.device)[:, :, 0] * acting
        refused = (choice > 0) & ~self._reachable()
        untold = self._untold()
        answer = self.rules.answer(Turn.of(self.episode, self._turn), choice, refused, untold)
        on_cloud = (choice > 0) & ~refused
        wait_s = self._wait(on_cloud, answer)
        latency_s = (answer.latency_s + wait_s) * acting

        over_before = now.exceeded
        slow_before, dear_before = self._over()
        now.latency_s = now.latency_s + latency_s
        now.usd = now.usd + answer.usd
        slow, dear = self._over()
        now.exceeded = slow | dear
        reward = self.rules.reward(answer, latency_s) * (acting & ~now.exceeded)

        last = acting & (self.episode.turns == self._step + 1)
        values = {
            "reward": reward,
            "quality": on_grid(answer.quality) * acting,
            "latency_s": latency_s,
            "usd": answer.usd,
            "association": on_grid(answer.association) * acting,
            "turns": acting,
            "conversations": last,
            "exceeded": now.exceeded & ~over_before,
            "latency_exceeded": slow & ~slow_before,
            "usd_exceeded": dear & ~dear_before,
            "lost": acting & now.exceeded,
            "cloud": on_cloud,
            "views": answer.views,
            "wait_s": wait_s,
            "history": torch.where(on_cloud, untold[1], untold[0]) * acting,
            "refused": refused,
        }
        now.run = torch.where(acting, torch.where((on_cloud == now.on_cloud) & (now.run > 0), now.run + 1, 1), now.run)
        now.on_cloud = torch.where(acting, on_cloud, now.on_cloud)
        self._step = min(self._step + 1, self.spec.max_steps)
        now.finished = ~self._alive().any(1)
        metrics = {name: values[name].double().sum(1).float() for name in SUMS}
        metrics["reward"] = (reward.sum(1) / self.scenario.num_devices).float()
        return self._show(reward / self.scenario.num_devices, metrics)

    @property
    def episode(self) -> Episode:
        """What has been drawn for the rows' episodes."""
        if self._episode is None:
            raise RuntimeError("step before reset")
        return self._episode

    def remaining(self) -> tuple[Tensor, Tensor]:
        """`[E, D]` float64: seconds and dollars left of the budgets, 0 where exceeded."""
        now, episode = self._progress, self.episode
        latency_s, usd = episode.latency_budget_s - now.latency_s, episode.usd_budget - now.usd
        return latency_s.clamp(min=0.0), usd.clamp(min=0.0)

    # The rules

    @property
    def _turn(self) -> int:
        """The present turn, counted from 0; after the end the last one."""
        return min(self._step, self.scenario.max_turns - 1)

    def _alive(self) -> Tensor:
        """`[E, D]` bool: conversations that go on."""
        return self.episode.turns > self._step

    def _over(self) -> tuple[Tensor, Tensor]:
        """`[E, D]` bool: which budgets are exceeded, latency and dollars."""
        now, episode = self._progress, self.episode
        return now.latency_s > episode.latency_budget_s, now.usd > episode.usd_budget

    def _reachable(self) -> Tensor:
        """`[E, D]` bool: whether the cloud would answer."""
        reachable = self.episode.reachable[:, :, self._turn]
        return reachable & ~self._progress.exceeded if self.scenario.hard_budget else reachable

    def _untold(self) -> tuple[Tensor, Tensor]:
        """`[E, D]`: tokens of dialogue that the local and the cloud model have not seen."""
        now, told = self._progress, self.episode.told
        window = self.scenario.history_turns
        local, cloud = (untold_tokens(told, self._turn, same, now.run, window) for same in (~now.on_cloud, now.on_cloud))
        return local, cloud

    def _wait(self, on_cloud: Tensor, answer: Answer) -> Tensor:
        """`[E, D]`: seconds between request and service, and the provider's backlog of the next interval."""
        s, now = self.scenario, self._progress
        arrival_s = self.episode.arrival_s[:, :, self._turn]
        admitted = admit(
            on_cloud,
            arrival_s,
            answer.tokens,
            answer.hold_s,
            now.drained_s,
            now.free_s,
            s.rate_limit_tokens_per_s,
            s.rate_burst_tokens,
            s.cloud_slots,
        )
        now.drained_s = (admitted.drained_s - s.turn_interval_s).clamp(min=0.0)
        now.free_s = (admitted.free_s - s.turn_interval_s).clamp(min=0.0)
        return on_grid(torch.where(on_cloud, admitted.started_s - arrival_s, 0.0))

    # What is shown

    def _show(self, reward: Tensor, metrics: dict[str, Tensor]) -> StepResult:
        alive, untold = self._alive(), self._untold()
        return StepResult(
            observation=self._observation(alive, untold),
            state=self._state(alive, untold),
            action_mask=self._action_mask(alive),
            reward=metrics["reward"].clone(),
            terminated=self._progress.finished.clone(),
            truncated=torch.zeros_like(self._progress.finished),
            alive=alive,
            metrics=metrics,
            agent_reward=reward.float(),
        )

    def _observation(self, alive: Tensor, untold: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """`[E, D, *shape]` for every field of `spec.observation_fields`; those of a turn are 0 for whoever has none."""
        now, here = self._progress, alive[..., None]
        episode, turn = self.episode, self._turn

        def everyone(x: Tensor) -> Tensor:
            """The same for every device: `[E]` to `[E, D, 1]`."""
            return x.float()[:, None, None].expand(-1, alive.shape[1], -1).clone(memory_format=torch.contiguous_format)

        latency_s, usd = self.remaining()
        shown = {
            "category": episode.category[:, :, turn, None] * here,
            "difficulty_hint": episode.difficulty_hint[:, :, turn, None].float() * here,
            "relevance_hint": episode.relevance_hint[:, :, turn].float() * here,
            "prompt_tokens": episode.prompt_tokens[:, :, turn, None].float() * here,
            "history_tokens": torch.stack(untold, dim=2).float() * here,
            "network": episode.network[:, :, turn, None] * here,
            "cloud_latency_s": self._table_s[episode.network[:, :, turn]] * here,
            "link_up": (episode.reachable[:, :, turn, None] & here).float(),
            "rate_backlog_s": everyone(now.drained_s),
            "queue_backlog_s": everyone(now.free_s),
            "turn": torch.full_like(usd, min(self._step, max(self.scenario.max_turns - 1, 1)), dtype=torch.float32)[..., None],
            "latency_left_s": latency_s[..., None].float(),
            "usd_left": usd[..., None].float(),
            "exceeded": now.exceeded[..., None].float(),
        }
        return {name: shown[name] for name in self.spec.observation}

    def _state(self, alive: Tensor, untold: tuple[Tensor, Tensor]) -> Tensor:
        """`[E, S]` float32, every figure in [0, 1].

        Blocks of `[D]`: whether the conversation goes on and the turns left (which the devices do not know); difficulty and
        relevance as the device sees them; network; whether the cloud can be reached; budgets left and whether one is
        exceeded; history that each endpoint lacks; category one-hot. Then the two backlogs `t / (t + interval)`, and the step.
        """
        s, now, episode, turn = self.scenario, self._progress, self.episode, self._turn
        latency_s, usd = self.remaining()
        categories = torch.arange(len(s.categories), device=self.device)
        parts = [
            alive,
            (episode.turns - self._step).clamp(min=0) / s.max_turns,
            episode.difficulty_hint[:, :, turn],
            episode.network[:, :, turn] / max(len(s.networks) - 1, 1),
            episode.reachable[:, :, turn],
            latency_s / self._budget_scale[0],
            usd / self._budget_scale[1],
            now.exceeded,
            *(tokens / self._history_scale for tokens in untold),
        ]
        device = torch.stack([part.float() for part in parts], dim=2)
        device = torch.cat(
            [device, episode.relevance_hint[:, :, turn].float(), (episode.category[:, :, turn, None] == categories).float()],
            dim=2,
        )
        device[..., 1:] *= alive[..., None]
        backlogs = [(t / (t + s.turn_interval_s)).float() for t in (now.drained_s, now.free_s)]
        share = torch.full_like(backlogs[0], self._step / self.spec.max_steps)
        return torch.cat([device.flatten(1), torch.stack([*backlogs, share], dim=1)], dim=1)

    def _action_mask(self, alive: Tensor) -> Tensor:
        """`[E, D, 1, 9]` bool, exact: local always, the cloud unless it would refuse (or `mask_invalid` is off)."""
        open_ = alive & self._reachable() if self.scenario.mask_invalid else alive
        mask = open_[..., None].repeat(1, 1, CHOICES)
        mask[..., 0] = True
        return mask[:, :, None]
