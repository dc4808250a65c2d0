"""The httpx client against a real server."""

from pathlib import Path

import pytest

from envs.registry import make_simulator, scenario_from_dict
from envs.team import episode_seeds
from trainers.bundle import load_bundle
from trainers.learned_policy import load_policy


def played_here(bundle: Path) -> tuple[float, int]:
    """Return and decisions of the client's episode, with the policy in this process."""
    policy = load_policy(bundle)
    simulator = make_simulator(scenario_from_dict(load_bundle(bundle)[1]["scenario"]))
    step, state, total, decisions = simulator.reset(episode_seeds(0, 0, 1)), policy.initial_state(1), 0.0, 0
    while not step.finished.all():
        actions, state = policy.act(step.observation, state, step.action_mask)
        step = simulator.step(actions)
        total, decisions = total + step.reward.item(), decisions + 1
    return total, decisions


@pytest.mark.parametrize("name", ["talking", "talker"])
def test_an_episode_over_http_is_that_of_the_policy_itself(name: str, server: str, bundles: Path, example) -> None:
    total, decisions = played_here(bundles / name)
    assert example("http_client.py", server, name) == f"return {total:.6g} after {decisions} decisions\n"


def test_what_the_server_refuses_is_shown_in_one_line(server: str, example) -> None:
    (line,) = example("http_client.py", server, "nobody", fails=True).splitlines()
    assert "policy 'nobody': expected one of" in line


def test_without_a_server_there_is_one_line(example) -> None:
    (line,) = example("http_client.py", "http://127.0.0.1:9", "talker", fails=True).splitlines()
    assert line.startswith("http://127.0.0.1:9/v1/policies/talker: ")
