"""What the application answers, above all to requests that are wrong."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from serve.policies import bundle_version
from tests.serve.serving import Server, make_bundle

pytestmark = pytest.mark.anyio


def changed(example: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """The example with another value of a field."""
    return {**example, "observation": {**example["observation"], field: value}}


async def test_actions_have_names_and_numbers(server: Server) -> None:
    answer = (await server.decide("dialogue", server.example("dialogue"))).json()
    policy = server.shelf.newest["dialogue"]
    assert (answer["policy"], answer["version"]) == ("dialogue", policy.version)
    labels = policy.spec.heads[0].labels
    for agent in policy.spec.agents:
        assert answer["actions"][agent] == {"endpoint": labels[answer["choices"][agent]["endpoint"]]}
    answer = (await server.decide("vehicular", server.example("vehicular"))).json()
    assert set(answer["actions"]["edge_0"]) == {"target", "compute_level", "power_level", "fetch"}
    assert len(answer["actions"]["edge_0"]["target"]) == server.shelf.newest["vehicular"].spec.heads[0].count


async def test_only_legal_choices_are_made(server: Server) -> None:
    for legal in (0, 8):
        mask = [[choice == legal for choice in range(9)]] * 8
        body = {**server.example("dialogue"), "action_mask": {"endpoint": mask}}
        choices = (await server.decide("dialogue", body)).json()["choices"]
        assert {of["endpoint"] for of in choices.values()} == {legal}


async def test_probabilities_are_those_that_are_sampled_from(server: Server) -> None:
    example = server.example("dialogue")
    answer = (await server.decide("dialogue", {**example, "scores": True})).json()
    first = answer["probabilities"]["device-0"]["endpoint"]
    assert sum(first) == pytest.approx(1.0)
    assert first.index(max(first)) == answer["choices"]["device-0"]["endpoint"]
    teams = {"observations": {name: [value] * 400 for name, value in example["observation"].items()}}
    drawn = (await server.decide("dialogue", {**teams, "mode": "sampled", "seed": 7})).json()["decisions"]
    share = sum(one["choices"]["device-0"]["endpoint"] == 1 for one in drawn) / 400
    free = (await server.decide("dialogue", {"observation": example["observation"], "scores": True})).json()
    probability = free["probabilities"]["device-0"]["endpoint"][1]
    assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 400) ** 0.5)


async def test_a_seed_makes_draws_repeatable_beside_others(server: Server) -> None:
    body = {**server.example("dialogue"), "mode": "sampled", "seed": 3}
    others = [{**body, "seed": None}, {**body, "seed": 4}, body]
    alone = (await server.decide("dialogue", body)).json()
    together = [answer.json() for answer in await asyncio.gather(*(server.decide("dialogue", one) for one in others))]
    assert together[2]["choices"] == alone["choices"]
    assert together[1]["choices"] != alone["choices"]


async def test_values_are_told_by_value_based_policies(server: Server) -> None:
    answer = (await server.decide("games", {**server.example("games"), "scores": True})).json()
    assert "probabilities" not in answer
    for agent, of in answer["q_values"].items():
        (values,), (choice,) = of.values(), answer["choices"][agent].values()
        assert values[choice] == max(values)


NAN, INFINITY = '{"observation": {"difficulty_hint": NaN}}', '{"observation": {"difficulty_hint": Infinity}}'


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("difficulty_hint", [[2.0]] * 8, "observation.difficulty_hint[0][0] = 2: expected a number in [0, 1]"),
        ("latency_left_s", [[-1.0]] * 8, "observation.latency_left_s[0][0] = -1: expected a number in [0, "),
        ("network", [[0]] * 7 + [[0.5]], "observation.network[7][0] = 0.5: expected a whole number in [0, 3]"),
        ("network", [[0]] * 7 + [[99]], "observation.network[7][0] = 99: expected a whole number"),
        ("difficulty_hint", [[1e999]] * 8, "observation.difficulty_hint"),
        ("difficulty_hint", [[0.5]] * 7, "observation.difficulty_hint: expected numbers of shape [8, 1], got [7, 1]"),
        ("difficulty_hint", [0.5] * 8, "expected numbers of shape [8, 1], got [8]"),
        ("difficulty_hint", [[0.5], []], "got lists of different lengths"),
        ("difficulty_hint", [["0.5"]] * 8, "got something else among them"),
        ("difficulty_hint", [[True]] * 8, "got something else among them"),
        ("difficulty_hint", [[None]] * 8, "got something else among them"),
        ("difficulty_hint", [[2**70]] * 8, "observation.difficulty_hint"),
        ("difficulty_hint", {"0": 1}, "observation.difficulty_hint"),
        ("mood", [[0.5]] * 8, "observation.mood: there is no such field"),
    ],
)
async def test_an_observation_that_cannot_be(field: str, value: Any, complaint: str, server: Server) -> None:
    body = json.dumps(changed(server.example("dialogue"), field, value))
    answer = await server.client.post("/v1/policies/dialogue/decide", content=body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert complaint in error or (value == [[1e999]] * 8 and "not JSON" in error)
    assert "\n" not in error


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ('{"observation": NaN}', "not JSON"),
        ("[]", "valid dictionary"),
        ("null", "valid dictionary"),
        ("{}", "observation: is missing"),
        ('{"observation": 3}', "observation: input should be a valid dictionary"),
        ("[" * 100_000, "not JSON"),
    ],
)
async def test_a_body_that_is_no_request(body: str, complaint: str, server: Server) -> None:
    answer = await server.client.post("/v1/policies/dialogue/decide", content=body)
    assert answer.status_code == 422
    assert complaint in answer.json()["error"]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"mode": "wild"}, "mode: input should be 'greedy' or 'sampled'"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        ({"seed": 1.5}, "seed: input should be a valid integer"),
        ({"scores": 1}, "scores: input should be a valid boolean"),
        ({"states": []}, "states: there is no such field"),
        ({"state": ""}, "state: the token is not one of this policy"),
        ({"state": "no token!"}, "state: "),
        ({"state": "ü"}, "state: "),
        ({"session": "x", "state": "y"}, "either a session or a state"),
        ({"action_mask": {"endpoint": [[False] * 9] * 8}}, "branch 0 of device-0 in team 0 has no legal choice"),
        ({"action_mask": {"endpoint": [[1] * 9] * 8}}, "action_mask.endpoint: expected true or false of shape [8, 9]"),
        ({"action_mask": {"wheel": []}}, "action_mask.wheel: there is no such field"),
    ],
)
async def test_options_that_cannot_be(more: dict[str, Any], complaint: str, server: Server) -> None:
    answer = await server.decide("dialogue", {**server.example("dialogue"), **more})
    assert answer.status_code == 422
    assert complaint in answer.json()["error"]


async def test_a_policy_can_be_asked_only_for_what_it_can_do(server: Server) -> None:
    for name, more in (("games", {"mode": "sampled"}), ("greedy", {"scores": True}), ("random", {"seed": 1})):
        assert (await server.decide(name, {**server.example(name), **more})).status_code == 422
    own = {name: value[0] for name, value in server.example("greedy")["observation"].items()}
    answer = await server.client.post("/v1/policies/greedy/agents/edge_0/decide", json={"observation": own})
    assert answer.status_code == 404


async def test_a_message_is_what_a_network_can_read(server: Server) -> None:
    policy = server.shelf.newest["vehicular"]
    speaker, listener, *_ = policy.spec.agents
    own = {name: value[1] for name, value in server.example("vehicular")["observation"].items()}
    size = policy.agent(listener).intent_size
    for number, status in ((1e4, 200), (1e5, 422), (-1e300, 422)):
        body = {"observation": own, "messages": {speaker: [number] * size}}
        answer = await server.client.post(f"/v1/policies/vehicular/agents/{listener}/decide", json=body)
        assert answer.status_code == status, answer.text
    assert answer.json() == {"error": f"messages.{speaker}: expected numbers of a magnitude up to 10000"}


async def test_several_teams_must_be_of_one_number(server: Server) -> None:
    example = server.example("dialogue")["observation"]
    teams = {name: [value] * 2 for name, value in example.items()}
    answer = await server.decide("dialogue", {"observations": {**teams, "turn": teams["turn"][:1]}})
    assert answer.json()["error"] == "observations.turn: is of 1 teams, but observations.category of 2"
    assert (await server.decide("dialogue", {"observations": teams, "states": [None]})).status_code == 422
    small = Server({"dialogue": server.shelf.newest["dialogue"].folder}, teams=1)
    assert (await small.decide("dialogue", {"observations": teams})).status_code == 413


async def test_a_state_of_another_policy_or_key_is_refused(server: Server, bundles: dict[str, Path]) -> None:
    token = (await server.decide("dialogue", server.example("dialogue"))).json()["state"]
    forged = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
    answer = await server.decide("dialogue", {**server.example("dialogue"), "state": forged})
    assert (answer.status_code, answer.json()["error"][:6]) == (422, "state:")
    assert (await server.decide("games", {**server.example("games"), "state": token})).status_code == 422


async def test_a_request_that_is_too_large(bundles: dict[str, Path]) -> None:
    server = Server({"dialogue": bundles["dialogue"]}, body_bytes=2000)
    assert (await server.decide("dialogue", {"x": "y" * 2000})).status_code == 413

    async def parts() -> Any:
        for _ in range(3):
            yield b" " * 1000

    answer = await server.client.post("/v1/policies/dialogue/decide", content=parts())  # without a length beforehand
    assert answer.status_code == 413


async def test_a_request_that_takes_too_long(bundles: dict[str, Path]) -> None:
    server = Server({"dialogue": bundles["dialogue"]}, time_s=0.05)

    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(0.2)
        yield b"}"

    answer = await server.client.post("/v1/policies/dialogue/decide", content=slow())
    assert (answer.status_code, answer.json()["error"]) == (504, "no answer within 0.05 s")


async def test_a_bearer_token_is_wanted_for_all_that_tells_something(bundles: dict[str, Path]) -> None:
    server = Server({"dialogue": bundles["dialogue"]}, bearer="secret")
    paths = ["/v1/policies", "/v1/policies/dialogue", "/metrics", "/v2", "/v2/models/dialogue"]
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "Bearer sëcret"}):
        encoded = {name: value.encode() for name, value in header.items()}
        for path in paths:
            answer = await server.client.get(path, headers=encoded)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
    for path in paths:
        assert (await server.client.get(path, headers={"Authorization": "Bearer secret"})).status_code == 200
    for path in ("/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready", "/static/swagger-ui.css"):
        assert (await server.client.get(path)).status_code == 200
    assert (await server.client.get("/static/../../cli.py")).status_code in (401, 404)


async def test_unknown_things_are_404_and_wrong_methods_405(server: Server) -> None:
    assert (await server.decide("nobody", {})).json()["error"].startswith("policy 'nobody': expected one of dialogue, ")
    agent = await server.client.post("/v1/policies/dialogue/agents/nobody/decide", json={})
    assert (agent.status_code, "device-0" in agent.json()["error"]) == (404, True)
    assert (await server.client.get("/nowhere")).status_code == 404
    assert (await server.client.get("/v1/policies/dialogue/decide")).status_code == 405


async def test_a_failure_tells_the_client_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("inner secrets")

    monkeypatch.setattr(server.shelf.newest["dialogue"], "_recorded", broken)
    answer = await server.decide("dialogue", server.example("dialogue"))
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json() == {"error": "the server failed; its log says why"}


async def test_sessions_end(server: Server) -> None:
    open_one = "/v1/policies/dialogue/sessions"
    first, *_ = [(await server.client.post(open_one)).json()["session"] for _ in range(3)]
    full = await server.client.post(open_one)
    assert (full.status_code, full.headers["retry-after"]) == (503, "1")
    body = {**server.example("dialogue"), "session": first}
    assert (await server.decide("games", {**server.example("games"), "session": first})).status_code == 404
    assert (await server.decide("dialogue", body)).status_code == 200
    met = await asyncio.gather(server.decide("dialogue", body), server.decide("dialogue", body))
    assert sorted(answer.status_code for answer in met) == [200, 409]
    assert (await server.client.delete(f"/v1/sessions/{first}")).status_code == 204
    assert (await server.client.delete(f"/v1/sessions/{first}")).status_code == 404
    assert (await server.decide("dialogue", body)).status_code == 404
    second = (await server.client.post(open_one)).json()["session"]
    server.now = 599.0
    assert (await server.decide("dialogue", {**body, "session": second})).status_code == 200
    server.now = 1198.0
    assert (await server.decide("dialogue", {**body, "session": second})).status_code == 200
    server.now = 1799.0
    assert (await server.decide("dialogue", {**body, "session": second})).status_code == 404


async def test_episodes_go_on_with_the_version_that_they_began_with(bundles: dict[str, Path], tmp_path: Path) -> None:
    made = [make_bundle(tmp_path / str(seed), "mappo", "dialogue/d8", [], seed) for seed in (1, 2)]
    first, second, third = bundles["dialogue"], *made
    server = Server({"dialogue": first})
    body = server.example("dialogue")
    before = (await server.decide("dialogue", body)).json()
    server.shelf.load({"dialogue": second})
    assert (await server.decide("dialogue", body)).json()["version"] == bundle_version(second)
    going_on = (await server.decide("dialogue", {**body, "state": before["state"]})).json()
    assert going_on["version"] == before["version"] == bundle_version(first)
    server.shelf.load({"dialogue": third})
    gone = await server.decide("dialogue", {**body, "state": going_on["state"]})
    assert gone.status_code == 409
    assert "begin a new episode" in gone.json()["error"]


async def test_metrics_count(server: Server) -> None:
    example = server.example("dialogue")
    await server.decide("dialogue", example)
    await server.decide("dialogue", {"observations": {name: [value] * 3 for name, value in example["observation"].items()}})
    await server.decide("dialogue", {})
    lines = (await server.client.get("/metrics")).text.splitlines()
    assert 'edgeflock_decisions_total{policy="dialogue"} 4.0' in lines
    assert 'edgeflock_latency_seconds_count{policy="dialogue"} 2.0' in lines
    assert 'edgeflock_invalid_requests_total{policy="dialogue"} 1.0' in lines
    assert 'edgeflock_batch_teams_bucket{le="4.0",policy="dialogue"}' in "".join(lines)
