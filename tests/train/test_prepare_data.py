"""Texts become tokens: the same ones each time, all of them, in files that say how to read them."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdi.config.training_options import PrepareDataOptions
from mdi.convert.random import write_byte_tokenizer
from mdi.errors import CheckpointError, ConfigError, StorageError
from mdi.text.tokenizer import tokenizer_for
from mdi.text.vocabulary import load_vocabulary
from mdi.train import corpus, dataset
from mdi.train.dataset import DATASET_FILE, TRAIN_FILE, VAL_FILE, read_info, write_tokens
from mdi.train.prepare_data import prepare_data
from support.paths import ROOT

SHAKESPEARE = ROOT / "data" / "shakespeare"
TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"


def prepared(folder: Path, data: Path, **options: Any) -> Path:
    return prepare_data(PrepareDataOptions(data=data, out=folder, **options))[0]


def tokens(folder: Path) -> list[int]:
    dtype = read_info(folder).dtype
    return [int(i) for name in (TRAIN_FILE, VAL_FILE) for i in np.fromfile(folder / name, dtype)]


def decoded(folder: Path) -> str:
    return tokenizer_for(folder, load_vocabulary(folder)).decode(tokens(folder))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_characters_are_numbered_in_their_order_and_a_tenth_is_for_validation(tmp_path: Path, text: Path) -> None:
    folder = prepared(tmp_path / "out", text)
    characters = sorted(set(TEXT))
    assert tokens(folder) == [characters.index(char) for char in TEXT]
    info = read_info(folder)
    assert (info.dtype, info.vocab_size) == ("uint16", len(characters))
    assert (info.train_tokens, info.val_tokens) == (len(TEXT) * 9 // 10, len(TEXT) - len(TEXT) * 9 // 10)


@pytest.mark.slow
def test_byte_pairs_of_the_shipped_text_give_it_back_and_are_the_same_each_time(tmp_path: Path) -> None:
    folders = [prepared(tmp_path / name, SHAKESPEARE, tokenizer="bpe", vocab_size=500) for name in ("a", "b")]
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert files[0] == files[1]
    whole = (SHAKESPEARE / "shakespeare.txt").read_text()
    assert decoded(folders[0]) == whole
    assert read_info(folders[0]).vocab_size == 500
    assert len(tokens(folders[0])) < len(whole) / 1.8


def test_files_of_a_folder_follow_one_another_each_with_the_end_of_a_text(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    for name in ("more", ".hidden"):
        (texts / name).mkdir(parents=True)
    for name, content in {
        "b.txt": "second\n",
        "a.MD": "first\n",
        "more/c.txt": "third\n",
        ".hidden.txt": "not\n",
        ".hidden/d.txt": "not\n",
    }.items():
        (texts / name).write_text(content)
    (texts / "picture.png").write_bytes(b"\x89PNG")
    folder = prepared(tmp_path / "out", texts, tokenizer="bpe", vocab_size=257)
    assert decoded(folder) == "first\nsecond\nthird\n"
    eos_id = tokenizer_for(folder, load_vocabulary(folder)).eos_id
    assert [i for i, token in enumerate(tokens(folder)) if token == eos_id] == [6, 14, 21]


def test_the_pieces_of_a_text_are_the_text_however_small_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffé\r\nzwei\rdrei\n  indented\n\n\nœuvre\nend".encode())
    whole = "é\nzwei\ndrei\n  indented\n\n\nœuvre\nend"
    for n_bytes in range(1, 12):
        monkeypatch.setattr(corpus, "BLOCK_BYTES", n_bytes)
        n_read: list[int] = []
        pieces = list(corpus.pieces_of(path, n_read.append))
        assert "".join(pieces) == whole
        assert sum(n_read) == path.stat().st_size
        assert all(piece.endswith("\n") for piece in pieces[:-1])
        assert not any(piece[0].isspace() for piece in pieces)
    assert len(pieces) > 1


def test_tokens_do_not_depend_on_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one two\nthree \nfour\n\n five\n\n\nsix.\nseven!\n\teight\n" * 4)
    whole = prepared(tmp_path / "whole", path, tokenizer="bpe", vocab_size=300)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 5)
    cut = prepared(tmp_path / "cut", path, tokenizer="bpe", vocab_size=300)
    assert tokens(cut) == tokens(whole)
    assert (cut / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()


def test_one_long_line_is_cut_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("word " * 100)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 10)
    monkeypatch.setattr(corpus, "MAX_PIECE_CHARS", 50)
    assert [len(piece) for piece in corpus.pieces_of(path, lambda n: None)] == [50] * 10


def test_a_vocabulary_that_needs_it_has_four_bytes_for_a_token(tmp_path: Path) -> None:
    pieces = [[70000, 5], [65536] * 18]
    assert write_tokens(tmp_path, [[65535] * 20], 65536).dtype == "uint16"
    info = write_tokens(tmp_path, pieces, 70001)
    assert (info.dtype, read_info(tmp_path)) == ("uint32", info)
    assert tokens(tmp_path) == [70000, 5, *[65536] * 18]


def test_the_tokenizer_of_a_model_is_taken_with_its_rules(tmp_path: Path, text: Path) -> None:
    (tmp_path / "model").mkdir()
    write_byte_tokenizer(tmp_path / "model", 300)
    folder = prepared(tmp_path / "out", text, tokenizer=str(tmp_path / "model"))
    assert tokens(folder) == list(TEXT.encode())
    assert read_info(folder).vocab_size == 300
    assert (folder / "tokenizer_config.json").read_bytes() == (
        tmp_path / "model" / "tokenizer_config.json"
    ).read_bytes()


def test_a_character_without_a_token_is_named(tmp_path: Path, text: Path) -> None:
    folder = prepared(tmp_path / "out", text)
    other = tmp_path / "other.txt"
    other.write_text(TEXT + "é\n")
    with pytest.raises(ConfigError, match=rf"{other}: the tokenizer .* 'é' \(U\+00E9\)"):
        prepared(tmp_path / "more", other, tokenizer=str(folder))
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "text.txt: is empty"),
        (b"one\ntwo\n\xff\xfe\n", r"text.txt: is not UTF-8 text \(line 3\)"),
        ("ends within é".encode()[:-1], r"text.txt: is not UTF-8 text \(line 1\)"),
        (b"ab", "only 2 tokens"),
    ],
)
def test_a_text_of_no_use_is_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        prepared(tmp_path / "out", path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "say which texts"),
        ({"data": Path("x"), "tokenizer": "charakter"}, "--tokenizer charakter: neither character"),
        ({"data": Path("x"), "vocab_size": 500}, "--vocab-size is for --tokenizer bpe"),
        ({"data": Path("x"), "tokenizer": "bpe", "vocab_size": 256}, "--vocab-size 256: must be a number from 257"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        PrepareDataOptions(**options)


def test_what_is_no_text_is_refused(tmp_path: Path, text: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no \.txt or \.md file there"):
        prepared(tmp_path / "out", tmp_path / "empty")
    with pytest.raises(ConfigError, match="no such file or folder"):
        prepared(tmp_path / "out", tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"empty: has no tokenizer\.json"):
        prepared(tmp_path / "out", text, tokenizer=str(tmp_path / "empty"))


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path, text: Path) -> None:
    with pytest.raises(ConfigError, match="holds other files"):
        prepared(tmp_path, text)
    assert text.read_text() == TEXT
    folder = prepared(tmp_path / "out", text)
    assert prepared(folder, text, tokenizer="bpe", vocab_size=257) == folder
    assert read_info(folder).vocab_size == 257


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dataset.shutil, "copyfileobj", full)
    with pytest.raises(StorageError, match="out: no space left on the disk"):
        prepared(tmp_path / "out", text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"dtype": "int8"}, "uint16 or uint32"), ({"train_tokens": -1}, "a count"), ({"format_version": 2}, "1")],
)
def test_a_damaged_description_is_one_line(tmp_path: Path, text: Path, change: dict[str, Any], problem: str) -> None:
    path = prepared(tmp_path / "out", text) / DATASET_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=problem):
        read_info(path.parent)
