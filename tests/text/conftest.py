"""A text worker for all tests of a module: each of them fails for a folder without harm to the next."""

from collections.abc import Iterator

import pytest

from mdi.text.worker_process import TextWorker


@pytest.fixture(scope="module")
def worker() -> Iterator[TextWorker]:
    with TextWorker() as running:
        yield running
