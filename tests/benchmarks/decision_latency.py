"""Time of one server's decision, from observation to action: `python -m tests.benchmarks.decision_latency`.

One agent decides alone, as it would on an edge server: it packs its observation, unrolls its GRU by a step and, with a
diffusion actor, runs the whole chain; at batch 256 it does so for 256 servers at once. No time depends on the weights, so they
are fresh.
The query of the vector store is not part of it. The paper's figures (Yao et al., Sec. V-C) are 24.1 ms for LRS, 25.5 ms for
DLRS-V10 and 26.2 ms for DLRS, on desktops with an Intel i9-10900K and an RTX 2070 Super.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from envs.registry import make_simulator
from envs.team import episode_seeds
from models.decentralised import DecentralisedAgent
from models.team_network import TeamNetwork
from tests.benchmarks import measure
from trainers.config import make_run_config
from trainers.learned_policy import build_module

PAPER_MS = {"lrs": 24.1, "dlrs-v10": 25.5, "dlrs": 26.2}


def decision_times(algorithm: str, scenario: str, batch: int, repetitions: int) -> list[float]:
    """Milliseconds of each of `repetitions` decisions on the first observation of an episode."""
    config = make_run_config(algorithm, scenario)
    simulator = make_simulator(config.scenario, batch)
    shown = simulator.reset(episode_seeds(0, 0, batch))
    simulator.close()
    network = build_module(algorithm, simulator.spec, config.network, config.algorithm).eval().network
    assert isinstance(network, TeamNetwork)
    agent = DecentralisedAgent(simulator.spec, network, 0)
    observation, mask = {name: value[:, 0] for name, value in shown.observation.items()}, shown.action_mask[:, 0]
    state, times = agent.initial_state(batch), []
    for _ in range(repetitions + 10):  # the first ten warm up
        begin = time.perf_counter()
        state = agent.step(observation, mask, state, {}).state
        times.append(1e3 * (time.perf_counter() - begin))
    return times[10:]


def main() -> None:
    parser = measure.arguments("Milliseconds of one server's decision.")
    parser.add_argument("--scenario", default="velo/n3", help="problem/preset")
    parser.add_argument("--algorithms", nargs="+", default=["mappo", "lrs", "dlrs-v10", "dlrs"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 256], help="servers that decide at once")
    parser.add_argument("--repetitions", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    results: dict[str, Any] = {}
    lines = ["| ms | " + " | ".join(f"batch {batch}" for batch in options.batches) + " | paper |"]
    lines.append("|---|" + "---|" * (len(options.batches) + 1))
    for name in options.algorithms:
        cells = []
        for batch in options.batches:
            times = decision_times(name, options.scenario, batch, options.repetitions)
            low, middle, high = statistics.quantiles(times, n=4)
            results.setdefault(name, {})[batch] = {"median_ms": middle, "quartiles_ms": [low, high]}
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {PAPER_MS.get(name, '')} |")
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "threads")}
    measure.show(options.json, "decision latency", settings, results, "\n".join(lines))


if __name__ == "__main__":
    main()
