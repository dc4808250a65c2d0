"""Checks that a simulator keeps the contract of `envs.team`. Anyone can run them against a new problem:

check_simulator(lambda num_envs: make_simulator(scenario, num_envs))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from envs import random
from envs.team import Field, StepResult, TeamSimulator, TeamSpec


def check_simulator(make: Callable[[int], TeamSimulator], steps: int = 50, seed: int = 0) -> None:
    """Plays random legal episodes and compares what the simulator shows with what it declares.

    Checked are: shapes, types and device of everything shown; fields within their bounds; masks; metrics; idling of
    finished rows; that the tensors belong to the caller; and that an episode depends on its seed and actions alone, bit for
    bit, for 1, 2 and 7 parallel episodes, in any row, and after another episode in the same simulator.

    Args:
        make: Makes a simulator with the given number of parallel episodes.
        steps: Steps of each run. Give more than `spec.max_steps` to see every episode end.
        seed: The first episode seed; seven successive ones are played.

    Raises:
        AssertionError: Saying what breaks the contract, and where.
    """
    seeds = list(range(seed, seed + 7))
    simulator = make(7)
    reference = _play(simulator, seeds, steps)
    again = _play(simulator, seeds, steps)
    _close(simulator)
    _require_same(reference, range(7), again, range(7), "the same seeds played again in the same simulator")
    for rows in ([3], [5, 3]):
        simulator = make(len(rows))
        episodes = _play(simulator, [seeds[row] for row in rows], steps, scribble=True)
        _close(simulator)
        where = f"rows {rows} of 7 played in a simulator of {len(rows)}, with the shown tensors overwritten by the caller"
        _require_same(reference, rows, episodes, range(len(rows)), where)


def field_bounds(field: Field) -> tuple[float, float]:
    """Least and largest value that a field may show, in its unit.

    They are `field.low` and `field.high`, and 0 besides where a field is logarithmic (`low` is its unit then) or belongs to
    an entity (whose absent members are 0).
    """
    if field.scale == "log" or (field.entity is not None and field.scale == "linear"):
        return min(field.low, 0.0), max(field.high, 0.0)
    return field.low, field.high


def check_result(result: StepResult, spec: TeamSpec, num_envs: int, device: torch.device, where: str) -> None:
    """Compares one result with the spec: shapes, types, bounds, masks and metrics.

    Raises:
        AssertionError: Saying what breaks the contract; `where` opens the message.
    """
    E, N, H, C = num_envs, spec.num_agents, spec.num_branches, spec.max_choices
    _require(
        set(result.observation) == set(spec.observation),
        f"{where}: the observation has the fields {sorted(result.observation)}, the spec {sorted(spec.observation)}",
    )
    for name, field in spec.observation.items():
        dtype = torch.int64 if field.scale == "category" else torch.float32
        _require_tensor(result.observation[name], (E, N, *field.shape), dtype, device, f"{where}: observation {name!r}")
        _require_bounds(result.observation[name], field, f"{where}: observation {name!r}")
    _require_tensor(result.state, (E, spec.state_size), torch.float32, device, f"{where}: state")
    _require_tensor(result.reward, (E,), torch.float32, device, f"{where}: reward")
    _require_tensor(result.terminated, (E,), torch.bool, device, f"{where}: terminated")
    _require_tensor(result.truncated, (E,), torch.bool, device, f"{where}: truncated")
    _require_tensor(result.alive, (E, N), torch.bool, device, f"{where}: alive")
    _require_tensor(result.action_mask, (E, N, H, C), torch.bool, device, f"{where}: action_mask")
    _require_masks(result, spec, where)
    _require_metrics(result, spec, num_envs, device, where)


# results after the reset (index 0) and after each step, the tensors copied away from the simulator
_Run = list[dict[str, Tensor]]


def _play(simulator: TeamSimulator, seeds: Sequence[int], steps: int, scribble: bool = False) -> _Run:
    """Plays `steps` steps of random legal actions that depend on seed and step only, checking every result."""
    spec, device = simulator.spec, torch.device(simulator.device)
    _require(simulator.num_envs == len(seeds), f"num_envs is {simulator.num_envs}, {len(seeds)} were asked for")
    seed_tensor = torch.tensor(seeds, dtype=torch.int64, device=device)
    result = simulator.reset(seed_tensor.clone())
    check_result(result, spec, len(seeds), device, "after reset")
    _require(not bool(result.finished.any()), "after reset: a row is finished before its first step")
    _require(not bool(result.reward.any()), "after reset: a row has a reward")
    copies = [_copy(result)]
    for step in range(1, steps + 1):
        actions = _choose(copies[-1]["action_mask"], seed_tensor, step)
        if scribble:
            _scribble(result)
        result = simulator.step(actions.clone())
        where = f"after step {step}"
        check_result(result, spec, len(seeds), device, where)
        copies.append(_copy(result))
        _require_idling(copies[-2], copies[-1], where)
        if step >= spec.max_steps:
            _require(bool(result.finished.all()), f"{where}: a row is unfinished although max_steps is {spec.max_steps}")
    return copies


def _choose(mask: Tensor, seeds: Tensor, step: int) -> Tensor:
    """Random legal choices, `[E, N, H, C]` to `[E, N, H]`, the same for a seed and step in whichever row."""
    _, N, H, C = mask.shape
    cell = torch.arange(N * H * C, device=mask.device).reshape(N, H, C)
    scores = random.uniform(seeds[:, None, None, None], step, cell)
    return scores.masked_fill(~mask, -1.0).argmax(-1)


def _flat(result: StepResult) -> dict[str, Tensor]:
    """Every tensor of a result under one name."""
    named = {name: getattr(result, name) for name in ("state", "action_mask", "reward", "terminated", "truncated", "alive")}
    named.update({f"observation {name!r}": value for name, value in result.observation.items()})
    named.update({f"metric {name!r}": value for name, value in result.metrics.items()})
    return named


def _copy(result: StepResult) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in _flat(result).items()}


def _scribble(result: StepResult) -> None:
    """What a careless caller may do to tensors that are his."""
    for value in _flat(result).values():
        value.fill_(1)


def _close(simulator: TeamSimulator) -> None:
    simulator.close()
    simulator.close()  # closing twice is what `with` blocks and finalisers end up doing


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _require_tensor(value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, where: str) -> None:
    _require(tuple(value.shape) == shape, f"{where} has shape {tuple(value.shape)}, expected {shape}")
    _require(value.dtype == dtype, f"{where} is {value.dtype}, expected {dtype}")
    _require(value.device.type == device.type, f"{where} is on {value.device}, expected {device}")
    if dtype.is_floating_point:
        _require(bool(torch.isfinite(value).all()), f"{where} holds numbers that are not finite")


def _require_bounds(value: Tensor, field: Field, where: str) -> None:
    low, high = field_bounds(field)
    bounds = torch.tensor([low, high], dtype=torch.float32)  # rounded as the values are
    least, largest = value.min().item(), value.max().item()
    _require(
        bounds[0].item() <= least and largest <= bounds[1].item(),
        f"{where} lies in [{least:g}, {largest:g}], outside its bounds [{low:g}, {high:g}]",
    )


def _require_masks(result: StepResult, spec: TeamSpec, where: str) -> None:
    mask = result.action_mask
    _require(bool(mask.any(-1).all()), f"{where}: action_mask leaves a branch without a legal choice")
    beyond = mask & ~spec.choice_exists(mask.device)
    _require(not bool(beyond.any()), f"{where}: action_mask allows a choice that its branch does not have")
    only_first = torch.zeros_like(mask)
    only_first[..., 0] = True
    dead_is_idle = (mask == only_first).all(-1).all(-1) | result.alive
    _require(bool(dead_is_idle.all()), f"{where}: an agent that is not alive has another legal choice than 0")


def _require_metrics(result: StepResult, spec: TeamSpec, num_envs: int, device: torch.device, where: str) -> None:
    used = {m.numerator for m in spec.metrics.values()}
    used |= {m.denominator for m in spec.metrics.values() if m.denominator not in (None, "steps")}
    _require(
        used <= set(result.metrics),
        f"{where}: the spec's metrics need {sorted(used - set(result.metrics))}, which the result's metrics lack",
    )
    for name, value in result.metrics.items():
        _require_tensor(value, (num_envs,), torch.float32, device, f"{where}: metric {name!r}")


def _require_idling(before: dict[str, Tensor], after: dict[str, Tensor], where: str) -> None:
    """Rows that were finished before the step stay as they are, with reward and metrics 0."""
    done = before["terminated"] | before["truncated"]
    for flag in ("terminated", "truncated"):
        _require(bool((before[flag] == after[flag])[done].all()), f"{where}: a finished row changed {flag!r}")
    for name, value in after.items():
        if name == "reward" or name.startswith("metric "):
            _require(not bool(value[done].any()), f"{where}: a finished row has {name} other than 0")


def _require_same(one: _Run, rows: Sequence[int], other: _Run, other_rows: Sequence[int], where: str) -> None:
    for step, (expected, shown) in enumerate(zip(one, other, strict=True)):
        for name, value in expected.items():
            _require(
                torch.equal(value[list(rows)], shown[name][list(other_rows)]),
                f"{where}: {name} differs at step {step} (0 is the reset)",
            )
