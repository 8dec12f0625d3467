"""Rings whose nodes keep packed weights: at a second start, and where they are damaged under a node."""

import logging
import os
from pathlib import Path

import pytest

from mdi.checkpoint.packed_cache import PackedCache
from mdi.engine.sample import Outcome, Sample
from mdi.model.backends.native.library import UnavailableError, load_library
from mdi.model.packed import IN_MEMORY
from support.rings import ring_of

PROMPTS = [[1, 2, 3], [7, 8]]


@pytest.fixture(autouse=True)
def kernels() -> None:
    try:
        load_library()
    except UnavailableError as exc:
        pytest.skip(str(exc))


def test_a_second_start_maps_what_the_first_one_packed(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = PackedCache(tmp_path)
    with ring_of(2, tmp_path, packed_files=files) as ring:
        expected = ring.generate(tiny, PROMPTS)
    parts = sorted(tmp_path.glob("*.packed"))
    assert len(parts) == 3  # the blocks of both, and the head
    with caplog.at_level(logging.INFO), ring_of(2, tmp_path, packed_files=files) as ring:
        assert ring.generate(tiny, PROMPTS) == expected
    assert all(f"packed weights from {path}" in caplog.text for path in parts)
    assert sorted(tmp_path.glob("*.packed")) == parts


def test_a_ring_goes_on_where_packed_weights_are_cut_short_under_it(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = PackedCache(tmp_path)

    def cut(sample: Sample, outcome: Outcome) -> None:
        if "cut short" not in caplog.text:
            os.truncate(blocks, 100)

    with ring_of(2, tmp_path, packed_files=files) as ring:
        ring._packed_files = IN_MEMORY  # of the starter
        expected = ring.generate(tiny, PROMPTS)
        (blocks,) = tmp_path.glob("*.packed")
    with ring_of(2, tmp_path, packed_files=files) as ring:
        ring._packed_files = IN_MEMORY
        assert ring.generate(tiny, PROMPTS, sink=cut) == expected
    assert f"{blocks}: it was cut short" in caplog.text
    assert f"{blocks}: damaged" in caplog.text
