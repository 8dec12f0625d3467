"""What is found out about a model's text files before it is prepared."""

import logging
from pathlib import Path

import pytest

from mdi.errors import CheckpointError
from mdi.text.check import check_text
from mdi.text.worker_process import TextWorker
from support.vocabularies import model_folder


def test_a_vocabulary_that_cannot_be_used_is_an_error(worker: TextWorker, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        check_text(tmp_path, worker)


def test_a_template_that_cannot_be_used_is_a_warning(
    worker: TextWorker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_text(model_folder(tmp_path, "byte-level", chat_template="{% for %}"), worker)
    assert "bad chat template" in caplog.text and "--prompt-style none" in caplog.text


@pytest.mark.parametrize("kind", ["byte-level", "llama3"])
def test_of_a_good_folder_nothing_is_said(
    kind: str, worker: TextWorker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        check_text(model_folder(tmp_path, kind, chat_template="{{ messages }}"), worker)
    assert caplog.text == ""


def test_a_folder_may_have_no_text_files_and_that_is_said(
    worker: TextWorker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_text(tmp_path, worker)
    assert "has no tokenizer.json, tokenizer.model, or vocab.json with merges.txt" in caplog.text
