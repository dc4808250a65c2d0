"""Policies as the server holds them: by name and version, each with its codec, its memory's layout and its batches."""

from __future__ import annotations

import hashlib
import json
import time
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.errors import InputError
from models.decentralised import DecentralisedAgent
from models.team_network import TeamNetwork
from serve.batching import Batcher
from serve.codec import Codec
from serve.metrics import Metrics
from serve.recording import SIZES, RecordedDecision, record
from serve.schemas import AgentSchema, PolicySchema
from serve.tokens import StateLayout
from trainers.bundle import EXAMPLE, MANIFEST, load_bundle
from trainers.learned_policy import LearnedPolicy, bundle_folder, load_policy

SLOW_S = 0.01
"""A policy that takes longer for one team is computed in a thread."""

MANY = 64
"""So is a batch of more teams."""

TRIALS = 16
"""Random observations, in episodes as long as that makes them, on which a recorded decision is tried."""


@dataclass
class Job:
    """The teams of one request.

    Attributes:
        rows: `[B, D]` float64, see `Codec.rows`.
        masks: `[B, N, H, C]` bool.
        states: `[B, bytes]` uint8, see `StateLayout`.
        sampled: Draw from the probabilities instead of taking the best.
        seed: Of the draw; None for any.
        scores: Whether probabilities or values are wanted as well.
    """

    rows: np.ndarray
    masks: np.ndarray
    states: np.ndarray
    sampled: bool = False
    seed: int | None = None
    scores: bool = False

    @property
    def kind(self) -> Hashable:
        """Jobs of one kind share a batch; a seed wants a batch of its own, so that its draws are always the same."""
        return (self.sampled, self.scores, self.seed if self.seed is None else id(self))


@dataclass
class Decided:
    """Actions `[B, N, H]`, next states `[B, bytes]`, and scores `[B, N, H, C]` where wanted."""

    actions: np.ndarray
    states: np.ndarray
    scores: np.ndarray | None


