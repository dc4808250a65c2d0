"""A policy behind a URL plays an episode of its problem, which is simulated here.

edgeflock serve bundles/idmac
python examples/http_client.py http://127.0.0.1:8000 idmac [TOKEN_FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import torch

from envs.registry import make_simulator, scenario_from_dict
from envs.team import StepResult, TeamSpec, episode_seeds


class Endpoint:
    """A served policy, and where it is in the present episode (`state`, None at its start)."""

    def __init__(self, url: str, policy: str, token_file: str | None = None, timeout_s: float = 10.0) -> None:
        self.url, self.state = f"{url.rstrip('/')}/v1/policies/{policy}", None
        headers = {"Authorization": f"Bearer {Path(token_file).read_text().strip()}"} if token_file else {}
        self.http = httpx.Client(headers=headers, timeout=timeout_s)
        try:
            self.manifest = self._answer(self.http.get(self.url, timeout=10.0))["manifest"]
        except httpx.HTTPError as error:
            raise SystemExit(f"{self.url}: {error}") from None

    def decide(self, spec: TeamSpec, step: StepResult) -> torch.Tensor:
        """The team's actions `[1, N, H]`."""
        parts = step.action_mask[0].split([head.count for head in spec.heads], dim=1)
        masks = {h.name: part[:, :, : h.choices] for h, part in zip(spec.heads, parts, strict=True)}
        request = {
            "observation": {name: value[0].tolist() for name, value in step.observation.items()},
            "action_mask": {h.name: (masks[h.name] if h.count > 1 else masks[h.name][:, 0]).tolist() for h in spec.heads},
            "state": self.state,
        }
        answer = self._answer(self.http.post(f"{self.url}/decide", json=request))
        self.state = answer["state"]
        chosen = [[torch.tensor(of[head.name]).view(-1) for head in spec.heads] for of in answer["choices"].values()]
        return torch.stack([torch.cat(heads) for heads in chosen]).unsqueeze(0)

    def _answer(self, response: httpx.Response) -> dict:
        if response.is_client_error:
            raise SystemExit(f"{self.url}: {response.text}")
        return response.raise_for_status().json()


if __name__ == "__main__":
    endpoint = Endpoint(*sys.argv[1:])
    simulator = make_simulator(scenario_from_dict(endpoint.manifest["scenario"]))
    step, total, decisions = simulator.reset(episode_seeds(0, 0, 1)), 0.0, 0
    while not step.finished.all():
        step = simulator.step(endpoint.decide(simulator.spec, step))
        total, decisions = total + step.reward.item(), decisions + 1
    print(f"return {total:.6g} after {decisions} decisions")
