"""Tokenizers: text to ids and back, and the ids that a text begins and ends with."""

from pathlib import Path

import pytest
from hypothesis import given, settings

from support.vocabularies import (
    ALL_KINDS,
    byte_level_json,
    local_tokenizer,
    model_folder,
    shared_tokenizer,
    texts,
    vocabulary,
    write_json,
)

# ---- tokenizers


@ALL_KINDS
@given(text=texts)
@settings(deadline=None)
def test_decoding_what_was_encoded_gives_the_text_back(kind: str, text: str) -> None:
    tokenizer = shared_tokenizer(kind)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["byte-level", "llama2-json"])
@given(text=texts)
@settings(deadline=None)
def test_ids_and_text_agree_with_the_library(kind: str, text: str) -> None:
    from tokenizers import Tokenizer as Processor

    reference = Processor.from_str(vocabulary(kind)[1].decode())
    reference.no_truncation()
    tokenizer = shared_tokenizer(kind)
    ids = tokenizer.encode(text)
    if text or kind == "byte-level":
        assert ids == reference.encode(text).ids
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_special_tokens_in_a_text_become_their_ids_and_are_not_shown(tmp_path: Path) -> None:
    tokenizer = shared_tokenizer("byte-level")
    ids = tokenizer.encode("<|im_start|>hello<|im_end|>")
    assert ids[0] == tokenizer.token_id("<|im_start|>") == 1
    assert ids[-1] == tokenizer.token_id("<|im_end|>") == 2
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.token_id("no such token") is None


@pytest.mark.parametrize("token", ["  two spaces  ", "<Räume>"])
def test_added_tokens_that_are_not_special_are_shown_as_they_are(token: str) -> None:
    tokenizer = shared_tokenizer("byte-level")
    token_id = tokenizer.token_id(token)
    assert token_id is not None
    assert tokenizer.decode([token_id]) == token


@pytest.mark.parametrize("kind", ["llama2-json", "sentencepiece"])
def test_a_continuation_keeps_its_leading_space(kind: str) -> None:
    tokenizer = shared_tokenizer(kind)
    ids = tokenizer.encode("hello")
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, continues=True) == " hello"


def test_bytes_that_form_no_character_do_not_spoil_their_neighbours() -> None:
    tokenizer = shared_tokenizer("llama2-json")
    byte = {value: 3 + value for value in (0xC3, 0xA9)}
    assert tokenizer.decode([byte[0xC3], byte[0xA9], byte[0xC3]]) == "é\ufffd"


# ---- the first token of a text


def test_without_a_word_on_bos_the_post_processor_decides(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level_json(bos="<|im_start|>"), encoding="utf-8")
    tokenizer = local_tokenizer(tmp_path)
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("x")[0] == 1
    assert shared_tokenizer("byte-level").encode("x")[0] not in (0, 1, 2, 3)
    assert shared_tokenizer("llama2-json").encode("x")[0] == 1


def test_the_name_of_the_folder_decides_nothing(tmp_path: Path) -> None:
    for name in ("SmolLM2-135M-Instruct", "Meta-Llama-3-8B"):
        folder = tmp_path / name
        folder.mkdir()
        tokenizer = local_tokenizer(model_folder(folder, "byte-level", bos_token="<|im_start|>"))
        assert tokenizer.bos_id == 1
        assert tokenizer.encode("x")[0] != 1


def test_a_trailing_end_of_text_stays(tmp_path: Path) -> None:
    tokenizer = local_tokenizer(model_folder(tmp_path, "byte-level", eos_token="<|im_end|>"))
    assert tokenizer.eos_id == 2
    assert tokenizer.encode("x<|im_end|>")[-1] == 2


@ALL_KINDS
def test_add_bos_token_of_the_configuration_wins(kind: str, tmp_path: Path) -> None:
    off = local_tokenizer(model_folder(tmp_path, kind, add_bos_token=False))
    assert off.encode("hello")[0] != off.bos_id
    bos = {"content": "<|im_start|>"} if kind == "byte-level" else None
    on = local_tokenizer(model_folder(tmp_path, kind, add_bos_token=True, bos_token=bos))
    assert on.bos_id is not None
    assert on.encode("hello") == [on.bos_id, *off.encode("hello")]


@pytest.mark.parametrize("kind", ["sentencepiece", "llama3"])
def test_a_tokenizer_model_begins_with_bos(kind: str) -> None:
    tokenizer = shared_tokenizer(kind)
    assert tokenizer.encode("hello")[0] == tokenizer.bos_id


@pytest.mark.parametrize(
    ("kind", "bos"), [("llama2-json", "<s>"), ("sentencepiece", "<s>"), ("llama3", "<|begin_of_text|>")]
)
def test_bos_is_never_doubled(kind: str, bos: str) -> None:
    tokenizer = shared_tokenizer(kind)
    assert tokenizer.encode(f"{bos}hello") == tokenizer.encode("hello")


def test_bos_and_eos_come_from_the_generation_config_where_nothing_else_names_them(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "byte-level")
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [2, 0]})
    tokenizer = local_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 2)
