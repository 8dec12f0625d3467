"""Shared by the tests of the command line."""

from pathlib import Path

import pytest


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A path below a file, so that nothing can be written there even by root."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    return tmp_path / "file" / "below"
