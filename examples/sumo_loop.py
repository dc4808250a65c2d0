"""SUMO drives vehicles; a policy behind a URL decides where their LLM requests are answered.

    edgeflock serve bundles/idmac
    python examples/sumo_loop.py http://127.0.0.1:8000 idmac --slots 60

In every slot (a minute of SUMO's time) what the edge servers see is posted to the endpoint, and what it decides is played with
the physics of `envs/vehicular`. A decision that comes after the deadline is of no use: the edges then send all requests to the
cloud.
"""

from __future__ import annotations

import argparse
import importlib
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, redirect_stdout
from pathlib import Path

import httpx
import torch
from http_client import Endpoint

from envs.registry import scenario_from_dict
from envs.team import episode_seeds
from envs.vehicular.live import LiveSimulator
from envs.vehicular.scenario import VehicularScenario
from envs.vehicular.sumo import RAMP_SHARE, make_traffic, sumo_home


class Traffic:
    """SUMO's vehicles on streets that cover the scenario's area, driven through TraCI. All have set off when it begins."""

    def __init__(self, scenario: VehicularScenario, seed: int, folder: Path) -> None:
        self.num_vehicles = scenario.num_vehicles
        minutes = math.ceil(scenario.horizon_slots * scenario.slot_s / 60 / (1 - RAMP_SHARE))
        arguments = make_traffic(folder, scenario.num_vehicles, minutes, seed, scenario.area_m)
        sys.path.append(str(sumo_home() / "tools"))
        self.sumo = importlib.import_module("traci")
        with redirect_stdout(None):  # it reports every attempt to connect
            self.sumo.start([str(sumo_home() / "bin" / "sumo"), *arguments], stdout=subprocess.DEVNULL)
        self.drive(60 * minutes * RAMP_SHARE)

    def drive(self, seconds: float) -> None:
        self.sumo.simulationStep(self.sumo.simulation.getTime() + seconds)

    def close(self) -> None:
        self.sumo.close()

    def vehicles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions `[N, 2]` in metres, and who is on the road `[N]`."""
        positions, present = torch.zeros(self.num_vehicles, 2), torch.zeros(self.num_vehicles, dtype=torch.bool)
        for name in self.sumo.vehicle.getIDList():
            positions[int(name)], present[int(name)] = torch.tensor(self.sumo.vehicle.getPosition(name)), True
        return positions, present


def without_a_decision(action_mask: torch.Tensor) -> torch.Tensor:
    """All requests to the cloud, the last target, at full power; nothing is fetched."""
    last = (action_mask * torch.arange(1, action_mask.shape[-1] + 1)).argmax(-1)
    last[..., -1] = 0
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("policy", help="a served policy of the problem vehicular")
    parser.add_argument("--slots", type=int, help="length of the episode; default: the scenario's")
    parser.add_argument("--deadline-ms", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--token-file")
    given = parser.parse_args()
    endpoint = Endpoint(given.url, given.policy, given.token_file, timeout_s=given.deadline_ms / 1000)
    scenario = scenario_from_dict(endpoint.manifest["scenario"])
    if not isinstance(scenario, VehicularScenario):
        raise SystemExit(f"{given.policy}: is of the problem {scenario.problem}: expected vehicular")
    slots = given.slots or scenario.horizon_slots
    if not 1 <= slots <= scenario.horizon_slots:
        raise SystemExit(f"--slots {slots}: expected 1 to {scenario.horizon_slots}, the episode that the policy knows")
    scenario = scenario.model_copy(update={"horizon_slots": slots})
    with tempfile.TemporaryDirectory() as folder, closing(Traffic(scenario, given.seed, Path(folder))) as traffic:
        results = drive(traffic, LiveSimulator(scenario), endpoint, given.deadline_ms, given.seed)
    report(*results, given.deadline_ms)


def drive(
    traffic: Traffic, simulator: LiveSimulator, endpoint: Endpoint, deadline_ms: float, seed: int
) -> tuple[Counter[str], list[float], int]:
    """Plays an episode; returns sums over its slots, the milliseconds that each decision took, and the missed ones."""
    sums, waited, missed = Counter(), [], 0
    simulator.move(*traffic.vehicles())
    step = simulator.reset(episode_seeds(seed, 0, 1))
    while not step.finished.all():
        before, started = endpoint.state, time.perf_counter()
        try:
            actions = endpoint.decide(simulator.spec, step)
        except httpx.HTTPError:  # too late, or the server is overloaded
            actions = None
        waited.append(1000 * (time.perf_counter() - started))
        if actions is None or waited[-1] > deadline_ms:
            actions, endpoint.state, missed = without_a_decision(step.action_mask), before, missed + 1
        traffic.drive(simulator.scenario.slot_s)
        simulator.move(*traffic.vehicles())
        step = simulator.step(actions)
        sums.update({name: value.item() for name, value in step.metrics.items()})
    return sums, waited, missed


def report(sums: Counter[str], waited: list[float], missed: int, deadline_ms: float) -> None:
    requests = max(sums["requests"], 1)
    print(f"slots                    {len(waited)}")
    print(f"requests                 {sums['requests']:.0f}")
    print(f"return                   {sums['reward']:.3f}")
    print(f"latency per request      {sums['latency_s'] / requests:.3f} s")
    print(f"energy per request       {sums['energy_j'] / requests:.2f} J")
    print(f"decision, median         {sorted(waited)[len(waited) // 2]:.1f} ms")
    print(f"decision, slowest        {max(waited):.1f} ms")
    print(f"missed deadlines         {missed} of {len(waited)} (after {deadline_ms:g} ms)")


if __name__ == "__main__":
    main()
