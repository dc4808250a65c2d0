"""The vehicular problem with vehicles that somebody else drives while the episode is played: SUMO, for one."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.errors import InputError
from envs.team import StepResult
from envs.vehicular.scenario import VehicularScenario
from envs.vehicular.simulator import VehicularSimulator, request_features


class LiveSimulator(VehicularSimulator):
    """One episode (E = 1) in the scenario's area, whose vehicles are where `move` puts them.

    Requests, fades and faults are drawn from the episode seed as ever. Before `reset`, `move` says where vehicles are in the
    first slot; before each `step`, where they are in the slot that follows the one that is decided.

    Raises:
        InputError: The scenario has a trace of its own, around whose vehicles its edges stand.
    """

    def __init__(self, scenario: VehicularScenario) -> None:
        if scenario.traces is not None:
            raise InputError(f"scenario {scenario.name}: traces = {scenario.traces!r}: expected null: vehicles are driven live")
        whole = {"trace_vehicles": scenario.num_vehicles, "trace_slots": scenario.horizon_slots}
        super().__init__(scenario.model_copy(update=whole))
        self._seeds = torch.zeros(1, dtype=torch.int64)
        self._slot = -1

    def move(self, positions: Tensor, present: Tensor) -> None:
        """Says where the vehicles are at the start of the next slot.

        Args:
            positions: `[N, 2]` float32, metres from the lower-left corner of the area.
            present: `[N]` bool, who is on the road.
        """
        horizon = self.scenario.horizon_slots
        following = 0 if self._slot == horizon else self._slot + 1
        if following < horizon:  # what is shown after the last slot has its vehicles
            self._source.move(following, positions, present)
        if self.episode is not None:
            self.episode = self._source.draw(self._seeds)
            self._features = request_features(self.episode)

    def reset(self, seeds: Tensor) -> StepResult:
        self._seeds = seeds
        return super().reset(seeds)