class HostedPolicy:
    """One version of one policy, ready to decide.

    Attributes:
        version: 12 hexadecimal digits of the SHA-256 of the bundle's manifest, which itself holds that of the weights.
        decentralised: Whether single agents of it can decide on their own.
        schema: What can be asked, and what is answered.
    """

    def __init__(self, name: str, folder: Path, metrics: Metrics, largest_batch: int) -> None:
        """
        Raises:
            InputError: The bundle is missing, damaged or inconsistent.
        """
        bundle = bundle_folder(folder)
        self.name, self.folder = name, folder
        self.version = bundle_version(bundle)
        self.policy = load_policy(bundle)
        self.manifest = load_bundle(bundle)[1]
        self.spec = self.policy.spec
        self.codec = Codec(self.spec, self.spec.agents)
        self.layout = StateLayout(self.policy.initial_state(1))
        self.example = self._example(bundle)
        self._recorded = self._record()
        self._metrics = metrics
        self._seconds = self._warm_up()
        self._batcher = self._make_batcher(largest_batch)
        module = self.policy.module if isinstance(self.policy, LearnedPolicy) else None
        self.decentralised = isinstance(getattr(module, "network", None), TeamNetwork)  # bandits have none
        self._agents: dict[str, HostedAgent] = {}
        self.schema = PolicySchema(name, self.spec, self.policy.scores_are, self.codec)

    def _example(self, bundle: Path) -> dict[str, Any]:
        """A request body that suits the policy."""
        try:
            return json.loads((bundle / EXAMPLE).read_text())
        except FileNotFoundError:
            return {"observation": self.codec.example()}
        except (OSError, ValueError) as error:
            raise InputError(f"{bundle / EXAMPLE}: cannot be read: {error}") from None

    def _record(self) -> dict[int, RecordedDecision]:
        """Of a policy that is a network, its decision for some numbers of teams, the smallest first."""
        if not isinstance(self.policy, LearnedPolicy):
            return {}
        found = {}
        for size in SIZES:
            rows = torch.from_numpy(self.codec.random(TRIALS, seed=0))
            found[size] = record(self.policy, [self.codec.observation(step) for step in rows.split(size)])
        return {size: recorded for size, recorded in found.items() if recorded is not None}

    def _warm_up(self) -> float:
        """Seconds of the quickest of some decisions for one team; the first ones get torch going."""
        given = self.example["observation"]
        rows = np.concatenate([np.asarray(given[part.name]).reshape(1, -1) for part in self.codec.parts], axis=1)
        job, seconds = Job(rows.astype(np.float64), self.codec.masks({}, 1), self.layout.initial), []
        for _ in range(5):
            started = time.perf_counter()
            self._compute([job])
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    @cached_property
    def agent_schema(self) -> AgentSchema:
        """What its agents, which are alike, can be asked one by one."""
        agent = self.agent(self.spec.agents[0])
        return AgentSchema(self.name, self.spec, agent.codec, agent.intent_size)

    def agent(self, name: str) -> HostedAgent:
        """One agent of the team on its own."""
        if name not in self._agents:
            assert isinstance(self.policy, LearnedPolicy)
            self._agents[name] = HostedAgent(self.policy, name)
        return self._agents[name]

    def _make_batcher(self, largest: int) -> Batcher[Job, Decided]:
        this = weakref.proxy(self)  # no cycle: what is frozen by `gc.freeze` and in a cycle would never be freed
        return Batcher(lambda jobs: this._compute(jobs), lambda jobs: this._is_slow(jobs), largest)

    async def decide(self, job: Job) -> Decided:
        """Decides for the job's teams, together with others that are waiting."""
        return await self._batcher.submit(job.kind, job)

    def _is_slow(self, jobs: Sequence[Job]) -> bool:
        return self._seconds > SLOW_S or sum(len(job.rows) for job in jobs) > MANY

    @property
    def recorded(self) -> bool:
        """Whether decisions for few teams are replayed (`serve.recording`)."""
        return list(self._recorded) == list(SIZES)

    @torch.inference_mode()
    def _compute(self, jobs: Sequence[Job]) -> list[Decided]:
        first, sizes = jobs[0], [len(job.rows) for job in jobs]
        teams = sum(sizes)
        size = teams if first.sampled else next((size for size in self._recorded if size >= teams), teams)
        rows, masks, states = (
            _together([getattr(job, name) for job in jobs], size - teams) for name in ("rows", "masks", "states")
        )
        observation = self.codec.observation(torch.from_numpy(rows))
        mask, state = torch.tensor(masks), self.layout.to_state(states)
        scores = self.policy.weigh(observation, state, mask).numpy() if first.scores else None
        if first.sampled:
            generator = torch.Generator()
            generator.seed() if first.seed is None else generator.manual_seed(first.seed)
            actions, state = self.policy.sample(observation, state, mask, generator)
        else:
            actions, state = self._recorded.get(size, self.policy.act)(observation, state, mask)
        self._metrics.batch(self.name, teams)
        chosen, after = actions.numpy(), self.layout.to_bytes(state, size)
        ends = np.cumsum(sizes).tolist()
        return [
            Decided(chosen[end - size : end], after[end - size : end], None if scores is None else scores[end - size : end])
            for size, end in zip(sizes, ends, strict=True)
        ]


def _together(parts: list[np.ndarray], more: int) -> np.ndarray:
    """The parts `[B, ...]` as one, with the first row repeated `more` times to fill it up."""
    return parts[0] if len(parts) == 1 and not more else np.concatenate([*parts, *[parts[0][:1]] * more])


