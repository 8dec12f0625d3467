"""A vocabulary in vocab.json and merges.txt gives the ids of the tokenizer.json that could stand in their place."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Processor

from mdi.errors import CheckpointError
from mdi.text.byte_level import QWEN2_WORDS
from mdi.text.vocabulary import Backend, load_vocabulary
from support.vocabularies import SPECIALS, byte_level_json, texts, write_json

ADDED = ["  two spaces  ", "<Räume>"]


def whole() -> Processor:
    processor = Processor.from_str(byte_level_json())
    processor.no_truncation()
    return processor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As GPT-2 and its kind were published: the added tokens in a file of their own."""
    processor = whole()
    processor.model.save(str(tmp_path))
    write_json(tmp_path / "added_tokens.json", {text: processor.token_to_id(text) for text in ADDED})
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": "<|im_end|>", "pad_token": {"content": "[PAD]"}})
    return tmp_path


def ids_of(processor: Processor, text: str) -> list[int]:
    return list(processor.encode(text, add_special_tokens=False).ids)


def with_config(folder: Path, **config: Any) -> Backend:
    write_json(folder / "tokenizer_config.json", config)
    return load_vocabulary(folder)


TEXTS = ["hello ring", "  two spaces  naïve café", "<Räume>12 345\n\n x", "it's<|im_end|>", "a\u0308 e\u0301", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_tokenizer_json(text: str, folder: Path) -> None:
    assert load_vocabulary(folder).encode(text) == ids_of(whole(), text)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backend, Processor]:
    path = tmp_path_factory.mktemp("gpt2")
    processor = whole()
    processor.model.save(str(path))
    return load_vocabulary(path), processor


@given(text=texts)
def test_any_text_comes_back(text: str, loaded: tuple[Backend, Processor]) -> None:
    backend, processor = loaded
    ids = backend.encode(text)
    assert b"".join(map(backend.token_bytes, ids)).decode() == text
    if not any(added in text for added in ADDED):
        assert ids == ids_of(processor, text)


@pytest.mark.parametrize("text", TEXTS)
def test_qwen2s_class_cuts_and_composes_as_its_tokenizer_json(text: str, folder: Path) -> None:
    processor = whole()
    processor.normalizer = normalizers.NFC()
    processor.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    assert with_config(folder, tokenizer_class="Qwen2Tokenizer").encode(text) == ids_of(processor, text)


def test_special_tokens_have_ids_and_no_bytes(folder: Path) -> None:
    backend = with_config(folder, additional_special_tokens=["<|im_start|>"])
    for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        (number,) = backend.encode(text)
        assert number == SPECIALS.index(text) and backend.token_bytes(number) == b""
    assert backend.token_id("[PAD]") is None


def test_added_tokens_may_stand_in_the_configuration(folder: Path) -> None:
    (folder / "added_tokens.json").unlink()
    first = whole().token_to_id(ADDED[0])
    declared = {str(first + i): {"content": text, "special": i == 1} for i, text in enumerate(ADDED)}
    backend = with_config(folder, tokenizer_class="GPT2TokenizerFast", added_tokens_decoder=declared)
    assert backend.encode("".join(ADDED)) == [first, first + 1]
    assert backend.token_bytes(first) == ADDED[0].encode() and backend.token_bytes(first + 1) == b""


def test_a_tokenizer_json_goes_before_the_two_files(folder: Path) -> None:
    (folder / "vocab.json").write_text("{")
    (folder / "tokenizer.json").write_text(byte_level_json(), encoding="utf-8")
    assert load_vocabulary(folder).encode("ring")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("vocab.json", "[]", r"vocab\.json: damaged: an object is expected, not \[\]"),
        ("vocab.json", '{"a": "b"}', r"vocab\.json: damaged: the ids of tokens are expected"),
        ("vocab.json", '{"a": -1}', r"vocab\.json: damaged: the ids of tokens are expected"),
        ("merges.txt", "#version: 0.2\na b c\n", r"merges\.txt: damaged: merge 1 has 3 parts"),
        ("merges.txt", "no such\n", r"merges\.txt: does not fit vocab\.json"),
        ("added_tokens.json", '{"x": 7}', "the added token 'x' has the id 7, not"),
        ("added_tokens.json", '{"x": "y"}', r"added_tokens\.json: damaged: the id of 'x'"),
        ("special_tokens_map.json", "3", r"special_tokens_map\.json: damaged: an object is expected"),
        ("tokenizer_config.json", '{"tokenizer_class": "CLIPTokenizer"}', "the class 'CLIPTokenizer'.*take a folder"),
        ("tokenizer_config.json", '{"add_prefix_space": true}', "add_prefix_space"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "damaged: the added token 'x'"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, content: str, problem: str, folder: Path) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=problem) as caught:
        load_vocabulary(folder)
    assert "\n" not in str(caught.value)


def test_windows_files_are_read(folder: Path) -> None:
    """A byte order mark, and lines that end as Windows ends them."""
    wanted = load_vocabulary(folder).encode("hello ring")
    merges = (folder / "merges.txt").read_text(encoding="utf-8")
    (folder / "merges.txt").write_bytes(b"\xef\xbb\xbf" + merges.replace("\n", "\r\n").encode())
    (folder / "vocab.json").write_bytes(b"\xef\xbb\xbf" + (folder / "vocab.json").read_bytes())
    assert load_vocabulary(folder).encode("hello ring") == wanted
