"""Vocabulary files of every kind: special tokens, decoders, damage."""

from pathlib import Path

import pytest

from mdi.errors import CheckpointError
from support.vocabularies import (
    ALL_KINDS,
    N_LLAMA3_RANKS,
    SPACE,
    llama3_model,
    local_tokenizer,
    shared_tokenizer,
    vocabulary,
)

# ---- tokenizers


@ALL_KINDS
def test_every_token_of_the_vocabulary_and_beyond_has_bytes(kind: str) -> None:
    tokenizer = shared_tokenizer(kind)
    assert b"".join(tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size))
    assert tokenizer.decode([-1, tokenizer.vocab_size, tokenizer.vocab_size + 1000]) == ""
    reached = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert {bytes([byte]) for byte in range(0x80, 0x100)} <= reached


def test_truncation_stored_in_the_file_is_not_applied() -> None:
    assert len(shared_tokenizer("byte-level").encode("x y z " * 20)) > 8


def test_llama3_specials_stand_behind_the_vocabulary() -> None:
    tokenizer = shared_tokenizer("llama3")
    assert tokenizer.vocab_size == N_LLAMA3_RANKS + 256
    assert tokenizer.bos_id == N_LLAMA3_RANKS
    assert tokenizer.eos_id == N_LLAMA3_RANKS + 1
    assert tokenizer.token_id("<|start_header_id|>") == N_LLAMA3_RANKS + 6
    assert tokenizer.token_id("<|eot_id|>") == N_LLAMA3_RANKS + 9
    assert tokenizer.token_id("<|reserved_special_token_0|>") == N_LLAMA3_RANKS + 2
    assert tokenizer.token_id("<|reserved_special_token_247|>") == N_LLAMA3_RANKS + 255
    assert tokenizer.token_id("hello") == 259
    assert tokenizer.token_id("nothing") is None
    ids = tokenizer.encode("<|start_header_id|>hello<|end_header_id|>")
    assert ids == [N_LLAMA3_RANKS, N_LLAMA3_RANKS + 6, 259, N_LLAMA3_RANKS + 7]


def test_control_tokens_in_a_text_are_special_in_a_sentencepiece_model() -> None:
    tokenizer = shared_tokenizer("sentencepiece")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    ids = tokenizer.encode("<s>hello</s>")
    assert ids.count(1) == 1 and ids[-1] == 2
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.token_id("no such piece") is None


def test_words_of_a_vocabulary_without_decoder_are_joined_by_spaces(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Processor
    from tokenizers import models, pre_tokenizers

    processor = Processor(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))
    processor.pre_tokenizer = pre_tokenizers.Whitespace()
    processor.save(str(tmp_path / "tokenizer.json"))
    tokenizer = local_tokenizer(tmp_path)
    assert tokenizer.encode("one  two") == [1, 2]
    assert tokenizer.decode([1, 2, 2]) == processor.decode([1, 2, 2]) == "one two two"


def test_metaspace_decoders_are_understood(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Processor
    from tokenizers import decoders, models

    processor = Processor(models.BPE({f"{SPACE}a": 0, f"b{SPACE}": 1}, []))
    for scheme, alone in (("always", "ab "), ("never", " ab ")):
        processor.decoder = decoders.Metaspace(prepend_scheme=scheme)
        processor.save(str(tmp_path / "tokenizer.json"))
        assert local_tokenizer(tmp_path).decode([0, 1]) == processor.decode([0, 1]) == alone


# ---- damaged files


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b'{"model": {}}'),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.model", b""),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n"),
        ("tokenizer.model", llama3_model()[:-3]),
        ("tokenizer.model", llama3_model().replace(b" 7\n", b" 8\n")),
        ("tokenizer.model", llama3_model().replace(b"AQ== 1\n", b"AQ= 1\n")),
        ("tokenizer.model", llama3_model([b"he", b"he"])),
        ("tokenizer.model", llama3_model()[:200]),
    ],
)
def test_a_damaged_vocabulary_is_one_line_that_names_it(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name) as caught:
        local_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_truncated_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(vocabulary("sentencepiece")[1][:500])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        local_tokenizer(tmp_path)


def test_a_folder_without_vocabulary_is_refused(tmp_path: Path) -> None:
    problem = r"has no tokenizer\.json, tokenizer\.model, or vocab\.json with merges\.txt: copy them there"
    with pytest.raises(CheckpointError, match=problem):
        local_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["byte-level", "llama3"])
def test_a_byte_order_mark_is_no_part_of_a_vocabulary(kind: str, tmp_path: Path) -> None:
    name, data = vocabulary(kind)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
    assert local_tokenizer(tmp_path).encode("hello") == shared_tokenizer(kind).encode("hello")


def test_a_decoder_that_needs_more_than_bytes_is_refused_by_name(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Processor
    from tokenizers import decoders, models

    processor = Processor(models.BPE({"a": 0}, []))
    for decoder, reason in (
        (decoders.WordPiece(), "WordPiece"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Strip(" ", 2, 0)]), "strips"),
    ):
        processor.decoder = decoder
        processor.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(CheckpointError, match=reason):
            local_tokenizer(tmp_path)
