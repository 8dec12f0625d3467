"""Links that end with their test."""

from collections.abc import Iterator

import pytest

from support.links import Bench, ring_threads


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    try:
        yield bench
    finally:
        bench.close()
    assert ring_threads() == []
