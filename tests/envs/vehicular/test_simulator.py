"""The vehicular simulator as a whole."""

import itertools

import pytest
import torch

from envs import random
from envs.contract import check_simulator
from envs.errors import InputError
from envs.registry import make_scenario, make_simulator
from envs.team import episode_seeds, random_actions

SMALL = {"num_vehicles": 20, "num_edges": 4, "horizon_slots": 25, "trace_slots": 30, "request_slots": 4}
FAULTS = {"edge_down_probability": 0.05, "link_loss_probability": 0.1}


def simulator(num_envs, **overrides):
    return make_simulator(make_scenario("vehicular/v50-e6", {**SMALL, **overrides}), num_envs)


def seeded_actions(result, seeds, step):
    """Random legal actions that depend on the episode seed and the step only."""
    mask = result.action_mask
    agents, branches, choices = (torch.arange(n) for n in mask.shape[1:])
    score = random.uniform(seeds[:, None, None, None], 77, step, agents[:, None, None], branches[:, None], choices)
    return score.masked_fill(~mask, -1.0).argmax(-1)


def play(sim, seeds, steps=None):
    """All results of an episode of random legal actions, beginning with the reset's."""
    results = [sim.reset(seeds)]
    for step in range(steps or sim.spec.max_steps):
        results.append(sim.step(seeded_actions(results[-1], seeds, step)))
    return results


@pytest.mark.parametrize("overrides", [{}, {**FAULTS, "num_edges": 9}, {"mask_invalid": False, "vehicle_patch_slots": None}])
def test_it_keeps_the_contract(overrides):
    check_simulator(lambda num_envs: simulator(num_envs, **overrides), steps=27)


def test_an_episode_is_the_same_in_any_row_of_any_batch():
    seeds = episode_seeds(3, 0, 64)
    reference = play(simulator(64, **FAULTS), seeds)
    for rows in ([11], [63, 0], [5, 9, 1, 33, 20, 62, 2]):
        for expected, got in zip(reference, play(simulator(len(rows), **FAULTS), seeds[rows]), strict=True):
            assert torch.equal(expected.reward[rows], got.reward)
            assert torch.equal(expected.state[rows], got.state)
            assert torch.equal(expected.action_mask[rows], got.action_mask)
            for name, value in expected.observation.items():
                assert torch.equal(value[rows], got.observation[name]), name
            for name, value in expected.metrics.items():
                assert torch.equal(value[rows], got.metrics[name]), name


@pytest.mark.parametrize("overrides", [{}, {"edge_down_probability": 0.1, "num_edges": 9}])
def test_masks_equal_a_recomputation_in_plain_python(overrides):
    sim, seeds = simulator(2, **overrides), episode_seeds(0, 5, 2)
    result = sim.reset(seeds)
    s, branches = sim.scenario, sim.spec.branches
    overflowed = 0
    for step in range(s.horizon_slots):
        for row in range(2):
            expected, overflow = brute_force_mask(sim, row, step)
            overflowed += overflow
            for m in range(s.num_edges):
                for h in range(len(branches)):
                    legal = set(result.action_mask[row, m, h].nonzero().flatten().tolist())
                    assert legal == expected[m][h], (row, step, m, h)
        result = sim.step(seeded_actions(result, seeds, step))
    assert overflowed > 0  # the case of more requests than request slots was met


