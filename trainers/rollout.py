"""The runner that samples whole joint episodes, many at a time, inside RLlib."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import (
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    WEIGHTS_SEQ_NO,
)
from torch import Tensor

from envs.registry import make_simulator
from envs.team import StepResult, TeamSimulator, TeamSpec, episode_seeds
from models.encoders import ObservationPacker
from models.team_module import (
    ACTION_MASK,
    ACTIONS,
    AGENT_REWARD,
    ALIVE,
    FILLED,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    TeamModule,
)
from trainers.episode_sums import EpisodeSums, metrics_of, ratio

JointEpisodes = dict[str, Tensor]

# Where there is a seed RLlib puts torch in its deterministic mode, which also fills every new tensor with NaN: some 5 % of an
# update's time, and no result depends on it.
torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class EpisodeRecorder:
    """Collects the steps of E parallel episodes into joint rows `[E, T, …]` (names and shapes: `models.team_module`)."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Tensor]] = {}

    def seen(self, packed: Tensor, step: StepResult) -> None:
        """What the team sees before it acts, and after its last action."""
        self._add(OBSERVATION, packed)
        self._add(STATE, step.state)
        self._add(ACTION_MASK, step.action_mask)
        self._add(ALIVE, step.alive)

    def done(self, actions: Tensor, running: Tensor, step: StepResult, extras: dict[str, Tensor]) -> None:
        """What the team did, and what came of it; `running` `[E]` says which rows had not finished before."""
        self._add(ACTIONS, actions.to(torch.int16))
        self._add(REWARD, step.reward * running)
        self._add(TERMINATED, step.terminated)
        self._add(FILLED, running)
        if step.agent_reward is not None:
            self._add(AGENT_REWARD, step.agent_reward * running.unsqueeze(-1))
        for name, value in extras.items():
            self._add(name, value)

    def _add(self, name: str, value: Tensor) -> None:
        self._columns.setdefault(name, []).append(value)

    def rows(self) -> JointEpisodes:
        """The columns, stacked, in host memory."""
        return {name: torch.stack(steps, dim=1).cpu() for name, steps in self._columns.items()}


