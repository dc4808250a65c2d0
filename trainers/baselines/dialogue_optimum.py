"""The clairvoyant optimum of conversations, by dynamic programming: all draws are known beforehand.

A conversation that has the provider to itself is a path: a state says which endpoint answered the turn before and for how many
turns it has (what history a switch transfers depends on nothing else), and each choice adds reward, latency and dollars. The
best path within both budgets is a constrained longest path. Two answers:

* `dual_bound`: for prices of a second and of a dollar, the best path without budgets costs one backward pass; with the prices'
  worth of the budgets added, it is an upper bound, the least of which is sought. Batched over conversations.
* `best_plan`: forward over the turns with every path that no other dominates (more reward, less of both resources, same state)
  and that the bound does not exclude. Exact.

**What is relaxed.** Devices couple only through waits at the provider, and these are left out: each conversation is planned
as if it were alone with a provider that never lets it wait. No wait raises a reward, except that it can exceed a budget and so
end the reward of turns that would be negative; so a plan may give up at any turn and keep what it has. Hence the mean over
devices is an upper bound of the return. It is attained where requests do not meet: by one device nearly always (its own
requests can meet in the rate limit's bucket), by fleets under a loose limit.

    C  conversations    T  turns    W  turns of history
    S  1 + 2 W states: the beginning, local for 1 … W turns, cloud for 1 … W turns
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.dialogue.answers import Rules, Turn
from envs.dialogue.physics import CHOICES, untold_tokens
from envs.dialogue.scenario import DialogueScenario
from envs.dialogue.simulator import DialogueSimulator

EPSILON = 1e-9
BEAM, PRICES, ROUNDS = 200, 7, 6
Array = NDArray[np.float64]
Trail = list[tuple[NDArray[np.int64], NDArray[np.int64]]]  # of each turn the labels kept: parent and choice


@dataclass(frozen=True)
class Conversations:
    """What every choice of every turn would bring; `[C, T, S, 9]` float64 unless noted.

    Attributes:
        reward: -inf for illegal choices.
        quality: `[C, T, 9]`, of the answer.
        following: `[C, T, S, 9]` int64, the state after it.
        turns: `[C]` int64.
        latency_budget_s, usd_budget: `[C]`.
    """

    reward: Tensor
    latency_s: Tensor
    usd: Tensor
    quality: Tensor
    following: Tensor
    turns: Tensor
    latency_budget_s: Tensor
    usd_budget: Tensor


@dataclass(frozen=True)
class Plan:
    """One conversation's best choices, and what they bring.

    Attributes:
        reward: Upper bound of it where not `exact`.
        choices: As far as the conversation is rewarded; empty where only the bound is known.
    """

    reward: float
    choices: tuple[int, ...]
    exact: bool
    quality: float = float("nan")
    latency_s: float = float("nan")
    usd: float = float("nan")


def conversations(scenario: DialogueScenario, seeds: Tensor) -> Conversations:
    """The conversations of the episodes `seeds [E]`, device by device: `C = E * D`."""
    simulator = DialogueSimulator(scenario, len(seeds))
    simulator.reset(seeds)
    episode = simulator.episode.conversations()
    rules, window = Rules(scenario), max(scenario.history_turns, 1)
    states = 1 + 2 * window
    state = torch.arange(states)
    was_cloud, run = state > window, torch.where(state > 0, (state - 1) % window + 1, 0)
    choice = torch.arange(CHOICES)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("reward", "latency_s", "usd", "quality", "following")}
    for t in range(scenario.max_turns):
        told, ran = episode.told.expand(-1, states, -1), run.clamp(max=t).expand(len(episode.turns), -1)
        untold = [untold_tokens(told, t, same, ran, scenario.history_turns)[..., None] for same in (~was_cloud, was_cloud)]
        refused = (choice > 0) & ~episode.reachable[:, :, t, None].expand(-1, states, -1)
        answer = rules.answer(Turn.of(episode, t, trailing=1), choice.expand_as(refused), refused, (untold[0], untold[1]))
        reward = rules.reward(answer, answer.latency_s)
        on_cloud = (choice > 0) & ~refused
        goes_on = (on_cloud == was_cloud[:, None]) & (run[:, None] > 0)
        ran_after = torch.where(goes_on, (run[:, None] + 1).clamp(max=window), 1)
        parts["reward"].append(reward.masked_fill(refused, -torch.inf) if scenario.mask_invalid else reward)
        parts["latency_s"].append(answer.latency_s)
        parts["usd"].append(answer.usd.expand_as(reward))
        parts["quality"].append(answer.quality[:, 0].expand(-1, CHOICES))
        parts["following"].append(on_cloud.long() * window + ran_after)
    stacked = {name: torch.stack(of, dim=1) for name, of in parts.items()}
    budgets = episode.latency_budget_s[:, 0], episode.usd_budget[:, 0]
    return Conversations(**stacked, turns=episode.turns[:, 0], latency_budget_s=budgets[0], usd_budget=budgets[1])


@dataclass(frozen=True)
class Dual:
    """The least upper bound found, `[C]` each, and what is still to come at its prices, `[C, T + 1, S]`."""

    bound: Tensor
    per_second: Tensor
    per_dollar: Tensor
    to_come: Tensor


def dual_bound(of: Conversations) -> Dual:
    """Upper bounds by Lagrange's multipliers, which a grid narrows down; any multipliers give a bound."""
    count = len(of.turns)
    # a price at which one budget's worth of a resource outweighs any conversation is never needed
    low, width = torch.zeros(count, 2, dtype=torch.float64), torch.full((count, 2), 10.0, dtype=torch.float64)
    best = torch.full((count,), torch.inf, dtype=torch.float64)
    at = torch.zeros(count, 2, dtype=torch.float64)
    for _ in range(ROUNDS):
        for first in range(PRICES):
            for second in range(PRICES):
                share = low + width * torch.tensor([first, second], dtype=torch.float64) / (PRICES - 1)
                bound = _to_come(of, share / _budgets(of))[:, 0, 0] + share.sum(1)
                better = bound < best
                best, at = torch.where(better, bound, best), torch.where(better[:, None], share, at)
        low, width = (at - width / (PRICES - 1)).clamp(min=0.0), 2.0 * width / (PRICES - 1)
    prices = at / _budgets(of)
    return Dual(best, prices[:, 0], prices[:, 1], _to_come(of, prices))