def brute_force_mask(sim, row, slot):
    """Legal choices `[M][H]` as sets, from the stores and the episode, and the number of requests without a request slot."""
    s, episode = sim.scenario, sim.episode
    edges, services = s.num_edges, s.num_services
    up = episode.up[slot, row].tolist()
    versions = sim._edge_version[row].tolist()
    where = torch.tensor(sim.spec.positions)
    mask, overflow = [], 0
    for m in range(edges):
        waiting = []
        for n in range(s.num_vehicles):
            service = episode.service[slot, row, n].item()
            held = {code // s.num_versions for code in sim._store[:, row, n].tolist() if code >= 0}
            if episode.present[slot, row, n] and episode.own[slot, row, n] == m and service not in held:
                waiting.append((-(episode.size_mb[slot, row, n] * episode.importance[slot, row, n]).item(), n, service))
        waiting.sort()
        overflow += max(0, len(waiting) - s.request_slots)
        heads = []
        for r in range(s.request_slots):
            if r < len(waiting):
                service = waiting[r][2]
                heads.append({j for j in range(edges) if up[j] and versions[j][service] >= 0} | {edges})
            else:
                heads.append({0})
        heads += [set(range(5)) if up[m] else {0}] * 2
        fetches = {0}
        for k in range(services):
            experts = [j for j in range(edges) if j % services == k and up[j]]
            if up[m] and experts:
                nearest = min(experts, key=lambda j: ((where[j] - where[m]) ** 2).sum().item())
                if versions[nearest][k] > versions[m][k]:
                    fetches.add(1 + k)
        mask.append([*heads, fetches])
    return mask, overflow


def test_stores_hold_what_they_may_and_versions_never_fall():
    sim, seeds = simulator(3, update_period_slots=5), episode_seeds(0, 0, 3)
    s = sim.scenario
    result = sim.reset(seeds)
    for step in range(s.horizon_slots):
        before, capability = sim._version.clone(), sim._cloud_capability()
        result = sim.step(seeded_actions(result, seeds, step))
        assert bool((sim._version >= before).all())
        assert bool((sim._cloud_capability() >= capability).all())
        # a higher version is a better model, eq. 1
        assert bool((sim._cloud_capability() > capability)[sim._version > before].all())
        fetched = (sim._edge_version >= 0) & ~sim._primary
        assert int(fetched.sum(-1).max()) <= s.edge_patch_slots
        assert torch.equal(sim._edge_version[:, sim._primary], sim._version[:, sim._primary.nonzero()[:, 1]])
        codes = sim._store.permute(1, 2, 0).flatten(0, 1).tolist()
        for patches in codes:
            services = [code // s.num_versions for code in patches if code >= 0]
            assert len(services) == len(set(services)) <= s.vehicle_patch_slots
    assert int(sim._version.max()) > 1


def test_gains_add_up_to_what_vehicles_hold_at_the_end():
    sim, seeds = simulator(3), episode_seeds(0, 0, 3)
    results = play(sim, seeds)
    gained = sum(result.metrics["gain"] for result in results)
    held = sum(sim._capability_of(place).sum(1) for place in sim._store)
    assert gained.tolist() == pytest.approx(held.tolist(), rel=1e-4)


def test_every_request_has_one_route():
    for result in play(simulator(2), episode_seeds(0, 0, 2))[1:]:
        routes = sum(result.metrics[f"by_{route}"] for route in ("vehicle", "own_edge", "peer_edge", "cloud"))
        assert torch.equal(routes, result.metrics["requests"])


def test_a_patch_is_used_from_the_next_slot_on():
    one = {"service_probabilities": (1.0,), "num_edges": 1, "area_m": (800.0, 800.0), "coverage_radius_m": 5_000.0}
    sim = simulator(1, **one, request_slots=20)
    result = sim.reset(episode_seeds(0, 0, 1))
    assert result.observation["requests"].item() == 20
    to_edge = torch.zeros(1, 1, sim.spec.num_branches, dtype=torch.int64)
    result = sim.step(to_edge)
    assert result.metrics["by_own_edge"].item() == 20
    patched = 20 - result.observation["requests"].item()
    assert patched > 0
    assert result.metrics["gain"].item() == pytest.approx(0.6 * patched, rel=1e-5)
    assert sim.step(to_edge).metrics["by_vehicle"].item() == patched


def test_a_fetched_model_answers_from_the_next_slot_on():
    sim = simulator(1, num_edges=6)
    result = sim.reset(episode_seeds(0, 0, 1))
    actions = random_actions(result.action_mask)
    actions[:, :, -1] = 0
    actions[0, 2, -1] = 1 + 4  # edge 2 fetches service 4
    assert result.observation["version"][0, 2].tolist() == [-1, -1, 0, -1, -1, -1]
    result = sim.step(actions)
    assert result.observation["version"][0, 2].tolist() == [-1, -1, 0, -1, 0, -1]
    assert result.observation["target_capability"][0, 5, 2, 4].item() == pytest.approx(0.6)
    assert not result.action_mask[0, 2, -1, 1 + 4]
    assert result.metrics["fetches"].item() == 1


@pytest.mark.parametrize("mask_invalid", [True, False])
def test_illegal_choices_fall_back_and_pay(mask_invalid):
    lenient = simulator(1, mask_invalid=mask_invalid, weight_invalid=0.0)
    strict = simulator(1, mask_invalid=mask_invalid, weight_invalid=2.0)
    result = lenient.reset(episode_seeds(0, 0, 1))
    strict.reset(episode_seeds(0, 0, 1))
    actions = torch.zeros(1, 4, lenient.spec.num_branches, dtype=torch.int64)
    actions[:, :, -1] = 1  # service 0, which edge 0 is the expert for: illegal there and only there
    service = result.observation["service"][0]
    wrong = int(((service >= 0) & (service != 0)).sum())  # edge 0 answers nothing but service 0
    choices = int((service >= 0).sum()) + 4
    cheap, dear = lenient.step(actions), strict.step(actions)
    assert cheap.metrics["illegal"].item() == wrong + 1
    assert cheap.metrics["choices"].item() == choices
    assert (cheap.reward - dear.reward).item() == pytest.approx(2.0 * (wrong + 1) / choices, rel=1e-4)
    actions[:, :, :4] = torch.where((service >= 0) & (service != 0), 4, 0)
    actions[0, 0, -1] = 0
    lenient.reset(episode_seeds(0, 0, 1))
    legal = lenient.step(actions)
    assert legal.metrics["illegal"].item() == 0
    assert torch.equal(legal.reward, cheap.reward)  # an illegal target is the cloud, an illegal fetch is none


def test_without_masks_all_that_exists_is_allowed():
    result = simulator(2, mask_invalid=False).reset(episode_seeds(0, 0, 2))
    exists = simulator(2).spec.choice_exists()
    assert torch.equal(result.action_mask, exists.expand_as(result.action_mask))


def test_edges_that_are_down_serve_nothing():
    sim, seeds = simulator(4, edge_down_probability=0.2), episode_seeds(0, 0, 4)
    result, down_seen = sim.reset(seeds), 0
    for step in range(sim.scenario.horizon_slots):
        down = ~sim.episode.up[step]
        down_seen += int(down.sum())
        assert bool((result.observation["requests"][down] == 0).all())
        assert bool((result.observation["node_health"][:, 0][down] == 0).all())
        result = sim.step(seeded_actions(result, seeds, step))
        assert bool((result.observation["last_tasks"][:, 0, :4][down] == 0).all())
    assert down_seen > 0


def test_a_service_without_any_expert_is_answered_by_the_cloud():
    sim, seeds = simulator(2, num_edges=2, request_slots=1), episode_seeds(0, 0, 2)
    assert bool(torch.isfinite(torch.stack([result.reward for result in play(sim, seeds)])).all())
    assert sim._experts[..., 0].tolist() == [[0, 1, 2, 2, 2, 2]] * 2


def test_a_finished_episode_idles():
    sim = simulator(2)
    last = play(sim, episode_seeds(0, 0, 2))[-1]
    after = sim.step(random_actions(last.action_mask))
    assert bool(last.terminated.all())
    assert bool(after.terminated.all())
    assert after.reward.tolist() == [0.0, 0.0]
    assert torch.equal(after.state, last.state)


def test_presets_differ_in_their_size_only():
    made = {name: make_scenario(f"vehicular/{name}") for name in ("v50-e6", "v100-e6", "v200-e6", "v200-e12")}
    assert [(s.num_vehicles, s.num_edges) for s in made.values()] == [(50, 6), (100, 6), (200, 6), (200, 12)]
    kept = [s.model_dump(exclude={"name", "num_vehicles", "num_edges", "area_m"}) for s in made.values()]
    assert all(values == kept[0] for values in kept)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ({"edge_hz": 0}, "edge_hz = 0: input should be greater than 0"),
        ({"edge_ghz": 100}, "unknown key 'edge_ghz'"),
        ({"service_probabilities": [0.5, 0.4]}, "service_probabilities sum to 0.9, expected 1"),
    ],
)
def test_bad_scenarios_are_refused(override, complaint):
    with pytest.raises(InputError, match=complaint):
        make_scenario("vehicular/v50-e6", override)


