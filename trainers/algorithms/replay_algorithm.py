"""What the families that learn from replay share: episodes in, batches out, and both in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from models.team_module import FILLED
from trainers.algorithms.team_algorithm import Settings, TeamAlgorithm
from trainers.replay import EpisodeReplay
from trainers.reward_moments import RewardMoments
from trainers.rollout import JointEpisodes

REPLAY_FILE = "replay.safetensors"


class ReplaySettings(Settings):
    """Settings of learning from replay."""

    replay_capacity: int = Field(512, ge=1, description="episodes kept")
    batch_episodes: int = Field(32, ge=1, description="episodes in an update")
    updates: int = Field(
        8, ge=1, description="updates after each round of sampling, in which every runner plays its parallel episodes once"
    )
    learning_starts: int = Field(32, ge=1, validate_default=True, description="episodes in replay before the first update")
    rewards: Literal["standardise", "scale", "raw"] = Field(
        "standardise",
        description="subtract mean and divide by deviation of all rewards so far (Papoudakis et al. 2021); or divide by their "
        "root mean square, for problems whose decisions change the length of the episode; or leave them",
    )

    @field_validator("learning_starts")
    @classmethod
    def _fits_into_replay(cls, learning_starts: int, info: ValidationInfo) -> int:
        capacity = info.data.get("replay_capacity", learning_starts)
        if learning_starts > capacity:
            raise ValueError(f"expected at most replay_capacity = {capacity}, or learning never starts")
        return learning_starts


class ReplayAlgorithm(TeamAlgorithm):
    """Sample a round of episodes, remember them, learn from replay, send the weights out."""

    def setup(self, config: Any) -> None:
        self.replay = EpisodeReplay(config.settings.replay_capacity, config.seed or 0)
        self.draws = 0
        self.credit = 0
        self.rewards = RewardMoments()
        super().setup(config)

    def training_step(self) -> None:
        """One round: as many episodes as the runners play at a time, and `updates` updates.

        Asynchronous sampling learns in between, whenever episodes have come, and sends their runner new weights.
        """
        ends = self.episodes + self._round
        self._learn_from(self.sample_episodes())
        while self.config.asynchronous and self.episodes < ends:
            self._learn_from(self.sample_episodes())

    @property
    def _round(self) -> int:
        """Episodes that the runners play at a time."""
        return max(1, self.config.num_env_runners) * self.config.num_envs_per_env_runner

    def _learn_from(self, parts: list[JointEpisodes]) -> None:
        settings = self.config.settings
        for rows in parts:
            self.replay.add(rows, self.config.spec.max_steps)
            self.rewards.add(rows)
            self.sampled(rows)
        if self.replay.size < settings.learning_starts:
            self.sync()  # what families count in `sampled` acts too
            return
        if not self.inputs_fitted:
            self.fit_inputs(self.replay.sample(settings.batch_episodes, draw=0))
        for _ in range(self._due(sum(len(rows[FILLED]) for rows in parts))):
            self.learn(self._treated(self.replay.sample(settings.batch_episodes, self.draws)))
            self.draws += 1
        self.sync()

    def _due(self, episodes: int) -> int:
        """Updates for that many episodes: the same share of them as of a round, however few runners deliver at a time."""
        due, self.credit = divmod(self.credit + episodes * self.config.settings.updates, self._round)
        return due

    def sampled(self, rows: JointEpisodes) -> None:
        """What a family does with new episodes besides remembering them; nothing, here."""

    def _treated(self, rows: JointEpisodes) -> JointEpisodes:
        treatment = self.config.settings.rewards
        return rows if treatment == "raw" else getattr(self.rewards, treatment)(rows)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        counters = {"draws": self.draws, "credit": self.credit, "rewards": asdict(self.rewards)}
        return {**super().get_state(*args, **kwargs), **counters}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.draws = state.get("draws", self.draws)
        self.credit = state.get("credit", self.credit)
        self.rewards = RewardMoments(**state.get("rewards", asdict(self.rewards)))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        super().save_checkpoint(checkpoint_dir)
        self.replay.save(Path(checkpoint_dir) / REPLAY_FILE)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        super().load_checkpoint(checkpoint_dir)
        self.replay.load(Path(checkpoint_dir) / REPLAY_FILE)
