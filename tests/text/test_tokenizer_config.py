"""tokenizer_config.json and generation_config.json."""

import logging
from pathlib import Path

import pytest

from mdi.errors import CheckpointError
from mdi.text.tokenizer_config import generation_ids
from support.vocabularies import local_tokenizer, model_folder

# ---- tokenizer_config.json


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff"])
def test_a_damaged_tokenizer_config_is_refused(data: bytes, tmp_path: Path) -> None:
    (model_folder(tmp_path, "byte-level") / "tokenizer_config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        local_tokenizer(tmp_path)


# ---- generation_config.json


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ('{"eos_token_id": 2}', (2,)),
        ('{"eos_token_id": [2, 3]}', (2, 3)),
        ('{"eos_token_id": null}', ()),
        ('{"eos_token_id": [true, -1, "2", 3]}', (3,)),
        ("{}", ()),
        ('{\n"bos_token_id": 1,\n"eos_token_id": [2, 3,],\n}', (2, 3)),
        ('{\n  "bos_token_id": 1,\n  "eos_token_id": [2, 3]\n  "top_p": 0.9\n}', (2, 3)),
        ('{\n  "temperature": 0.6\n  "do_sample": true\n  "eos_token_id": 5}', (5,)),
    ],
)
def test_end_of_text_ids_are_read_even_from_careless_json(content: str, ids: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(content, encoding="utf-8")
    assert generation_ids(tmp_path, "eos_token_id") == ids


@pytest.mark.parametrize("content", [b"{{", b"[1]", b"\xff", b"", b'{"eos_token_id": [' + b"7," * 2000 + b"7]}"])
def test_a_hopeless_generation_config_is_ignored_with_a_warning(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert generation_ids(tmp_path, "eos_token_id") == ()
    assert "generation_config.json" in caplog.text
