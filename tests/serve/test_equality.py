"""Served decisions are the evaluator's: for every problem, over whole episodes, one team a request or several."""

import asyncio
from pathlib import Path

import pytest
from torch import tensor

from tests.serve.episodes import body_of, numbers_of, played
from tests.serve.serving import HEURISTICS, LEARNED, Server
from trainers.learned_policy import load_policy

pytestmark = pytest.mark.anyio
EPISODES = 3
NAMES = [*LEARNED, "greedy"]


@pytest.mark.parametrize("teams", [1, EPISODES])
@pytest.mark.parametrize("name", NAMES)
async def test_one_team_a_request(name: str, teams: int, bundles: dict[str, Path], server: Server) -> None:
    """Several teams ask at once, so that their requests share batches; a single one gets the recorded decision."""
    spec, tokens = load_policy(bundles[name]).spec, [None] * teams
    assert server.shelf.newest[name].recorded == (name in LEARNED)
    for result, actions in played(bundles[name], teams):
        bodies = [{**body_of(result, spec, row), "state": tokens[row]} for row in range(teams)]
        answers = [answer.json() for answer in await asyncio.gather(*(server.decide(name, body) for body in bodies))]
        assert [numbers_of(answer["choices"], spec) for answer in answers] == actions.tolist()
        tokens = [answer["state"] for answer in answers]
    assert (tokens[0] is None) == (name in HEURISTICS or name == "cs-ucb")


@pytest.mark.parametrize("name", NAMES)
async def test_several_teams_in_one_request(name: str, bundles: dict[str, Path], server: Server) -> None:
    spec, tokens = load_policy(bundles[name]).spec, [None] * EPISODES
    for result, actions in played(bundles[name], EPISODES):
        answer = (await server.decide(name, {**body_of(result, spec, None), "states": tokens})).json()
        assert [numbers_of(one["choices"], spec) for one in answer["decisions"]] == actions.tolist()
        tokens = [one["state"] for one in answer["decisions"]]


async def test_in_a_session_the_server_remembers(bundles: dict[str, Path], server: Server) -> None:
    spec = load_policy(bundles["dialogue"]).spec
    session = (await server.client.post("/v1/policies/dialogue/sessions")).json()["session"]
    for result, actions in played(bundles["dialogue"], 1):
        answer = (await server.decide("dialogue", {**body_of(result, spec, 0), "session": session})).json()
        assert numbers_of(answer["choices"], spec) == actions[0].tolist()
        assert answer["state"] is None


@pytest.mark.parametrize("name", ["vehicular", "dialogue"])
async def test_agents_on_their_own_decide_as_the_team(name: str, bundles: dict[str, Path], server: Server) -> None:
    """In every step all agents first say what they intend, then each decides with what it heard."""
    spec, tokens = load_policy(bundles[name]).spec, {}
    for result, actions in played(bundles[name], 1):
        body, said = body_of(result, spec, 0), {}
        own = {
            agent: {field: values[place] for field, values in body["observation"].items()}
            for place, agent in enumerate(spec.agents)
        }
        base = f"/v1/policies/{name}/agents"
        for agent in spec.agents:
            asked = {"observation": own[agent], "state": tokens.get(agent)}
            said[agent] = (await server.client.post(f"{base}/{agent}/intend", json=asked)).json()
        for place, agent in enumerate(spec.agents):
            heard = {peer: one["message"] for peer, one in said.items() if agent in one["listeners"]}
            mask = {head: legal[place] for head, legal in body["action_mask"].items()}
            asked = {"observation": own[agent], "state": tokens.get(agent), "action_mask": mask, "messages": heard}
            answer = (await server.client.post(f"{base}/{agent}/decide", json=asked)).json()
            chosen = [n for head in spec.heads for n in tensor(answer["choices"][head.name]).flatten().tolist()]
            assert chosen == actions[0, place].tolist()
            assert answer["message"] == said[agent]["message"]
            tokens[agent] = answer["state"]
