"""One cluster for all tests that submit jobs."""

from collections.abc import Iterator

import pytest

from tests.cluster.head import Head, started


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """A head without cores, a worker with four, and a token."""
    with started(cpus=4) as cluster:
        yield cluster
