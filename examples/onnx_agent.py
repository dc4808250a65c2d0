"""One agent of a trained team on a device that has numpy and onnxruntime, and neither torch nor Ray.

edgeflock export runs/NAME --out bundles/NAME --onnx
python examples/onnx_agent.py bundles/NAME/agent.onnx edge_0
"""

import json
import sys

import numpy as np
import onnxruntime

path, agent = sys.argv[1:]
session = onnxruntime.InferenceSession(path)
team = json.loads(session.get_modelmeta().custom_metadata_map["edgeflock"])
shapes = {value.name: value.shape for value in session.get_inputs()}
names = [value.name for value in session.get_outputs()]
branches = [(head["labels"] or range(head["choices"])) for head in team["heads"] for _ in range(head["count"])]
sizes = np.array([len(labels) for labels in branches])
random = np.random.default_rng(0)


def measure(field: dict) -> np.ndarray:
    """Put your sensors here; this makes up values within the field's bounds, in its unit."""
    low, high = (0 if bound is None else bound for bound in (field["low"], field["high"]))
    if field["scale"] == "category":
        return random.integers(int(low), int(high) + 1, field["shape"])
    return np.array(random.uniform(low, high, field["shape"]), np.float32)


inputs = {
    "agent": np.array(team["agents"].index(agent)),
    "action_mask": np.arange(sizes.max()) < sizes[:, None],
}  # all is legal
inputs |= {"hidden": np.zeros(shapes["hidden"], np.float32), "previous_actions": np.full(len(branches), -1)}
if "messages" in shapes:  # of this step, from team["hears"][agent]; NaN where none arrived
    inputs["messages"] = np.full(shapes["messages"], np.nan, np.float32)
for step in range(3):
    observation = {f"observation.{name}": measure(field) for name, field in team["observation"].items()}
    outputs = dict(zip(names, session.run(None, inputs | observation), strict=True))
    inputs |= {"hidden": outputs["next_hidden"], "previous_actions": outputs["actions"]}
    print(step, *(labels[choice] for labels, choice in zip(branches, outputs["actions"], strict=True)))
