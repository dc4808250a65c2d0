"""The simulated stores against brute force, and that their arithmetic is exact."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.velo.corpus import CorpusConfig
from envs.velo.pool import Pool, on_vector_grid, relative_distances
from envs.velo.stores import ExactStore
from envs.velo.synthetic_corpus import synthetic_corpus
from envs.velo.vectors import DIRECTIONS, Vectors

STORES, EXCHANGES, WIDTH, RESULTS = 2, 6, 5, 4
KINDS = torch.tensor([0, 1])


def test_products_of_grid_vectors_do_not_depend_on_the_order_of_their_terms():
    vectors = on_vector_grid(torch.nn.functional.normalize(torch.randn(64, 384, generator=torch.Generator().manual_seed(0))))
    order = torch.randperm(384, generator=torch.Generator().manual_seed(1))
    distances = relative_distances(vectors[None, :8], vectors[None])
    assert torch.equal(distances, relative_distances(vectors[None, :8, order], vectors[None, :, order]))
    squared = distances[0].double() + vectors[:8].double().square().sum(1)[:, None]
    assert torch.equal(squared, (vectors[:8, None].double() - vectors[None].double()).square().sum(-1))


VALUES = st.integers(-8, 0).map(lambda eighths: eighths / 8)
OPERATION = st.one_of(
    st.tuples(st.just("insert"), st.lists(st.booleans(), min_size=STORES, max_size=STORES), VALUES),
    st.tuples(st.just("use"), st.integers(0, RESULTS - 1), VALUES),
    st.tuples(st.just("evict"), st.lists(st.booleans(), min_size=STORES, max_size=STORES), st.none()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(OPERATION, max_size=14), st.integers(0, 2**31), st.booleans())
def test_the_pool_is_brute_force(operations, seed, few_vectors):
    """Any sequence of inserts, queries, uses and evictions; with few different vectors there are ties."""
    generator = torch.Generator().manual_seed(seed)
    choices = on_vector_grid(torch.nn.functional.normalize(torch.randn(3 if few_vectors else 90, WIDTH, generator=generator)))
    vectors = choices[torch.randint(len(choices), (STORES, 2, EXCHANGES), generator=generator)]
    requests = choices[torch.randint(len(choices), (STORES, len(operations) + 1), generator=generator)]
    relative = relative_distances(requests, vectors.flatten(1, 2)).view(STORES, -1, 2, EXCHANGES)
    pool, stores = Pool(STORES, EXCHANGES), [ExactStore(WIDTH) for _ in range(STORES)]
    ids = [{(-1, -1): -1} for _ in range(STORES)]  # of (exchange, kind)
    exchange = 0
    for turn, (name, *details) in enumerate([("look",), *operations]):
        length = requests[:, turn].square().sum(1)
        found = pool.nearest(relative[:, turn, :, : max(1, exchange)], length, RESULTS)
        for n, store in enumerate(stores):
            expected = store.query(requests[n, turn, None], RESULTS)
            entries = zip(found.exchange[n].tolist(), found.kind[n].tolist(), strict=True)
            assert [ids[n][entry] for entry in entries] == expected.ids[0].tolist()
            assert found.uses[n].tolist() == expected.uses[0].tolist()
            torch.testing.assert_close(found.distance[n], expected.distances[0])
            assert int(pool.present[n].sum()) == len(store)
        if name == "insert" and exchange < EXCHANGES:
            takes, value = details
            where = torch.tensor(takes)[:, None]
            pool.insert(slice(exchange, exchange + 1), torch.full((STORES, 1), value, dtype=torch.float64), where)
            for n in torch.tensor(takes).nonzero()[:, 0].tolist():
                new = stores[n].insert(vectors[n, :, exchange], KINDS, torch.full((2,), exchange), torch.full((2,), value))
                ids[n] |= {(exchange, 0): int(new[0]), (exchange, 1): int(new[1])}
            exchange += 1
        elif name == "use":
            (rank, value), where = details, found.kind[:, details[0]] >= 0
            used, kind = found.exchange[:, rank], found.kind[:, rank]
            pool.use(used, kind, torch.full((STORES,), value, dtype=torch.float64), where)
            for n in where.nonzero()[:, 0].tolist():
                assert pool.value_of(used, kind)[n] == value
                stores[n].use(torch.tensor([ids[n][int(used[n]), int(kind[n])]]), torch.tensor([value]))
        elif name == "evict":
            due = torch.tensor(details[0]).nonzero()[:, 0]
            assert pool.evict(due).tolist() == [stores[n].evict_below_mean() for n in due.tolist()]


def test_cached_answers_lie_at_their_distance_from_the_reference():
    """But for the rounding of the vectors."""
    corpus = synthetic_corpus(CorpusConfig(questions=100))
    vectors = Vectors(corpus, 0, torch.device("cpu"))
    question = torch.arange(100)
    distance = torch.linspace(0.1, 1.6, 100, dtype=torch.float64)
    direction = question % DIRECTIONS
    found = vectors.from_reference(question, question, direction, distance)
    torch.testing.assert_close(found, distance, atol=0.01, rtol=0)
    answers = vectors.answer(question, direction, distance)
    torch.testing.assert_close(answers.norm(dim=1), torch.ones(100), atol=0.01, rtol=0)
    assert torch.equal(answers * 2**11, (answers * 2**11).round())


def test_distances_do_not_depend_on_how_many_are_worked_on_at_once():
    corpus = synthetic_corpus(CorpusConfig(questions=100))
    vectors = Vectors(corpus, 0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    asked, question = (torch.randint(100, shape, generator=generator) for shape in ((9, 4), (9, 7)))
    distance = torch.rand(9, 7, generator=generator).double() + 0.1
    whole = vectors.distances(asked, question, question, distance)
    vectors._chunk = 1
    assert torch.equal(vectors.distances(asked, question, question, distance), whole)
    to_itself = vectors.distances(question[:, :1], question, question, distance)[0, :, 0, 0]
    assert (to_itself + vectors.length[question[:, 0]] == 0).all()
