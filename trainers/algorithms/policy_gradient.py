"""What MAPPO, COMA and MADDPG share: agents with stochastic policies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.distributions import BranchCategorical
from models.team_module import ACTION_MASK, ACTIONS, DENOISING, FILLED, LOG_PROB, OBSERVATION, TeamModule
from models.team_network import NetworkOutput
from trainers.rollout import JointEpisodes


class PolicyModule(TeamModule):
    """The team's network read as logits: it samples when it explores, and takes the most probable choices when it does not.

    A diffusion actor denoises random numbers when it explores, and zeros when it does not.

    Attributes:
        records_noise: Whether losses see those random numbers again. False where they ask what the policy would do now.
    """

    scores_are = "probabilities"
    records_noise = True

    @torch.no_grad()
    def act(
        self,
        packed: Tensor,
        action_mask: Tensor,
        state: dict[str, Tensor],
        explore: bool,
        env_steps: int = 0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        noise = self.draw_noise(packed, generator) if explore else None
        policy, hidden = self._policy(packed, action_mask, state, noise)
        actions = self._explore(policy, env_steps, generator) if explore else policy.mode()
        extras = {LOG_PROB: policy.of_branches(actions)} if explore else {}
        if noise is not None and self.records_noise:
            extras[DENOISING] = noise
        return actions, {"hidden": hidden, "previous_actions": actions}, extras

    def weigh(self, packed: Tensor, action_mask: Tensor, state: dict[str, Tensor]) -> Tensor:
        return self._policy(packed, action_mask, state)[0].log_p.exp()

    def sample(
        self, packed: Tensor, action_mask: Tensor, state: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions `[E, N, H]` drawn from the policies as they are, and the next state (arguments: `act`)."""
        policy, hidden = self._policy(packed, action_mask, state)
        actions = policy.sample(generator)
        return actions, {"hidden": hidden, "previous_actions": actions}

    @torch.no_grad()
    def _policy(
        self, packed: Tensor, action_mask: Tensor, state: dict[str, Tensor], noise: Tensor | None = None
    ) -> tuple[BranchCategorical, Tensor]:
        """The distributions of one decision, and what the agents remember of it (arguments: `act`, `draw_noise`)."""
        denoising = None if noise is None else noise.unsqueeze(1)
        previous = state["previous_actions"].unsqueeze(1)
        out = self.network(packed.unsqueeze(1), previous, state["hidden"], denoising=denoising)
        return BranchCategorical.of(out.scores.squeeze(1), action_mask), out.hidden

    def draw_noise(self, packed: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Noise `[..., steps, W]` for the decisions on observations `[..., D]`; None where no diffusion actor needs it."""
        config = self.network_config.diffusion
        if config is None:
            return None
        shape = (*packed.shape[:-1], config.steps, sum(self.spec.branches))
        return torch.randn(shape, generator=generator, device=packed.device)

    def _explore(self, policy: BranchCategorical, env_steps: int, generator: torch.Generator | None) -> Tensor:
        """The actions `[E, N, H]` of a decision that gathers experience."""
        return policy.sample(generator)

    def unroll(self, batch: dict[str, Tensor], after: bool = False) -> tuple[BranchCategorical, NetworkOutput]:
        """The policies in the T steps that were acted in, `[B, T, N, H]` distributions.

        Args:
            after: Also in what the last action led to, `[B, T + 1, N, H]`.
        """
        actions = batch[ACTIONS].to(torch.int64)
        previous = F.pad(actions, (0, 0, 0, 0, 1, 0), value=-1)
        steps = actions.shape[1] + after
        observation, start = batch[OBSERVATION][:, :steps], self.network.initial_state(len(actions))
        out = self.network(observation, previous[:, :steps], start, denoising=self._noise_of(batch, observation))
        return BranchCategorical.of(out.scores, batch[ACTION_MASK][:, :steps]), out

    def _noise_of(self, batch: dict[str, Tensor], observation: Tensor) -> Tensor | None:
        """Recorded noise, and fresh noise for the decisions on `observation` `[B, T or T + 1, N, D]` of which there is none."""
        if DENOISING not in batch:
            return self.draw_noise(observation)
        recorded = batch[DENOISING]
        fresh = self.draw_noise(observation[:, recorded.shape[1] :])
        return recorded if fresh is None or not fresh.shape[1] else torch.cat([recorded, fresh], dim=1)


def join_rows(parts: list[JointEpisodes]) -> JointEpisodes:
    """The rows of several runners as one batch, the shorter ones padded with zeros (`filled` says where episodes end)."""
    if len(parts) == 1:
        return parts[0]
    steps = max(part[FILLED].shape[1] for part in parts)
    missing = [steps - part[FILLED].shape[1] for part in parts]
    return {
        name: torch.cat([_padded(part[name], more) for part, more in zip(parts, missing, strict=True)]) for name in parts[0]
    }


def _padded(column: Tensor, more: int) -> Tensor:
    return torch.cat([column, column.new_zeros(column.shape[0], more, *column.shape[2:])], dim=1) if more else column
