"""What the tests of the dag problem share."""

import json

import torch

from envs import random
from envs.registry import make_scenario, make_simulator


def simulator(num_envs=1, preset="t5", **overrides):
    return make_simulator(make_scenario(f"dag/{preset}", overrides), num_envs)


def seeded_actions(mask, seeds, step):
    """Random legal actions that depend on the episode seed and the step only."""
    agents, choices = torch.arange(mask.shape[1])[:, None, None], torch.arange(mask.shape[3])
    score = random.uniform(seeds[:, None, None, None], 77, step, agents, choices)
    return score.masked_fill(~mask, -1.0).argmax(-1)


def play(sim, seeds, steps=None):
    """All results of an episode of random legal actions, beginning with the reset's, and the actions between them."""
    results, actions = [sim.reset(seeds)], []
    for step in range(steps or sim.spec.max_steps):
        actions.append(seeded_actions(results[-1].action_mask, seeds, step))
        results.append(sim.step(actions[-1]))
    return results, actions


def write_json(path, nodes, edges, key="edges"):
    """A node-link file from `{name: attributes}` and pairs of names."""
    content = {
        "directed": True,
        "multigraph": False,
        "graph": {},
        "nodes": [{"id": name, **attributes} for name, attributes in nodes.items()],
        key: [{"source": source, "target": target} for source, target in edges],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def hand_scenario(folder):
    """Overrides of two tasks `a -> b` of which every time is a round number, one edge that hosts text, and the cloud.

    Task 0's subtasks take in 1 Mbit, task 1's 2 Mbit; every output has 0.5 Mbit. A device reaches the edge with 4 Mbit/s
    both ways (gain 1, SNR 3 at 2 MHz). The edge computes 1 Mbit in 0.5 s, the cloud in 0.125 s.
    """
    files = []
    for task, bits in enumerate((1e6, 2e6)):
        node = {"modality": "text", "input_bits": bits, "output_bits": 0.5e6}
        files.append(write_json(folder / f"task-{task}.json", {"a": node, "b": node}, [("a", "b")]))
    return {
        "num_tasks": 2,
        "graphs": files,
        "cycles_per_bit": 1_000,
        "edge_hz": [2e9],
        "edge_modalities": [["text"]],
        "cloud_hz": 8e9,
        "edge_usd_per_gcycle": 0.5,
        "cloud_usd_per_gcycle": 2.0,
        "bandwidth_hz": 2e6,
        "device_w": 3.0,
        "edge_w": 3.0,
        "noise_w": 1.0,
        "reference_gain": 1.0,
        "min_distance_m": 1.0,
        "max_distance_m": 1.0,
        "edge_cloud_bps": 2e6,
        "cloud_uplink_bps": 2e6,
        "cloud_downlink_bps": 8e6,
        "cloud_round_trip_s": 0.25,
        "deadline_s": 2.0,
    }


def brute_force_mask(sim, row, up):
    """Legal choices of every task as sets, from the graphs' names and the schedule so far, in plain Python."""
    s, schedule, instance = sim.scenario, sim.schedule(row), sim.instance(row)
    kinds = ("text", "image", "audio", "multimodal")
    places = instance.shape[1]
    legal = []
    for task in range(s.num_tasks):
        open_ = [j for j in range(places) if instance.exists[task, j] and schedule.location[task, j] < 0]
        pairs = set()
        for j in open_:
            waits = any(instance.successors[task, k, j] and schedule.location[task, k] < 0 for k in range(places))
            for at, names in enumerate(s.location_modalities):
                hosted = kinds[instance.modality[task, j]] in names
                if s.mask_invalid and (waits or not hosted or not up[at]):
                    continue
                pairs.add(j * s.num_locations + at)
        if not s.mask_invalid and open_:
            everything = [j for j in range(places) if instance.exists[task, j]]
            pairs = {j * s.num_locations + at for j in everything for at in range(s.num_locations)}
        legal.append(pairs or {0})
    return legal
