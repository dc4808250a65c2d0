"""What the families that learn from replay share: episodes in, batches out, and both in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from trainers.algorithms.team_algorithm import Settings, TeamAlgorithm
from trainers.replay import EpisodeReplay
from trainers.reward_moments import RewardMoments
from trainers.rollout import JointEpisodes

REPLAY_FILE = "replay.safetensors"


class ReplaySettings(Settings):
    """Settings of learning from replay."""

    replay_capacity: int = Field(512, ge=1, description="episodes kept")
    batch_episodes: int = Field(32, ge=1, description="episodes in an update")
    updates: int = Field(8, ge=1, description="updates after each round of sampling")
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
        self.rewards = RewardMoments()
        super().setup(config)

    def training_step(self) -> None:
        settings = self.config.settings
        for rows in self.sample_episodes():
            self.replay.add(rows, self.config.spec.max_steps)
            self.rewards.add(rows)
            self.sampled(rows)
        if self.replay.size < settings.learning_starts:
            self.sync()  # what families count in `sampled` acts too
            return
        if not self.inputs_fitted:
            self.fit_inputs(self.replay.sample(settings.batch_episodes, draw=0))
        for _ in range(settings.updates):
            self.learn(self._treated(self.replay.sample(settings.batch_episodes, self.draws)))
            self.draws += 1
        self.sync()

    def sampled(self, rows: JointEpisodes) -> None:
        """What a family does with new episodes besides remembering them; nothing, here."""

    def _treated(self, rows: JointEpisodes) -> JointEpisodes:
        treatment = self.config.settings.rewards
        return rows if treatment == "raw" else getattr(self.rewards, treatment)(rows)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_state(*args, **kwargs), "draws": self.draws, "rewards": asdict(self.rewards)}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.draws = state.get("draws", self.draws)
        self.rewards = RewardMoments(**state.get("rewards", asdict(self.rewards)))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        super().save_checkpoint(checkpoint_dir)
        self.replay.save(Path(checkpoint_dir) / REPLAY_FILE)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        super().load_checkpoint(checkpoint_dir)
        self.replay.load(Path(checkpoint_dir) / REPLAY_FILE)