def test_trace_files_are_played(tmp_path):
    lines = [f"1,2008-02-02 {13 + i // 60}:{i % 60:02d}:00,{116.35 + 1e-4 * i},39.92" for i in range(70)]
    path = tmp_path / "1.txt"
    path.write_text("\n".join(lines))
    sim = simulator(1, traces=str(path), num_vehicles=1, num_edges=1)
    results = play(sim, episode_seeds(0, 0, 1))
    assert results[0].observation["all_vehicles"][0, 0].item() == 1
    with pytest.raises(InputError, match=r"1 vehicles, but the scenario needs .* and 2 vehicles"):
        simulator(1, traces=str(path), num_vehicles=2, num_edges=1)


def test_what_vehicles_answer_themselves_is_announced_exactly(monkeypatch):
    sim, seeds = simulator(3), episode_seeds(0, 0, 3)
    played = []
    evaluate = sim._model.evaluate

    def watch(requests, decision, network):
        outcome = evaluate(requests, decision, network)
        by_vehicle = decision.route == sim.scenario.num_edges + 1
        late = (outcome.latency_s - sim.scenario.latency_limit_s).clamp(min=0.0)
        under = [by_vehicle & (requests.own == edge) for edge in range(sim.scenario.num_edges)]
        terms = (torch.ones_like(late), outcome.score, late)
        played.append([torch.stack([(term * mine).sum(1) for mine in under], dim=1) for term in terms])
        return outcome

    monkeypatch.setattr(sim._model, "evaluate", watch)
    result = sim.reset(seeds)
    answered = 0.0
    for _ in range(12):
        announced = [result.observation[name] for name in ("vehicle_answers", "vehicle_score", "vehicle_excess_s")]
        result = sim.step(random_actions(result.action_mask))
        for expected, actual in zip(announced, played[-1], strict=True):
            torch.testing.assert_close(expected, actual, atol=1e-4, rtol=1e-4)
        answered += float(announced[0].sum())
    assert answered > 0


def test_logs_for_the_next_fine_tuning_are_shown_until_it():
    sim = simulator(2, update_period_slots=4, num_vehicles=20)
    result = sim.reset(episode_seeds(0, 0, 2))
    seen = [result.observation["logged_importance"][:, 0].sum(1)]
    for _ in range(4):
        result = sim.step(random_actions(result.action_mask))
        seen.append(result.observation["logged_importance"][:, 0].sum(1))
    assert bool((seen[0] == 0).all())
    assert all(bool((later >= earlier).all()) for earlier, later in itertools.pairwise(seen[:4]))
    assert bool((seen[3] > 0).all())
    assert bool((seen[4] == 0).all())  # used up by the fine-tuning after slot 4
