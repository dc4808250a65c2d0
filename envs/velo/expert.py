"""How an expert who knows the future weighs a direct request: by what its answer will bring besides.

The paper's expert evaluates each action for the present request alone. A direct request is hardly ever best then: it costs the
most, and what it adds to the store pays later. So the expert here adds to it what its answer would bring later requests of the
server.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.exact import on_grid
from envs.velo import answers
from envs.velo.episode import Episode
from envs.velo.scenario import VeloScenario
from envs.velo.vectors import Vectors


class Foresight:
    """The later requests of each server that an exchange could answer.

    An exchange serves a request of the same group whose question is within `reuse_distance` of its own. Without any that does,
    a request costs what the better of a direct request and one with irrelevant text would. Nobody waits at the LLM.

        B  E * N stores   T  steps   J  exchanges
    """

    def __init__(self, s: VeloScenario, episode: Episode, vectors: Vectors, group: Tensor, prompt_tokens: Tensor) -> None:
        """`group` and `prompt_tokens` are the corpus's, `[Q]`."""
        self._s, self._shape = s, episode.question.shape[:2]
        question = episode.question.flatten(0, 1)
        past, asked = slice(s.exchanges), slice(s.initial_exchanges, None)
        stored = (x.flatten(0, 1)[:, past] for x in (episode.question, episode.direction, episode.distance))
        relative = vectors.distances(question[:, asked], *stored)[:, :, 0].transpose(0, 1)
        near = relative + vectors.length[question[:, asked, None]] <= s.reuse_distance**2
        self._serves = near & (group[question[:, asked, None]] == group[question[:, None, past]])
        self._distance = episode.distance.flatten(0, 1)
        plain, tokens = self._distance[:, asked], episode.answer_tokens.flatten(0, 1)[:, asked]
        prompt = prompt_tokens[question[:, asked]]
        augmented = answers.augmented_distance(plain, torch.zeros_like(plain), s.augmentation_gain, s.augmentation_harm)
        longer_s = answers.service_s(s.llm, prompt + s.retrieved_tokens, tokens * s.augmented_length)
        plain_s = answers.service_s(s.llm, prompt, tokens)
        self._without = torch.maximum(
            self._reward(-plain, s.llm.network_s + plain_s, 1.0), self._reward(-augmented, s.llm.network_s + longer_s, 0.0)
        )

    def gain(self, stored: Tensor, step: int) -> Tensor:
        """`[E, N]` float64: what later requests gain from the answer to the present one.

        Args:
            stored: `[B, J]` bool, the questions in the stores now.
            step: The present one.
        """
        exchange = self._s.initial_exchanges + step
        later = slice(step + 1, None)
        served = (self._serves[:, later] & stored[:, None]).any(2)
        edge_s = torch.full_like(self._without[:, :1], self._s.edge_s)
        reused = self._reward(-self._distance[:, exchange, None], edge_s, 0.0)
        gains = (reused - self._without[:, later]).clamp(min=0.0) * (self._serves[:, later, exchange] & ~served)
        return on_grid(gains).sum(1).view(self._shape)

    def _reward(self, satisfaction: Tensor, delay_s: Tensor, direct: float) -> Tensor:
        s, of_direct = self._s, torch.full_like(satisfaction, direct)
        return answers.reward(
            satisfaction, delay_s, of_direct, s.phi_satisfaction, s.weight_ratio, s.phi_direct, s.reward_scale
        )
