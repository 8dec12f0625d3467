"""Prompts, from the command line or a file, and their ids."""

from pathlib import Path

import pytest

from mdi.errors import ConfigError
from mdi.text.prompts import encode_prompt, load_prompts, split_paragraphs
from mdi.text.styles import PLAIN, Style
from support.paths import SRC
from support.vocabularies import N_LLAMA3_RANKS, local_tokenizer, model_folder, shared_tokenizer

# ---- prompts


def test_a_plain_prompt_is_that_of_all_samples() -> None:
    assert load_prompts("Who are\n\nyou?", 3) == ["Who are\n\nyou?"] * 3


@pytest.mark.parametrize("suffix", [".txt", ".md", ".tex", ".TXT"])
def test_a_file_gives_a_paragraph_to_each_sample(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / f"prompts{suffix}"
    path.write_bytes("\ufeff\r\n\r\nfirst\r\n  line\r\n \t\r\n\r\nsecond ✓  \r\n".encode())
    assert load_prompts(f"FILE:{path}", 1) == ["first\n  line"]
    assert caplog.messages == [f"{path}: 2 paragraphs for 1 sample: the rest is not used"]
    assert load_prompts(f"FILE:{path}", 2) == ["first\n  line", "second ✓"]
    assert load_prompts(f"FILE:{path}", 5) == ["first\n  line", "second ✓"] * 2 + ["first\n  line"]
    assert len(caplog.messages) == 1


def test_indented_first_lines_keep_their_indent() -> None:
    assert split_paragraphs("    x = 1\n\n\n\tb\n") == ["    x = 1", "\tb"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("prompts.pdf", b"text", "must end in"),
        ("prompts.txt", b" \n\n\t\n", "holds no text"),
        ("prompts.txt", b"", "holds no text"),
        ("prompts.txt", b"caf\xe9", "not UTF-8"),
        ("prompts.txt", None, "no such file"),
        ("a\0b.txt", None, "not a usable path"),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_an_error(
    name: str, data: bytes | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=reason):
        load_prompts(f"FILE:{path}", 2)


def test_the_shipped_prompt_file_has_four_prompts() -> None:
    prompts = load_prompts(f"FILE:{SRC / 'prompts' / 'test1_4samples.txt'}", 4)
    assert len(set(prompts)) == 4


# ---- prompts -> ids


def test_a_prompt_becomes_styled_ids() -> None:
    tokenizer = shared_tokenizer("byte-level")
    style = Style("test", lambda prompt: f"<|im_start|>{prompt}<|im_end|>")
    ids = encode_prompt(tokenizer, style, "hello")
    assert (ids[0], ids[-1]) == (1, 2)
    assert encode_prompt(tokenizer, style, "") == [1, 2]  # a style dresses an empty prompt too


def test_an_empty_prompt_becomes_bos(tmp_path: Path) -> None:
    assert encode_prompt(shared_tokenizer("llama3"), PLAIN, "") == [N_LLAMA3_RANKS]
    without_bos = local_tokenizer(model_folder(tmp_path, "byte-level", bos_token="<|im_start|>", add_bos_token=False))
    assert encode_prompt(without_bos, PLAIN, "") == [1]


def test_an_empty_prompt_is_an_error_where_the_model_has_no_bos() -> None:
    with pytest.raises(ConfigError, match="empty"):
        encode_prompt(shared_tokenizer("byte-level"), PLAIN, "")


def test_a_prompt_that_is_not_text_is_an_error() -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        encode_prompt(shared_tokenizer("byte-level"), PLAIN, "ab\udcff")
