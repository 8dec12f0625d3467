"""Every file that somebody else wrote, damaged in a thousand ways: a value, or one line of ours, never a traceback."""

import random
from pathlib import Path

import pytest

from fuzz.mutations import change_bytes, change_json
from support.readers import READERS, Reader, outcome

N_WAYS = 1000


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_damage_is_one_line(reader: Reader, tmp_path: Path) -> None:
    path, rng = tmp_path / reader.file, random.Random(17)
    path.write_bytes(reader.content)
    assert not outcome(reader, path)
    for _ in range(N_WAYS):
        change = rng.choice((change_bytes, change_json))
        path.write_bytes(change(reader.content, rng))
        assert len(outcome(reader, path).splitlines()) < 2, path.read_bytes()
