"""One step of one agent of a trained team as an ONNX graph, for devices that have neither torch nor Ray.

Observations enter in physical units: packing, scaling and standardisation are part of the graph. What a stranger needs to feed
it (fields with units and bounds, heads with labels, who hears whom) is in the file's metadata, as JSON under `edgeflock`.

    inputs   agent []                    int64, the agent's number in the team
             observation.NAME [*shape]   float32 (int64 for categories), its own observation, in the field's unit
             action_mask [H, C]          bool, the legal choices
             hidden [hidden]             float32, zeros at the start of an episode
             previous_actions [H]        int64, -1 at the start of an episode
             messages [N, G]             float32, the peers' messages of this step, NaN for those that did not arrive
    outputs  actions [H]                 int64, the best known choices; the next `previous_actions`
             next_hidden [hidden]        float32
             message [G]                 float32, for the agents that hear this one

`messages` and `message` exist where the agents talk. A message depends on nothing that is heard in the same step: an agent that
runs the graph without messages first knows what to send.
"""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from envs.errors import InputError
from envs.team import Field, TeamSpec
from models.decentralised import DecentralisedAgent
from models.encoders import ObservationEncoder
from models.team_network import SeparateNetworks, TeamNetwork
from trainers.bundle import spec_to_json
from trainers.policy import Policy

METADATA = "edgeflock"


class AgentStep(nn.Module):
    """A step of any agent of the team; which one it is, is an input.

    What belongs to single agents (number, whom they hear, and their weights where those are not shared) lies in tables with
    leading dimension N, from which the graph picks the agent's row.
    """

    def __init__(self, spec: TeamSpec, network: TeamNetwork | SeparateNetworks) -> None:
        super().__init__()
        networks = [network] * spec.num_agents if isinstance(network, TeamNetwork) else list(network.networks)
        agents = [DecentralisedAgent(spec, of, i) for i, of in enumerate(networks)]  # type: ignore[arg-type]
        tensors = [dict(itertools.chain(a.named_parameters(), a.named_buffers())) for a in agents]
        self.agent = agents[0]
        self.sources = {agent.spec.agents[agent.agent]: agent.sources for agent in agents}
        self._own = [name for name, tensor in tensors[0].items() if spec.num_agents == 1 or tensor is not tensors[-1][name]]
        for index, name in enumerate(self._own):
            self.register_buffer(f"table_{index}", torch.stack([of[name].detach() for of in tensors]))

    def forward(
        self,
        agent: Tensor,
        observation: dict[str, Tensor],
        action_mask: Tensor,
        hidden: Tensor,
        previous_actions: Tensor,
        messages: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Actions, next hidden state and, where agents talk, the message: shapes as in this file's first lines."""
        own = {name: self.get_buffer(f"table_{i}").index_select(0, agent.view(1))[0] for i, name in enumerate(self._own)}
        packed = self.agent.pack({name: value.unsqueeze(0) for name, value in observation.items()})
        rows = (packed, *(x if x is None else x.unsqueeze(0) for x in (action_mask, hidden, previous_actions, messages)))
        actions, message, state = functional_call(self.agent, own, rows)
        outputs = (actions, state) if messages is None or message is None else (actions, state, message)
        return tuple(x[0] for x in outputs)


def agent_graph(policy: Policy) -> bytes:
    """The file's content: the graph with its metadata. Takes some seconds.

    Raises:
        InputError: The policy has no network that an agent could run alone, or the packages of the extra `onnx` are missing.
    """
    onnx = _require_onnx()
    spec, network = policy.spec, getattr(getattr(policy, "module", None), "network", None)
    if not isinstance(network, TeamNetwork | SeparateNetworks):
        raise InputError(f"{policy.name}: expected a policy with a network: there is nothing else to write as ONNX")
    step = AgentStep(spec, network).eval()
    inputs = _example(spec, step.agent)
    fields = [f"observation.{name}" for name in spec.observation]
    names = [name for argument in inputs for name in (fields if argument == "observation" else [argument])]
    outputs = ["actions", "next_hidden", "message"][: 2 + ("messages" in inputs)]
    with _every_place(network), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            step,
            kwargs=inputs,
            input_names=names,
            output_names=outputs,
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.aten.mish.default: _mish},
        )
    if program is None:
        raise RuntimeError("the ONNX exporter returned nothing")
    model = program.model_proto
    onnx.helper.set_model_props(model, {METADATA: json.dumps(_metadata(policy, step))})
    return model.SerializeToString()


def _require_onnx() -> Any:
    try:
        importlib.import_module("onnxscript")
        return importlib.import_module("onnx")
    except ImportError:
        raise InputError("ONNX is not installed: pip install -e '.[onnx]'") from None


def _mish(x: Any) -> Any:
    """In operators that onnxruntime computes ahead where they are constant; it warns of its own Mish that it cannot."""
    op = importlib.import_module("onnxscript").opset18
    return op.Mul(x, op.Tanh(op.Softplus(x)))


def _example(spec: TeamSpec, agent: DecentralisedAgent) -> dict[str, Any]:
    """Arguments of `AgentStep.forward`; only shapes and types matter."""
    state = {name: value[0] for name, value in agent.initial_state().items()}
    example = {
        "agent": torch.tensor(0),
        "observation": {name: torch.zeros(field.shape, dtype=_dtype(field)) for name, field in spec.observation.items()},
        "action_mask": spec.choice_exists(),
        **state,
    }
    network = agent.network
    if network.hears is None or network.intent_config is None:
        return example
    return {**example, "messages": torch.full((spec.num_agents, network.intent_config.size), math.nan)}


def _dtype(field: Field) -> torch.dtype:
    return torch.int64 if field.scale == "category" else torch.float32


def _metadata(policy: Policy, step: AgentStep) -> dict[str, Any]:
    """What is needed beside the graph to use it."""
    spec = spec_to_json(policy.spec)
    described = {key: spec[key] for key in ("problem", "scenario", "agents", "observation", "heads", "max_steps")}
    return {"algorithm": policy.name, **described, "hears": step.sources}


@contextmanager
def _every_place(network: TeamNetwork | SeparateNetworks) -> Iterator[None]:
    """The network with shapes that do not depend on the numbers (`ObservationEncoder.every_place`)."""
    encoders = [module for module in network.modules() if isinstance(module, ObservationEncoder)]
    before = [encoder.every_place for encoder in encoders]
    for encoder in encoders:
        encoder.every_place = True
    try:
        yield
    finally:
        for encoder, value in zip(encoders, before, strict=True):
            encoder.every_place = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter's libraries say of themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
