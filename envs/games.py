"""Tiny cooperative games of two agents with known optimal values: the first thing that a learning algorithm has to solve.

A game is a list of payoff matrices of one shape. With a single matrix both agents choose once and share the payoff. With
several, agent 1's first choice picks the matrix (reward 0) and the second choices play it, as in the two-step game of QMIX.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field as Description
from pydantic import FiniteFloat, field_validator
from torch import Tensor

from envs.registry import Scenario
from envs.team import ActionHead, Field, Metric, StepResult, TeamSimulator, TeamSpec

Row = Annotated[tuple[FiniteFloat, ...], Description(min_length=1, max_length=64)]
Matrix = Annotated[tuple[Row, ...], Description(min_length=1, max_length=64)]


class GameScenario(Scenario):
    """One game of two agents."""

    problem: Literal["games"] = "games"
    payoffs: Annotated[tuple[Matrix, ...], Description(min_length=1, max_length=64)] = Description(
        default=(((1.0, 0.0), (0.0, 1.0)),),
        description="One or several payoff matrices of one shape: [game][choice of agent 1][choice of agent 2]",
    )

    @field_validator("payoffs")
    @classmethod
    def _one_shape(cls, payoffs: tuple[Matrix, ...]) -> tuple[Matrix, ...]:
        rows, columns = len(payoffs[0]), len(payoffs[0][0])
        if any(len(matrix) != rows or any(len(row) != columns for row in matrix) for matrix in payoffs):
            raise ValueError(
                f"expected every payoff matrix to have {rows} rows of {columns} numbers, as the first row suggests"
            )
        return payoffs

    @property
    def optimal_return(self) -> float:
        """Return of the best joint policy: the games are deterministic and fully observed, so the largest payoff."""
        return max(value for matrix in self.payoffs for row in matrix for value in row)


SCENARIO = GameScenario
PRESETS: dict[str, dict[str, Any]] = {
    # Rashid et al. 2018, QMIX: greedy play of the sum of individual values settles for 7
    "two-step": {"payoffs": [[[7, 7], [7, 7]], [[0, 1], [1, 8]]]},
    # Son et al. 2019 (QTRAN) with the payoffs of Wang et al. 2021 (QPLEX): no monotonic mixing represents it
    "qplex-matrix": {"payoffs": [[[8, -12, -12], [-12, 0, 0], [-12, 0, 0]]]},
    # three ways to agree, one of them best: independent policy gradients can find it
    "agreement": {"payoffs": [[[4, 0, 0], [0, 6, 0], [0, 0, 10]]]},
    # Claus & Boutilier 1998: miscoordination next to the optimum is punished
    "climb": {"payoffs": [[[11, -30, 0], [-30, 7, 6], [0, 0, 5]]]},
}


class GameSimulator(TeamSimulator):
    """`num_envs` copies of one game.

    The game is at a node: with one matrix there is only node 0; with several, node 0 is agent 1's choice of the matrix and
    node k plays matrix k. Both agents and the state see the one-hot of the node. An illegal choice counts as choice 0.
    """

    def __init__(self, scenario: GameScenario, num_envs: int, device: torch.device) -> None:
        self.num_envs, self.device = num_envs, device
        self._payoffs = torch.tensor(scenario.payoffs, dtype=torch.float32, device=device)  # [matrices, rows, columns]
        matrices, rows, columns = self._payoffs.shape
        self._first_matrix = 1 if matrices > 1 else 0  # node at which matrix 0 is played
        nodes = matrices + self._first_matrix
        self.spec = TeamSpec(
            problem=scenario.problem,
            scenario=scenario.name,
            agents=("agent_1", "agent_2"),
            observation={"node": Field((nodes,), 0.0, 1.0, description="where the game is, one-hot")},
            heads=(ActionHead("choice", max(rows, columns, matrices if matrices > 1 else 1)),),
            state_size=nodes,
            max_steps=1 + self._first_matrix,
            metrics={"return": Metric("reward", None, better="higher", description="payoff of the episode")},
        )
        # [nodes, N]: how many choices each agent has; at the node where the matrix is picked, agent 1 has one per matrix
        self._choices = torch.tensor([[rows, columns]] * nodes, device=device)
        if self._first_matrix:
            self._choices[0, 0] = matrices
        self._node = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._finished = torch.zeros(num_envs, dtype=torch.bool, device=device)

    def reset(self, seeds: Tensor) -> StepResult:
        """Back to the first node; the games hold no chance, so the seeds (`[E]`) make no difference."""
        self._node = torch.zeros_like(seeds, device=self.device)
        self._finished = torch.zeros_like(self._node, dtype=torch.bool)
        return self._show(torch.zeros(self.num_envs, device=self.device))

    def step(self, actions: Tensor) -> StepResult:
        """Plays the choices `[E, N, 1]`: picks the matrix or pays out and ends."""
        choice = actions[..., 0]
        choice = torch.where(choice < self._choices[self._node], choice, 0)
        picking = self._node < self._first_matrix
        playing = ~picking & ~self._finished
        matrix = (self._node - self._first_matrix).clamp(min=0)
        rows, columns = self._payoffs.shape[1:]
        # the clamps only matter in rows that are picking, whose payoff is not used
        payoff = self._payoffs[matrix, choice[:, 0].clamp(max=rows - 1), choice[:, 1].clamp(max=columns - 1)]
        self._node = torch.where(picking, self._first_matrix + choice[:, 0], self._node)
        self._finished = self._finished | playing
        return self._show(torch.where(playing, payoff, 0.0))

    def expert_actions(self) -> Tensor:
        """To the matrix with the largest payoff, and there to the largest payoff, `[E, N, 1]`."""
        flat, columns = self._payoffs.flatten(1), self._payoffs.shape[2]
        picking = self._node < self._first_matrix
        best = flat.argmax(-1)[(self._node - self._first_matrix).clamp(min=0)]
        first = torch.where(picking, flat.amax(-1).argmax(), best // columns)
        second = torch.where(picking, 0, best % columns)
        return torch.stack([first, second], dim=-1).unsqueeze(-1)

    def _show(self, reward: Tensor) -> StepResult:
        state = torch.nn.functional.one_hot(self._node, self.spec.state_size).to(torch.float32)
        legal = torch.arange(self.spec.max_choices, device=self.device) < self._choices[self._node][..., None]
        return StepResult(
            observation={"node": state[:, None].repeat(1, self.spec.num_agents, 1)},
            state=state,
            action_mask=legal[:, :, None],
            reward=reward,
            terminated=self._finished.clone(),
            truncated=torch.zeros_like(self._finished),
            alive=torch.ones(self.num_envs, self.spec.num_agents, dtype=torch.bool, device=self.device),
            metrics={"reward": reward.clone()},
        )


def make_simulator(scenario: GameScenario, num_envs: int, device: torch.device) -> GameSimulator:
    """A simulator of `num_envs` copies of the game."""
    return GameSimulator(scenario, num_envs, device)
