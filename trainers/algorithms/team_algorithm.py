"""What the algorithm families share: sampling through TeamEnvRunners, counters, evaluation, checkpoints."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray
from pydantic import BaseModel, ConfigDict, Field
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from envs.registry import Scenario
from envs.team import TeamSimulator, TeamSpec, episode_seeds
from models.team_module import TeamModule
from models.team_network import NetworkConfig
from trainers.algorithms.team_learner import TeamLearner
from trainers.remote import RemoteLearners, RemoteRunners
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
        self.asynchronous = False
        self.timeout_s = 300.0
        # Several learners: not every family has a use for every output of the team's network.
        self.framework("torch", torch_ddp_kwargs={"find_unused_parameters": True})
        self.api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        self.env_runners(
            env_runner_cls=TeamEnvRunner,
            batch_mode="complete_episodes",
            num_env_runners=0,
            validate_env_runners_after_construction=False,  # which would wait for all of them
            merge_env_runner_states=False,  # which would wait for each of them; they have no such state
            broadcast_env_runner_states=False,
        )
        self.fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=5.0)

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

    def remote(self: Config, asynchronous: bool, in_flight: int, timeout_s: float) -> Config:
        """Sets how the trainer deals with remote runners and learners (`trainers.remote`).

        Args:
            asynchronous: No runner is waited for as long as another one has delivered.
            in_flight: Requests that a runner may have, where it is asynchronous.
            timeout_s: Longest wait for any of them.
        """
        self.asynchronous = asynchronous
        self.timeout_s = timeout_s
        self.env_runners(max_requests_in_flight_per_env_runner=in_flight if asynchronous else 1)
        return self

    def build_learner_group(self, **kwargs: Any) -> LearnerGroup:
        """RLlib's, which no longer waits for ever where its learners are remote."""
        group = super().build_learner_group(**kwargs)
        if group.is_remote:
            group._worker_manager = RemoteLearners(group._workers, self.timeout_s)
        return group

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
        self.updates = 0
        self.requests = 0
        self.weights: PublishedWeights | None = None
        super().setup(config)
        group = self.env_runner_group
        in_flight = self.config.max_requests_in_flight_per_env_runner
        self.remote = RemoteRunners(group, in_flight, config.timeout_s) if group.num_remote_env_runners() else None

    @classmethod
    def _get_env_id_and_creator(cls, env_specifier: Any, config: Any) -> tuple[str, Any]:
        # TeamEnvRunner makes its simulator itself; RLlib only wants a name and a function.
        return "edgeflock/team", lambda env_context: None

    def sample_episodes(self) -> list[JointEpisodes]:
        """Whole episodes from the runners: what each of them plays now, or what has come by now if sampling is asynchronous."""
        if self.remote is None:
            answers = [self._request()(self.env_runner_group.local_env_runner)]
        else:
            answers = self.remote.collect(self._request, everyone=not self.config.asynchronous)
        for answer in answers:
            self.env_steps += int(answer.figures["steps"].sum())
            self.episodes += len(answer.figures["steps"])
        self.metrics.aggregate([answer.metrics for answer in answers], key=ENV_RUNNER_RESULTS)
        if self.remote is not None:
            self._log_runners(self.remote.healthy(), answers)
        return [answer.rows for answer in answers]

    def _request(self) -> EpisodesRequest:
        """Requests of one moment differ, where a runner may have several."""
        if self.remote is None:
            return EpisodesRequest(self.env_steps, 0, None)
        self.requests += self.config.asynchronous
        return EpisodesRequest(self.env_steps, self.requests, self.weights or self._publish())

    def _log_runners(self, healthy: int, answers: list[Answer]) -> None:
        """How many runners there are, and how old, in updates, the weights were with which the latest round was played."""
        self.metrics.log_value((ENV_RUNNER_RESULTS, "runners_mean"), healthy, window=1)
        for answer in answers:
            age = self.updates - answer.updates
            self.metrics.log_value((ENV_RUNNER_RESULTS, "weights_age_mean"), age, window=self.config.num_env_runners)

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """RLlib's would wait for lost runners before every iteration."""
        if self.remote is not None and env_runner_group is self.env_runner_group:
            self.remote.restore()
        return []

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
        self.updates += 1

    def sync(self) -> None:
        """Gives the learner's weights to the local runner; remote ones find them with their next request."""
        weights = self._learned_weights()
        self.env_runner_group.local_env_runner.set_state(weights)
        if self.remote is not None:
            self._publish(weights)

    def _learned_weights(self) -> dict[str, Any]:
        where = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        return self.learner_group.get_state(components=where, inference_only=True)[COMPONENT_LEARNER]

    def _publish(self, weights: dict[str, Any] | None = None) -> PublishedWeights:
        """One object for all remote runners: each node fetches it once."""
        weights = weights or self._learned_weights()
        version = 1 if self.weights is None else self.weights.version + 1
        self.weights = PublishedWeights(ray.put(weights[COMPONENT_RL_MODULE]), version, self.updates)
        return self.weights

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
        if self.remote is not None:
            self._publish()

    def cleanup(self) -> None:
        if self.remote is not None:
            self.remote.stop()  # RLlib would ask each runner to stop, and wait for those that are gone
        super().cleanup()


@dataclass(frozen=True)
class PublishedWeights:
    """Weights in the object store, their number, and the updates that the learner had made until then."""

    reference: ray.ObjectRef
    version: int
    updates: int


@dataclass(frozen=True)
class Answer:
    """Episodes, their figures (`[E]` each), the runner's metrics, and the updates in the weights that played them."""

    rows: JointEpisodes
    figures: dict[str, np.ndarray]
    metrics: Any
    updates: int


@dataclass(frozen=True)
class EpisodesRequest:
    """Asks a runner for episodes with these weights (a plain function of ours would be pickled with its module)."""

    env_steps: int
    request: int
    weights: PublishedWeights | None

    def __call__(self, runner: TeamEnvRunner) -> Answer:
        if self.weights is not None:
            runner.take_weights(self.weights.reference, self.weights.version)
        rows, figures = runner.sample(env_steps=self.env_steps, request=self.request)
        return Answer(rows, figures, runner.get_metrics(), self.weights.updates if self.weights else 0)


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
        ray.init(
            "local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", num_cpus=cpus, _system_config=priority
        )
