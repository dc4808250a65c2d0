"""What no policy for the velo problem can exceed: every request is known beforehand, and nobody waits at the LLM.

Without waits the servers do not affect each other. What remains for each is which requests to pass to the LLM directly, so that
their answers can serve later ones: a facility location problem, in which the paying requests are themselves customers.

    T  requests of one server      J  exchanges that its store can come to hold
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from torch import Tensor

from envs.velo import answers
from envs.velo.corpus import corpus_from
from envs.velo.episode import Episode, EpisodeSource
from envs.velo.pool import relative_distances
from envs.velo.scenario import VeloScenario
from envs.velo.vectors import DIRECTIONS, Vectors

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rewards:
    """Of one server's requests, without waits.

    Attributes:
        direct: `[T]`, of Action B.
        stored: `[T, J]`, of the better of Actions A and C with an exchange; -inf where it does not lie in the past.
    """

    direct: Array
    stored: Array


class Clairvoyant:
    """Knows all episodes of a scenario."""

    def __init__(self, scenario: VeloScenario) -> None:
        self.scenario = scenario
        corpus = corpus_from(scenario.corpus)
        device = torch.device("cpu")
        self._source = EpisodeSource(scenario, corpus, DIRECTIONS, device)
        self._vectors = Vectors(corpus, scenario.corpus.seed, device)
        self._prompt = corpus.prompt_tokens.double()

    def bounds(self, seeds: Tensor) -> Array:
        """`[E]`: returns of the episodes `seeds [E]` that no policy exceeds.

        Where the test offloads to all servers, the best server is taken for each request.
        """
        episode, s = self._source.draw(seeds), self.scenario
        found = np.empty((len(seeds), s.num_servers))
        tests = np.empty((len(seeds), s.num_servers, s.steps - s.build_requests))
        for row in range(len(seeds)):
            for server in range(s.num_servers):
                rewards = self.rewards(episode, row, server)
                if s.parts:
                    tests[row, server] = np.maximum(rewards.direct, rewards.stored.max(1))[s.build_requests :]
                else:
                    found[row, server] = best_openings(rewards, s.initial_exchanges)
        if s.parts:
            return (tests.max(1) if s.offloading == "all" else tests.mean(1)).sum(1)
        return found.mean(1)

    def rewards(self, episode: Episode, row: int, server: int) -> Rewards:
        """Of every action with every exchange."""
        s, cell = self.scenario, (row, server)
        past, asked = slice(s.exchanges), slice(s.initial_exchanges, None)
        question, tokens = episode.question[cell], episode.answer_tokens[cell][asked, None]
        plain = episode.distance[cell][asked, None]
        prompt = self._prompt[question][asked, None]
        cached_answers = self._vectors.answer(question[past], episode.direction[cell][past], episode.distance[cell][past])
        cached = _distances(self._vectors.reference[question[asked]], cached_answers).double()
        apart = _distances(self._vectors.question[question[asked]], self._vectors.question[question[past]])

        network_s = s.llm.network_s * torch.where(episode.slow_link[cell], s.link_degradation, 1.0)[:, None].double()
        relevant = answers.relevance(cached, s.relevance_near, s.relevance_far)
        augmented = answers.augmented_distance(plain, relevant, s.augmentation_gain, s.augmentation_harm)
        longer_s = answers.service_s(s.llm, prompt + s.retrieved_tokens, tokens * s.augmented_length)
        direct_share = 1.0 / s.num_servers if s.offloading == "all" else 1.0
        reward_a = self._reward(-cached, torch.full_like(cached, s.edge_s), 0.0)
        reward_c = self._reward(-augmented, s.edge_s + network_s + longer_s, 0.0)
        if s.action_space == "binary":
            reward_a = reward_a.masked_fill(apart > s.reuse_distance, -torch.inf)
        plain_s = network_s + answers.service_s(s.llm, prompt, tokens)
        before = torch.arange(s.exchanges) < s.initial_exchanges + torch.arange(s.steps)[:, None]
        return Rewards(
            direct=self._reward(-plain, plain_s, direct_share)[:, 0].numpy(),
            stored=torch.maximum(reward_a, reward_c).masked_fill(~before, -torch.inf).numpy(),
        )

    def _reward(self, satisfaction: Tensor, delay_s: Tensor, direct: float) -> Tensor:
        s = self.scenario
        of_direct = torch.full_like(satisfaction, direct)
        return answers.reward(
            satisfaction, delay_s, of_direct, s.phi_satisfaction, s.weight_ratio, s.phi_direct, s.reward_scale
        )


def best_openings(rewards: Rewards, initial: int) -> float:
    """The highest sum of rewards (by linear programming, so an upper bound of it) of one server.

    Each request is direct, or takes what an initial exchange brings, or what an earlier request brings that was direct.
    """
    direct, stored = rewards.direct, rewards.stored
    requests = len(direct)
    free = stored[:, :initial].max(1, initial=-np.inf)
    later, earlier = np.nonzero(stored[:, initial:] > np.maximum(free, direct)[:, None])
    floor = np.where(np.isfinite(free), free, direct)  # with an empty store there is nothing but the LLM
    links = len(later)
    gains = np.concatenate([direct, floor, stored[later, initial + earlier]])
    each = np.arange(requests)
    once = coo_array(
        (np.ones(2 * requests + links), (np.concatenate([each, each, later]), np.arange(2 * requests + links))),
        shape=(requests, len(gains)),
    )
    link = np.arange(links)
    opened = coo_array(
        (np.repeat([1.0, -1.0], links), (np.tile(link, 2), np.concatenate([2 * requests + link, earlier]))),
        shape=(max(links, 1), len(gains)),
    )
    solved = milp(
        -gains,
        constraints=[LinearConstraint(once.tocsr(), 1.0, 1.0), LinearConstraint(opened.tocsr(), -np.inf, 0.0)],
        bounds=Bounds(0.0, 1.0),
    )
    return -float(solved.fun)


def _distances(ones: Tensor, others: Tensor) -> Tensor:
    """`[n, H]` and `[m, H]` to `[n, m]`."""
    return (relative_distances(ones[None], others[None])[0] + ones.square().sum(1)[:, None]).sqrt()
