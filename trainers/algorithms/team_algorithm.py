"""What the algorithm families share: sampling through TeamEnvRunners, counters, evaluation, checkpoints."""

from __future__ import annotations

import logging
import os
from typing import Any, TypeVar

import numpy as np
import ray
from pydantic import BaseModel, ConfigDict, Field
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from envs.registry import Scenario
from envs.team import TeamSimulator, TeamSpec, episode_seeds
from models.team_module import TeamModule
from models.team_network import NetworkConfig
from trainers.algorithms.team_learner import TeamLearner
from trainers.rollout import JointEpisodes, TeamEnvRunner

for notices in ("ray.rllib", "ray._common.deprecation"):  # RLlib's to itself, on its new API stack
    logging.getLogger(notices).setLevel(logging.ERROR)

EVALUATION_SEED = 20_260_000
"""Run seed of the episodes that training-time evaluation plays: the same ones for every training."""

FIGURES = "figures"
"""Where, below the module's name, a learner logs what `metrics.jsonl` shows of it."""

Config = TypeVar("Config", bound="TeamAlgorithmConfig")


class Settings(BaseModel):
    """Base of the families' settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float = Field(5e-4, gt=0, description="Adam's learning rate")
    lr_end: float | None = Field(None, gt=0, description="the rate falls linearly to this at the end; null: it stays as it is")
    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    gradient_clip: float = Field(10.0, gt=0, description="largest global norm of the gradient")

    def check(self, simulator: TeamSimulator) -> None:
        """Raises `InputError` where the settings ask for what the problem does not have."""


class TeamAlgorithmConfig(AlgorithmConfig):
    """RLlib's configuration for a team algorithm; `team` sets what is ours, RLlib's own methods the rest."""

    algorithm_class: type[TeamAlgorithm]
    module_class: type[TeamModule]
    learner_class: type[TeamLearner]
    settings_class: type[Settings]
    spec: TeamSpec

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or self.algorithm_class)
        self.settings: Settings = self.settings_class()
        self.network = NetworkConfig()
        self.evaluation_episodes = 64
        self.budget = 0
        # Several learners: not every family has a use for every output of the team's network.
        self.framework("torch", torch_ddp_kwargs={"find_unused_parameters": True})
        self.api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        self.env_runners(env_runner_cls=TeamEnvRunner, batch_mode="complete_episodes", num_env_runners=0)
        self.fault_tolerance(restart_failed_env_runners=True)

    def team(
        self: Config,
        scenario: Scenario,
        spec: TeamSpec,
        network: NetworkConfig,
        settings: Settings,
        env_steps: int,
        device: str = "cpu",
    ) -> Config:
        """Sets problem, network and the algorithm's settings.

        Args:
            spec: The scenario's, as its simulator states it.
            env_steps: Length of the training, for schedules.
            device: Where the runners simulate.
        """
        self.settings = settings
        self.spec = spec
        self.network = network
        self.environment("edgeflock/team", env_config={"scenario": scenario, "device": device})
        self.budget = env_steps
        self.training(
            lr=self.learning_rate("actor"), gamma=settings.gamma, grad_clip=settings.gradient_clip, grad_clip_by="global_norm"
        )
        return self

    def learning_rate(self, group: str) -> float | list[list[float]]:
        """Rate or schedule of a group of parameters (`TeamModule.trained_parameters`): `lr`, for critics `critic_lr` if set."""
        settings = self.settings
        lr = getattr(settings, "critic_lr", None) if group == "critic" else None
        if lr is None:
            lr = settings.lr
        if settings.lr_end is None:
            return lr
        return [[0, lr], [self.budget, lr * settings.lr_end / settings.lr]]

    def get_default_learner_class(self) -> type[TeamLearner]:
        return self.learner_class

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        model_config = {"spec": self.spec, "network": self.network, "settings": self.settings}
        return RLModuleSpec(module_class=self.module_class, model_config=model_config)


class TeamAlgorithm(Algorithm):
    """Base of the families: subclasses write `training_step` from `sample_episodes`, `learn` and `sync`."""

    env_steps: int
    """Environment steps (of the team, not of single agents) sampled since the training began."""

    episodes: int
    """Episodes sampled since the training began."""

    inputs_fitted: bool
    """Whether the statistics that standardise inputs have been taken."""

    def setup(self, config: TeamAlgorithmConfig) -> None:
        self.env_steps = 0
        self.episodes = 0
        self.inputs_fitted = False
        super().setup(config)

    @classmethod
    def _get_env_id_and_creator(cls, env_specifier: Any, config: Any) -> tuple[str, Any]:
        # TeamEnvRunner makes its simulator itself; RLlib only wants a name and a function.
        return "edgeflock/team", lambda env_context: None

    def sample_episodes(self) -> list[JointEpisodes]:
        """One `sample` of every healthy runner. A runner that died is left out, and restarted before the next iteration."""
        group = self.env_runner_group
        steps_before = self.env_steps
        samples: list[tuple[JointEpisodes, dict[str, np.ndarray], Any]] = group.foreach_env_runner(
            _SampleWithMetrics(steps_before),
            local_env_runner=group.num_remote_env_runners() == 0,
            timeout_seconds=self.config.sample_timeout_s,
        )
        for _, figures, _ in samples:
            self.env_steps += int(figures["steps"].sum())
            self.episodes += len(figures["steps"])
        if samples:
            self.metrics.aggregate([metrics for _, _, metrics in samples], key=ENV_RUNNER_RESULTS)
        return [rows for rows, _, _ in samples]

    def fit_inputs(self, rows: JointEpisodes) -> None:
        """Every learner takes the statistics of its inputs from the same rows (`TeamModule.fit_inputs`)."""
        self.on_learners("fit_inputs", rows)
        self.inputs_fitted = True

    def on_learners(self, method: str, *arguments: Any) -> Any:
        """Calls a method of every learner's module with the same arguments; what the first one returns."""

        def call(learner: Learner) -> Any:
            return getattr(learner.module[DEFAULT_MODULE_ID].unwrapped(), method)(*arguments)

        return next(result.get() for result in self.learner_group.foreach_learner(call))

    def learn(self, rows: JointEpisodes, **kwargs: Any) -> None:
        """One `LearnerGroup.update` on joint rows."""
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(rows)}, env_steps=len(rows["reward"]))
        results = self.learner_group.update(batch=batch, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self.env_steps}, **kwargs)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)

    def sync(self) -> None:
        """Sends the learner's weights to the runners."""
        self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Greedy episodes on the fixed evaluation seeds; the figures' means, and the number of episodes."""
        group = self.eval_env_runner_group
        group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)
        runner = group.local_env_runner
        rounds = -(-self.config.evaluation_episodes // runner.config.num_envs_per_env_runner)
        parts = []
        for i in range(rounds):
            seeds = episode_seeds(EVALUATION_SEED, i * runner.simulator.num_envs, runner.simulator.num_envs)
            parts.append(runner.sample(explore=False, seeds=seeds)[1])
        figures = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        results = {name: float(np.nanmean(values)) for name, values in figures.items() if np.isfinite(values).any()}
        return {**results, "episodes": len(figures["return"])}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        counters = {"env_steps": self.env_steps, "episodes": self.episodes, "inputs_fitted": self.inputs_fitted}
        return {**super().get_state(*args, **kwargs), **counters}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.env_steps = state.get("env_steps", self.env_steps)
        self.episodes = state.get("episodes", self.episodes)
        self.inputs_fitted = state.get("inputs_fitted", self.inputs_fitted)


class _SampleWithMetrics:
    """Asks a runner for episodes and its metrics in one call (a plain function of ours would be pickled with its module)."""

    def __init__(self, env_steps: int) -> None:
        self.env_steps = env_steps

    def __call__(self, runner: TeamEnvRunner) -> tuple[JointEpisodes, dict[str, np.ndarray], Any]:
        rows, figures = runner.sample(env_steps=self.env_steps)
        return rows, figures, runner.get_metrics()


def initialise_ray(runners: int) -> None:
    """A local Ray if none runs (RLlib's learner wants one even in one process); in a cluster's job, that cluster."""
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level="ERROR")
    else:
        # Ray's workers are as nice as 15 by default: beside two busy processes a runner then takes minutes to start, and the
        # trainer waits for it.
        priority = {"worker_niceness": 0}
        cpus = max(2, runners + 1)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", num_cpus=cpus, _system_config=priority)
