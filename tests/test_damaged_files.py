"""Every file that somebody else wrote, damaged in a thousand ways: a value, or one line of ours, never a traceback."""

import random
from pathlib import Path

import pytest

from fuzz.mutations import change_document
from support.readers import READERS, Reader, outcome

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_damage_is_one_line(reader: Reader, tmp_path: Path) -> None:
    path, rng = tmp_path / reader.file, random.Random(17)
    path.write_bytes(reader.content)
    assert not outcome(reader, path)
    for _ in range(reader.n_ways):
        data = change_document(reader.content, rng)
        path.write_bytes(data)
        text = outcome(reader, path)
        assert text.isprintable(), data
