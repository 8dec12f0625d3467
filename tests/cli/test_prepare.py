"""Preparing a model that is prepared already."""

from pathlib import Path

import pytest

from mdi.checkpoint.chunks import chunks_folder
from mdi.cli.prepare import prepare
from mdi.config.options import PrepareOptions
from mdi.errors import CheckpointError
from support.models import make_model


def test_a_folder_of_chunks_without_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "org" / "model")
    first = prepare(PrepareOptions(model=str(folder), n_nodes=2))
    before = {path: path.stat().st_ino for path in chunks_folder(folder, 2).iterdir()}
    (folder / "lit_model.pth").unlink()
    assert prepare(PrepareOptions(model=str(folder), n_nodes=2)) == first
    assert {path: path.stat().st_ino for path in chunks_folder(folder, 2).iterdir()} == before
    with pytest.raises(CheckpointError, match=r"no lit_model\.pth here, so nothing to split"):
        prepare(PrepareOptions(model=str(folder), n_nodes=3))
