"""The velo problem once more, slowly: plain loops over servers and one `ExactStore` for each."""

import torch

from envs.velo.stores import ExactStore

A, B, C = "ABC"
KINDS = torch.tensor([0, 1])


class Reference:
    """One row of a simulator that has been reset, played by the rules of the paper with numbers of its episode."""

    def __init__(self, simulator, row):
        self.s, self.corpus, self.row = simulator.scenario, simulator.corpus, row
        self.vectors = simulator.vectors
        episode = simulator.episode
        self.question, self.tokens = episode.question[row], episode.answer_tokens[row].tolist()
        self.plain, self.arrival = episode.distance[row].tolist(), episode.arrival_s[row].tolist()
        self.answers = self.vectors.answer(episode.question[row], episode.direction[row], episode.distance[row])
        self.up, self.slow = episode.store_up[row].tolist(), episode.slow_link[row].tolist()
        self.eviction = episode.eviction[row].tolist()
        self.stores = [ExactStore(simulator.corpus.width) for _ in range(self.s.num_servers)]
        self.free, self.t = 0.0, 0
        for n in range(self.s.num_servers):
            for j in range(self.s.initial_exchanges):
                self.insert(n, j, -self.plain[n][j] - self.s.llm.network_s - self.service(n, j, False))

    def insert(self, n, j, value):
        vectors = torch.stack([self.vectors.question[self.question[n, j]], self.answers[n, j]])
        self.stores[n].insert(vectors, KINDS, torch.tensor([j, j]), torch.tensor([value, value], dtype=torch.float32))

    def service(self, n, j, augmented):
        prompt, tokens = float(self.corpus.prompt_tokens[self.question[n, j]]), self.tokens[n][j]
        if augmented:
            prompt, tokens = prompt + self.s.retrieved_tokens, tokens * self.s.augmented_length
        return self.s.llm.prefill_s_per_token * prompt + self.s.llm.decode_s_per_token * tokens

    def query(self, n):
        """Results of the present request as dicts, nearest first."""
        if not self.up[n][self.t]:
            return []
        request = self.vectors.question[self.question[n, self.s.initial_exchanges + self.t]]
        found = self.stores[n].query(request[None], self.s.query_results)
        columns = (found.ids, found.distances, found.kinds, found.exchanges, found.uses, found.values)
        names = ("id", "distance", "kind", "exchange", "uses", "value")
        rows = [dict(zip(names, row, strict=True)) for row in zip(*(c[0].tolist() for c in columns), strict=True)]
        return [row for row in rows if row["id"] >= 0]

    def decide(self, n, choice, results):
        """Action and entry."""
        best = max(results, key=self.score, default=None)
        questions = [entry for entry in results if entry["kind"] == 0]
        if self.s.action_space == "binary":
            if choice == 1 or best is None:
                return B, best
            return (A if best["kind"] == 0 and best["distance"] <= self.s.reuse_distance else C), best
        if choice == 0 and questions:
            return A, max(questions, key=self.score)
        return (C if choice == 2 and best is not None else B), best

    def score(self, entry):
        uses = torch.tensor(entry["uses"] / (1 + entry["uses"]), dtype=torch.float32) * self.s.phi_uses
        return float(uses - self.s.phi_distance * torch.tensor(entry["distance"], dtype=torch.float32))

    def step(self, choices):
        """`[N]` choices to (reward of each server, satisfaction, delay, action, whether it is a wrong hit)."""
        s, now, j = self.s, self.t, self.s.initial_exchanges + self.t
        decided = [self.decide(n, choice, self.query(n)) for n, choice in enumerate(choices)]
        order = sorted(range(s.num_servers), key=lambda n: self.arrival[n][now])
        rows, free = [None] * s.num_servers, self.free
        for n in order:
            action, entry = decided[n]
            arrival = self.arrival[n][now]
            cached = None
            if entry is not None:
                reference = self.vectors.reference[self.question[n, j]]
                cached = float((self.answers[n, entry["exchange"]] - reference).double().norm())
            plain, network = self.plain[n][j], s.llm.network_s * (s.link_degradation if self.slow[n][now] else 1)
            if action == A:
                distance, delay = cached, s.edge_s
            else:
                wait = max(free - arrival, 0.0)
                service = self.service(n, j, action == C)
                free = max(free, arrival) + service / s.llm.slots
                distance, delay = plain, wait + network + service
                if action == C:
                    relevance = min(max((s.relevance_far - cached) / (s.relevance_far - s.relevance_near), 0), 1)
                    factor = 1 - s.augmentation_gain * relevance + s.augmentation_harm * (1 - relevance)
                    distance, delay = min(max(plain * factor, 0.05), 1.8), delay + s.edge_s
            weighted = s.phi_satisfaction * (distance + s.weight_ratio * delay) + s.phi_direct * (action == B)
            wrong = action == A and not self.same_group(n, entry["exchange"], j)
            rows[n] = (-s.reward_scale * weighted, -distance, delay, action, wrong)
            if now < s.build_requests:
                self.keep(n, j, action, entry, -distance, delay)
        self.free = max(free - s.interval_s, 0.0)
        self.t += 1
        if now < s.build_requests:
            self.evict()
        if self.t >= s.build_requests and (self.t - s.build_requests) % s.test_requests == 0:
            self.free = 0.0
        return rows

    def same_group(self, n, one, other):
        group = self.corpus.group[self.question[n]]
        return bool(group[one] == group[other])

    def keep(self, n, j, action, entry, satisfaction, delay):
        if action == B:
            if self.up[n][self.t]:
                self.insert(n, j, satisfaction - delay)
        else:
            value = (entry["value"] + satisfaction - delay) / 2
            self.stores[n].use(torch.tensor([entry["id"]]), torch.tensor([value], dtype=torch.float32))

    def evict(self):
        for n, store in enumerate(self.stores):
            if (self.t + self.eviction[n]) % self.s.eviction_period == 0:
                store.evict_below_mean()


def first_answer(rows, s):
    """The team's reward where all servers got the same request."""
    _, satisfaction, delay, _, _ = min(rows, key=lambda row: row[2])
    direct = sum(row[3] == B for row in rows) / len(rows)
    weighted = s.phi_satisfaction * (satisfaction - s.weight_ratio * delay) - s.phi_direct * direct
    return s.reward_scale * weighted