def best_plan(of: Conversations, dual: Dual, row: int, limit_s: float = 10.0) -> Plan:
    """The best choices of one conversation, or the bound where the time is up."""
    stop = time.monotonic() + limit_s
    search = _Search(of, dual, row)
    search.run(BEAM, stop)
    if not search.run(None, stop):
        return Plan(float(dual.bound[row]), (), exact=False)
    return search.plan()


def _budgets(of: Conversations) -> Tensor:
    return torch.stack([of.latency_budget_s, of.usd_budget], dim=1)


def _to_come(of: Conversations, prices: Tensor) -> Tensor:
    """`[C, T + 1, S]`: the most that the turns from each on can bring at the prices `[C, 2]`, nothing from the end on."""
    count, turns, states, _ = of.reward.shape
    value = torch.zeros(count, turns + 1, states, dtype=torch.float64)
    for t in reversed(range(turns)):
        net = of.reward[:, t] - prices[:, 0, None, None] * of.latency_s[:, t] - prices[:, 1, None, None] * of.usd[:, t]
        after = value[:, t + 1].gather(1, of.following[:, t].flatten(1)).view_as(net)
        best = (net + after).amax(2).clamp(min=0.0)  # 0: a budget is exceeded here, and what was gained before stays
        value[:, t] = torch.where((t < of.turns)[:, None], best, 0.0)
    return value


