"""The configuration files beside a vocabulary."""

import logging
from pathlib import Path
from typing import Any

import pytest

from mdi.errors import CheckpointError
from mdi.text.tokenizer_config import read_tokenizer_config, special_ids, token_text
from support.vocabularies import local_tokenizer, model_folder, write_json

# ---- tokenizer_config.json


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff"])
def test_a_damaged_tokenizer_config_is_refused(data: bytes, tmp_path: Path) -> None:
    (model_folder(tmp_path, "byte-level") / "tokenizer_config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        local_tokenizer(tmp_path)


def test_tokens_that_only_the_older_file_names(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "byte-level", eos_token="<|im_end|>")
    write_json(folder / "special_tokens_map.json", {"eos_token": "<|x|>", "bos_token": {"content": "<|im_start|>"}})
    config = read_tokenizer_config(folder)
    assert [token_text(config[f"{kind}_token"]) for kind in ("bos", "eos")] == ["<|im_start|>", "<|im_end|>"]


def test_a_damaged_map_of_special_tokens_is_refused(tmp_path: Path) -> None:
    (model_folder(tmp_path, "byte-level") / "special_tokens_map.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"special_tokens_map\.json"):
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
    assert special_ids(tmp_path, "eos_token_id") == ids


@pytest.mark.parametrize("content", [b"{{", b"[1]", b"\xff", b"", b'{"eos_token_id": [' + b"7," * 2000 + b"7]}"])
def test_a_hopeless_generation_config_is_ignored_with_a_warning(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert special_ids(tmp_path, "eos_token_id") == ()
    assert "generation_config.json" in caplog.text


def test_ids_that_are_none_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [2, "3"]})
    assert special_ids(tmp_path, "eos_token_id") == (2,)
    assert "eos_token_id is [2, '3']; what is no token id is ignored" in caplog.text


# ---- config.json


@pytest.mark.parametrize("generation", [None, "{}", "{{", '{"eos_token_id": null}'])
@pytest.mark.parametrize(
    ("config", "ids"),
    [
        ({"eos_token_id": 2}, (2,)),
        ({"eos_token_id": [2, 7]}, (2, 7)),
        ({"eos_token_id": 2, "text_config": {"eos_token_id": 3}}, (3,)),
        ({"eos_token_id": 2, "text_config": {"eos_token_id": None}}, (2,)),
        ({"text_config": None}, ()),
    ],
)
def test_config_json_counts_where_generation_config_says_nothing(
    generation: str | None, config: dict[str, Any], ids: tuple[int, ...], tmp_path: Path
) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(generation)
    write_json(tmp_path / "config.json", config)
    assert special_ids(tmp_path, "eos_token_id") == ids


def test_generation_config_comes_first(tmp_path: Path) -> None:
    """As in transformers: a fine-tune for dialogues often names its end of turn only there."""
    write_json(tmp_path / "config.json", {"eos_token_id": 2})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": 5})
    assert special_ids(tmp_path, "eos_token_id") == (5,)


@pytest.mark.parametrize("content", ["{{", "[1]", '{"text_config": 3}', '{"eos_token_id": "2"}'])
def test_a_damaged_config_json_is_told(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text(content)
    assert special_ids(tmp_path, "eos_token_id") == ()
    assert "config.json" in caplog.text