class HostedAgent:
    """One agent of a hosted team: its own codec and memory, and its peers' messages.

    Attributes:
        intent_size: Numbers of a message; 0 where the agents do not talk.
    """

    def __init__(self, policy: LearnedPolicy, name: str) -> None:
        network = policy.module.network
        assert isinstance(network, TeamNetwork)
        self.name = name
        self.agent = DecentralisedAgent(policy.spec, network, policy.spec.agents.index(name))
        self.codec = Codec(policy.spec, [name])
        self.layout = StateLayout(self.agent.initial_state(1))
        talks = network.hears is not None and network.intent_config is not None
        self.intent_size = network.intent_config.size if talks and network.intent_config else 0

    def intend(self, job: Job) -> np.ndarray | None:
        """The agent's message `[1, G]` to its listeners, from its own observation."""
        with torch.inference_mode():
            intent = self.agent.intend(self._observation(job), self.layout.to_state(job.states)).intent
        return intent.numpy() if intent is not None and self.intent_size else None

    def decide(self, job: Job, messages: dict[str, np.ndarray]) -> tuple[Decided, np.ndarray | None]:
        """Its decision, given its peers' messages `[1, G]` of the same step, and its own message."""
        heard = {name: torch.from_numpy(message) for name, message in messages.items()}
        with torch.inference_mode():
            state = self.layout.to_state(job.states)
            decision = self.agent.step(self._observation(job), torch.tensor(job.masks[:, 0]), state, heard)
        decided = Decided(decision.actions.numpy()[:, None], self.layout.to_bytes(decision.state, 1), None)
        return decided, decision.intent.numpy() if decision.intent is not None and self.intent_size else None

    def _observation(self, job: Job) -> dict[str, torch.Tensor]:
        return {name: values[:, 0] for name, values in self.codec.observation(torch.from_numpy(job.rows)).items()}


class Shelf:
    """All hosted policies; of each the newest version, and the one before for episodes that began with it.

    Attributes:
        newest: Policy name to what decides for it.
    """

    def __init__(self, metrics: Metrics, largest_batch: int) -> None:
        self._metrics, self._largest_batch = metrics, largest_batch
        self.newest: dict[str, HostedPolicy] = {}
        self._before: dict[str, HostedPolicy] = {}
        self._staged: dict[str, HostedPolicy] = {}

    def stage(self, sources: dict[str, Path]) -> None:
        """Loads and checks these policies, for `load`. New episodes do not get them yet, but such that began elsewhere do.

        Raises:
            InputError: A bundle is unusable; nothing has changed then.
        """
        self._staged = {name: self._hosted(name, folder) for name, folder in sources.items()}

    def load(self, sources: dict[str, Path]) -> None:
        """Makes exactly these policies available. All are loaded and checked before anything changes.

        Whoever asks meanwhile, in another thread, finds what there was.

        Raises:
            InputError: A bundle is unusable; nothing has changed then.
        """
        loaded = {name: self._hosted(name, folder) for name, folder in sources.items()}
        before = {name: self._before[name] for name in loaded if name in self._before}
        before |= {name: old for name, old in self.newest.items() if name in loaded and loaded[name] is not old}
        self.newest, self._before, self._staged = loaded, before, {}

    def _hosted(self, name: str, folder: Path) -> HostedPolicy:
        version = bundle_version(bundle_folder(folder))
        return self.find(name, version) or HostedPolicy(name, folder, self._metrics, self._largest_batch)

    def versions(self, name: str) -> list[HostedPolicy]:
        """What there is of a policy, the newest first; what is staged comes last."""
        found = [shelf[name] for shelf in (self.newest, self._before, self._staged) if name in shelf]
        return list({policy.version: policy for policy in found}.values())

    def find(self, name: str, version: str) -> HostedPolicy | None:
        """A version that is still held."""
        return next((policy for policy in self.versions(name) if policy.version == version), None)


def bundle_version(bundle: Path) -> str:
    """What tells one bundle from another: the start of the hash of its manifest.

    Raises:
        InputError: There is no manifest.
    """
    try:
        return hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise InputError(f"{bundle}: not a policy bundle: {error.strerror}") from None