class _Search:
    """Labels of one conversation, turn by turn."""

    def __init__(self, of: Conversations, dual: Dual, row: int) -> None:
        self.turns = int(of.turns[row])
        self.reward, self.latency_s, self.usd, self.quality, self.following = (
            x[row].numpy() for x in (of.reward, of.latency_s, of.usd, of.quality, of.following)
        )
        self.budgets = float(of.latency_budget_s[row]), float(of.usd_budget[row])
        self.prices = float(dual.per_second[row]), float(dual.per_dollar[row])
        self.to_come = dual.to_come[row].numpy()
        self.best, self.best_at = -np.inf, (0, 0)
        self.best_trail: Trail = []

    def run(self, beam: int | None, stop: float) -> bool:
        """Goes through the turns with at most `beam` labels; False where the time was up."""
        reward, latency_s, usd = (np.zeros(1) for _ in range(3))
        state = np.zeros(1, dtype=np.int64)
        trail: Trail = []
        for t in range(self.turns):
            if time.monotonic() > stop:
                return False
            gained = self.reward[t][state]  # [labels, 9]
            parent, choice = np.nonzero(np.isfinite(gained))
            at = state[parent], choice
            later_s, dearer = latency_s[parent] + self.latency_s[t][at], usd[parent] + self.usd[t][at]
            within = (later_s <= self.budgets[0]) & (dearer <= self.budgets[1])
            self._offer(reward, t, trail)
            parent, choice = parent[within], choice[within]
            at = state[parent], choice
            reward, latency_s, usd = reward[parent] + gained[parent, choice], later_s[within], dearer[within]
            state = self.following[t][at]
            trail = [*trail, (parent, choice)]
            slack = (self.budgets[0] - latency_s) * self.prices[0] + (self.budgets[1] - usd) * self.prices[1]
            bound = reward + self.to_come[t + 1][state] + slack
            keep = np.flatnonzero(bound > self.best + EPSILON)
            if beam is not None and len(keep) > beam:
                keep = keep[np.argpartition(-bound[keep], beam)[:beam]]
            keep = keep[_undominated(reward[keep], latency_s[keep], usd[keep], state[keep])]
            reward, latency_s, usd, state = reward[keep], latency_s[keep], usd[keep], state[keep]
            trail[-1] = parent[keep], choice[keep]
            if not keep.size:
                return True
        self._offer(reward, self.turns, trail)
        return True

    def plan(self) -> Plan:
        """The best path found, traced back."""
        turn, label = self.best_at
        choices = []
        for parents, chosen in reversed(self.best_trail[:turn]):
            choices.append(int(chosen[label]))
            label = int(parents[label])
        choices.reverse()
        state, latency_s, usd, quality = 0, 0.0, 0.0, 0.0
        for t, choice in enumerate(choices):
            latency_s, usd = latency_s + self.latency_s[t, state, choice], usd + self.usd[t, state, choice]
            quality += self.quality[t, choice]
            state = self.following[t, state, choice]
        return Plan(self.best, tuple(choices), True, quality / max(len(choices), 1), float(latency_s), float(usd))

    def _offer(self, reward: Array, turn: int, trail: Trail) -> None:
        """Takes the label of the highest reward as the end of the best path, if it is."""
        label = int(reward.argmax())
        if reward[label] > self.best:
            self.best, self.best_at, self.best_trail = float(reward[label]), (turn, label), list(trail)


def _undominated(reward: Array, latency_s: Array, usd: Array, state: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of labels to which no other of the same state is at least equal in everything.

    Labels come by falling reward, in blocks: each is compared with those kept before it.
    """
    kept: list[NDArray[np.int64]] = []
    for s in np.unique(state):
        of_state = np.flatnonzero(state == s)
        of_state = of_state[np.lexsort((usd[of_state], latency_s[of_state], -reward[of_state]))]
        chosen = np.empty(0, dtype=np.int64)
        for block in np.array_split(of_state, -(-len(of_state) // 256)):
            free = ~_covered(block, chosen, latency_s, usd)
            block = block[free]
            before = np.tri(len(block), k=-1, dtype=bool)
            worse = (latency_s[block][:, None] >= latency_s[block]) & (usd[block][:, None] >= usd[block]) & before
            chosen = np.concatenate([chosen, block[~worse.any(1)]])
        kept.append(chosen)
    return np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)


def _covered(block: NDArray[np.int64], chosen: NDArray[np.int64], latency_s: Array, usd: Array) -> NDArray[np.bool_]:
    """Whether each label of the block needs no less of both resources than one that is chosen."""
    no_less: NDArray[np.bool_] = (latency_s[block][:, None] >= latency_s[chosen]) & (usd[block][:, None] >= usd[chosen])
    return np.asarray(no_less.any(1))


def best_plans(scenario: DialogueScenario, seeds: Tensor, limit_s: float = 10.0, exact_up_to: int = 2_000) -> list[list[Plan]]:
    """Plans of every device of every episode; the bound alone where there are more than `exact_up_to` conversations.

    Args:
        limit_s: For each conversation.
    """
    of = conversations(scenario, seeds)
    dual = dual_bound(of)
    count, devices = len(of.turns), scenario.num_devices
    if count <= exact_up_to:
        plans = [best_plan(of, dual, row, limit_s) for row in range(count)]
    else:
        plans = [Plan(float(bound), (), exact=False) for bound in dual.bound]
    return [plans[first : first + devices] for first in range(0, count, devices)]


def best_returns(plans: list[list[Plan]]) -> Array:
    """`[E]`: the return that no policy exceeds."""
    return np.array([np.mean([plan.reward for plan in of_episode]) for of_episode in plans])