class Expert:
    """The simulator's expert in the place of a module."""

    message_bytes = 0

    def __init__(self, simulator: TeamSimulator) -> None:
        self.packer = ObservationPacker(simulator.spec)
        self._simulator = simulator

    def initial_state(self, num_envs: int) -> dict[str, Tensor]:
        """It remembers nothing."""
        return {}

    def act(
        self, packed: Tensor, action_mask: Tensor, state: dict[str, Tensor], *exploration: Any
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """As `TeamModule.act`, of the simulator as it is now."""
        return self._simulator.expert_actions(), state, {}


@torch.no_grad()
def play_episodes(
    simulator: TeamSimulator,
    module: TeamModule | Expert,
    seeds: Tensor,
    explore: bool,
    env_steps: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[JointEpisodes, dict[str, np.ndarray]]:
    """Plays one episode in every row, to the end of the longest.

    Args:
        seeds: `[E]` int64 episode seeds.
        explore, env_steps, generator: See `TeamModule.act`.

    Returns:
        Joint rows, and the episodes' figures, `[E]` each: `return`, `steps`, the problem's metrics, `message_bytes` where the
        agents exchange any; NaN where an episode does not define one.
    """
    recorder, sums = EpisodeRecorder(), EpisodeSums()
    messages = {"message_bytes": module.message_bytes} if module.message_bytes else {}
    state = module.initial_state(simulator.num_envs)
    step = simulator.reset(seeds)
    packed = module.packer(step.observation)
    recorder.seen(packed, step)
    for _ in range(simulator.spec.max_steps):
        running = ~step.finished
        actions, state, extras = module.act(packed, step.action_mask, state, explore, env_steps, generator)
        step = simulator.step(actions)
        packed = module.packer(step.observation)
        recorder.done(actions, running, step, extras)
        recorder.seen(packed, step)
        sums.add(step, running, messages)
        if bool(step.finished.all()):
            break
    totals = sums.totals()
    figures = {name: ratio(totals, metric) for name, metric in metrics_of(simulator.spec, messages).items()}
    return recorder.rows(), {**figures, "steps": totals["steps"]}


class TeamEnvRunner(EnvRunner, Checkpointable):
    """RLlib's runner for team simulators: one simulator of many episodes, one module, batched forward passes.

    Randomness is a function of (seed, runner, environment steps of the training so far), never of what this process did before:
    a runner that was restarted, or a training that was resumed, draws what it would have drawn.

    `config.env_config` holds `scenario` (envs.registry.Scenario) and, optionally, `device`. `sample` returns
    `(joint rows, metrics)`.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self._index: int = kwargs.get("worker_index") or 0
        self._scenario = self.config.env_config["scenario"]
        self._device = self._place(self.config.env_config.get("device", "cpu"))
        self._weights_seq_no = 0
        self._weights_version = 0
        self._steps_lifetime = 0
        self._simulator: TeamSimulator | None = None
        self.make_module()

    def _place(self, device: str) -> torch.device:
        """A local runner beside remote ones only evaluates, which it does without a GPU where its machine has none."""
        beside_others = self._index == 0 and self.config.num_env_runners > 0
        return torch.device("cpu" if beside_others and not torch.cuda.is_available() else device)

    def make_module(self) -> None:
        """The inference-only module, from the algorithm's own spec."""
        spec: RLModuleSpec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module: TeamModule = spec.build().to(self._device)

    @property
    def simulator(self) -> TeamSimulator:
        """Made at first use: a local runner beside remote ones never samples."""
        if self._simulator is None:
            self._simulator = make_simulator(self._scenario, self.config.num_envs_per_env_runner, self._device)
        return self._simulator

    def sample(
        self, *, env_steps: int = 0, explore: bool | None = None, seeds: Tensor | None = None, request: int = 0, **kwargs: Any
    ) -> tuple[JointEpisodes, dict[str, np.ndarray]]:
        """Plays `num_envs_per_env_runner` whole episodes.

        Args:
            env_steps: Environment steps of the training so far.
            explore: Default: the configuration's.
            seeds: `[E]` episode seeds. Default: seeds that no other runner and no other moment of the training uses.
            request: Tells apart requests that are made at the same moment.

        Returns:
            Joint rows (`models.team_module`), and the episodes' figures, `[E]` each.
        """
        explore = self.config.explore if explore is None else explore
        stream = np.random.SeedSequence([self.config.seed or 0, self._index, env_steps, request])
        if seeds is None:
            seeds = episode_seeds(int(stream.generate_state(1, np.uint64)[0]), 0, self.simulator.num_envs)
        generator = torch.Generator(self._device).manual_seed(int(stream.generate_state(2, np.uint64)[1] >> np.uint64(1)))
        rows, figures = play_episodes(self.simulator, self.module, seeds.to(self._device), explore, env_steps, generator)
        self._log(figures)
        return rows, figures

    def _log(self, figures: dict[str, np.ndarray]) -> None:
        steps = int(figures["steps"].sum())
        self._steps_lifetime += steps
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED, steps, reduce="sum")
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, steps, reduce="lifetime_sum", with_throughput=True)
        self.metrics.log_value(NUM_EPISODES, len(figures["return"]), reduce="sum")
        for name, values in figures.items():
            key = "episode_return_mean" if name == "return" else f"{name}_mean"
            self.metrics.log_value(key, float(np.nanmean(values)) if np.isfinite(values).any() else float("nan"), window=1)

    def get_metrics(self) -> Any:
        return self.metrics.reduce()

    @staticmethod
    def spaces_of(spec: TeamSpec) -> tuple[gym.Space, gym.Space]:
        """The packed vector of one agent, and its branches; RLlib only hands them on."""
        size = ObservationPacker(spec).size
        return gym.spaces.Box(-np.inf, np.inf, (size,), np.float16), gym.spaces.MultiDiscrete(spec.branches)

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        spaces = self.spaces_of(self.config.spec)
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    def assert_healthy(self) -> None:
        assert self.module is not None

    def stop(self) -> None:
        if self._simulator is not None:
            self._simulator.close()

    # -- weights and checkpoints -------------------------------------------------------------------------------------

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = {
            WEIGHTS_SEQ_NO: self._weights_seq_no,
            NUM_ENV_STEPS_SAMPLED_LIFETIME: self._steps_lifetime,
        }
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state(inference_only=True)
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        if COMPONENT_RL_MODULE in state:
            self._set_weights(state[COMPONENT_RL_MODULE], state.get(WEIGHTS_SEQ_NO, 0))
        self._steps_lifetime = state.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, self._steps_lifetime)

    def _set_weights(self, weights: Any, sequence_number: int) -> None:
        """Takes newer weights only; number 0 forces them (RLlib's convention)."""
        if sequence_number == 0 or sequence_number > self._weights_seq_no:
            weights = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
            # The learner keeps one module by name; the runner has that module itself.
            self.module.set_state(weights.get(DEFAULT_MODULE_ID, weights))
        if sequence_number > 0:
            self._weights_seq_no = sequence_number

    def take_weights(self, weights: ray.ObjectRef, version: int) -> None:
        """Fetches the weights that a request came with, unless they are here; versions begin at 1."""
        if version != self._weights_version:
            self._set_weights(weights, 0)
            self._weights_version = version

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        return [(COMPONENT_RL_MODULE, self.module)]
