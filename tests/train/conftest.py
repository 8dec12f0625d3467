"""Tokens to train on."""

from pathlib import Path

import pytest

from mdi.config.training_options import PrepareDataOptions
from mdi.train.prepare_data import prepare_data
from support.training import SHAKESPEARE


@pytest.fixture(scope="package")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The characters of the shipped text."""
    return prepare_data(PrepareDataOptions(data=SHAKESPEARE, out=tmp_path_factory.mktemp("data") / "characters"))[0]
