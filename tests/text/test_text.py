"""Prompts, styles, tokenizers and streamed text, on small vocabularies made here."""

import base64
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.errors import CheckpointError, ConfigError
from mdi.text.chat_template import ChatTemplate
from mdi.text.prompts import encode_prompt, load_prompts, split_paragraphs
from mdi.text.stops import StopSequences, match_stop, partial_match_length
from mdi.text.stream import TextStream
from mdi.text.styles import PLAIN, Style, load_style, stop_sequences
from mdi.text.tokenizer import Tokenizer, load_tokenizer
from mdi.text.tokenizer_config import generation_ids
from support.paths import SRC

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
CORPUS = [
    "a ring of small machines shares one model",
    "hello world, hello ring: one token after another",
    "naïve café, ein schöner Tag",
] * 10
SPACE = "\u2581"


# --- vocabularies ---


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def byte_level_json(*, bos: str | None = None) -> str:
    """A GPT-2 kind of tokenizer.json; `bos` is what its post-processor puts first."""
    from tokenizers import Tokenizer as Processor
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    processor = Processor(models.BPE())
    processor.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    processor.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    processor.train_from_iterator(CORPUS, trainer)
    processor.add_tokens(["  two spaces  ", "<Räume>"])
    if bos is not None:
        processor.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, processor.token_to_id(bos))]
        )
    processor.enable_truncation(8)
    return str(processor.to_str())


def llama2_json() -> str:
    """A Llama 2 kind of tokenizer.json: SentencePiece pieces, bytes for what they lack, BOS in front."""
    from tokenizers import AddedToken, decoders, models, normalizers, processors
    from tokenizers import Tokenizer as Processor

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [SPACE, *"abcdefghijklmnopqrstuvwxyz", f"{SPACE}h", "el", "lo", f"{SPACE}hel", f"{SPACE}hello"]
    merges = [(SPACE, "h"), ("e", "l"), ("l", "o"), (f"{SPACE}h", "el"), (f"{SPACE}hel", "lo")]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    processor = Processor(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    processor.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    processor.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    processor.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    processor.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return str(processor.to_str())


def sentencepiece_model() -> bytes:
    from sentencepiece import SentencePieceTrainer

    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=out,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return out.getvalue()


def llama3_model(extra: Iterable[bytes] = (b"he", b"ll", b"hell", b"hello", b" w", b"\xc3\xa9")) -> bytes:
    tokens = [*(bytes([byte]) for byte in range(256)), *extra]
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    return "".join(lines).encode()


N_LLAMA3_RANKS = 256 + 6

VOCABULARIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "byte-level": ("tokenizer.json", lambda: byte_level_json().encode()),
    "llama2-json": ("tokenizer.json", lambda: llama2_json().encode()),
    "sentencepiece": ("tokenizer.model", sentencepiece_model),
    "llama3": ("tokenizer.model", llama3_model),
}


@cache
def vocabulary(kind: str) -> tuple[str, bytes]:
    name, make = VOCABULARIES[kind]
    return name, make()


def model_folder(folder: Path, kind: str, **config: object) -> Path:
    """Write the vocabulary and, if there is any `config`, a tokenizer_config.json into `folder`."""
    name, data = vocabulary(kind)
    (folder / name).write_bytes(data)
    if config:
        write_json(folder / "tokenizer_config.json", config)
    return folder


@cache
def shared_tokenizer(kind: str) -> Tokenizer:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(model_folder(Path(folder), kind))


ALL_KINDS = pytest.mark.parametrize("kind", VOCABULARIES)


# --- stop sequences as arithmetic ---


def test_match_is_the_longest_stop_that_ids_end_with() -> None:
    stops: StopSequences = ((2,), (1, 2), (7, 8, 9))
    assert match_stop([5, 1, 2], stops) == 2
    assert match_stop([2], stops) == 1
    assert match_stop([8, 9], stops) == 0
    assert match_stop([], stops) == 0
    assert match_stop([1, 2], ()) == 0


def test_ids_that_may_grow_into_a_stop_are_held_back() -> None:
    stops: StopSequences = ((1, 1, 2), (2, 9))
    assert partial_match_length([5, 1], stops) == 1
    assert partial_match_length([1, 1, 1], stops) == 2
    assert partial_match_length([1, 1, 2], stops) == 1  # the 2 could begin (2, 9)
    assert partial_match_length([5], stops) == 0
    assert partial_match_length([5], ((5,),)) == 0  # no proper prefix
    assert partial_match_length([], stops) == 0


def test_stops_need_no_tokenizer_and_no_tensors() -> None:
    code = "import mdi.text.stops, sys; assert not {'torch', 'tokenizers', 'mdi.text.tokenizer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=SRC, check=True)


# --- tokenizers ---


@ALL_KINDS
def test_loading_and_using_a_tokenizer_imports_neither_torch_nor_litgpt(kind: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mdi.text import prompts, styles, tokenizer as tokenizers_of\n"
        "folder = Path(sys.argv[1]); tokenizer = tokenizers_of.load_tokenizer(folder)\n"
        "style = styles.load_style(folder, 'x', tokenizer, 'none')\n"
        "assert prompts.encode_prompt(tokenizer, style, 'hello')\n"
        "assert not {'torch', 'litgpt'} & set(sys.modules)"
    )
    folder = model_folder(tmp_path, kind)
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=SRC, check=True)


# Any text without the names of special tokens, which are not shown again.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=SPACE), max_size=30).filter(
    lambda text: not re.search(r"<\||</?s>|<unk>", text)
)


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


@ALL_KINDS
def test_every_token_of_the_vocabulary_and_beyond_has_bytes(kind: str) -> None:
    tokenizer = shared_tokenizer(kind)
    assert b"".join(tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size))
    assert tokenizer.decode([-1, tokenizer.vocab_size, tokenizer.vocab_size + 1000]) == ""
    reached = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert {bytes([byte]) for byte in range(0x80, 0x100)} <= reached


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


def test_words_of_a_vocabulary_without_decoder_are_joined_by_spaces(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Processor
    from tokenizers import models, pre_tokenizers

    processor = Processor(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))
    processor.pre_tokenizer = pre_tokenizers.Whitespace()
    processor.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("one  two") == [1, 2]
    assert tokenizer.decode([1, 2, 2]) == processor.decode([1, 2, 2]) == "one two two"


def test_metaspace_decoders_are_understood(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Processor
    from tokenizers import decoders, models

    processor = Processor(models.BPE({f"{SPACE}a": 0, f"b{SPACE}": 1}, []))
    for scheme, alone in (("always", "ab "), ("never", " ab ")):
        processor.decoder = decoders.Metaspace(prepend_scheme=scheme)
        processor.save(str(tmp_path / "tokenizer.json"))
        assert load_tokenizer(tmp_path).decode([0, 1]) == processor.decode([0, 1]) == alone


# --- the first token of a text ---


def test_without_a_word_on_bos_the_post_processor_decides(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level_json(bos="<|im_start|>"), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("x")[0] == 1
    assert shared_tokenizer("byte-level").encode("x")[0] not in (0, 1, 2, 3)
    assert shared_tokenizer("llama2-json").encode("x")[0] == 1


def test_the_name_of_the_folder_decides_nothing(tmp_path: Path) -> None:
    for name in ("SmolLM2-135M-Instruct", "Meta-Llama-3-8B"):
        folder = tmp_path / name
        folder.mkdir()
        tokenizer = load_tokenizer(model_folder(folder, "byte-level", bos_token="<|im_start|>"))
        assert tokenizer.bos_id == 1
        assert tokenizer.encode("x")[0] != 1


def test_a_trailing_end_of_text_stays(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model_folder(tmp_path, "byte-level", eos_token="<|im_end|>"))
    assert tokenizer.eos_id == 2
    assert tokenizer.encode("x<|im_end|>")[-1] == 2


@ALL_KINDS
def test_add_bos_token_of_the_configuration_wins(kind: str, tmp_path: Path) -> None:
    off = load_tokenizer(model_folder(tmp_path, kind, add_bos_token=False))
    assert off.encode("hello")[0] != off.bos_id
    bos = {"content": "<|im_start|>"} if kind == "byte-level" else None
    on = load_tokenizer(model_folder(tmp_path, kind, add_bos_token=True, bos_token=bos))
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
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 2)


# --- damaged files ---


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
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_truncated_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(vocabulary("sentencepiece")[1][:500])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)


def test_a_folder_without_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff"])
def test_a_damaged_tokenizer_config_is_refused(data: bytes, tmp_path: Path) -> None:
    (model_folder(tmp_path, "byte-level") / "tokenizer_config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


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
            load_tokenizer(tmp_path)


# --- generation_config.json ---


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


@pytest.mark.parametrize("content", [b"{{", b"[1]", b"\xff", b""])
def test_a_hopeless_generation_config_is_ignored_with_a_warning(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert generation_ids(tmp_path, "eos_token_id") == ()
    assert "generation_config.json" in caplog.text


# --- prompts ---


def test_a_plain_prompt_is_that_of_all_samples() -> None:
    assert load_prompts("Who are\n\nyou?", 3) == ["Who are\n\nyou?"] * 3


@pytest.mark.parametrize("suffix", [".txt", ".md", ".tex", ".TXT"])
def test_a_file_gives_a_paragraph_to_each_sample(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts{suffix}"
    path.write_bytes("\ufeff\r\n\r\nfirst\r\n  line\r\n \t\r\n\r\nsecond ✓  \r\n".encode())
    assert load_prompts(f"FILE:{path}", 1) == ["first\n  line"]
    assert load_prompts(f"FILE:{path}", 2) == ["first\n  line", "second ✓"]
    assert load_prompts(f"FILE:{path}", 5) == ["first\n  line", "second ✓"] * 2 + ["first\n  line"]


def test_indented_first_lines_keep_their_indent() -> None:
    assert split_paragraphs("    x = 1\n\n\n\tb\n") == ["    x = 1", "\tb"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("prompts.pdf", b"text", "must end in"),
        ("prompts.txt", b" \n\n\t\n", "holds no text"),
        ("prompts.txt", b"", "holds no text"),
        ("prompts.txt", b"caf\xe9", "not UTF-8"),
        ("prompts.txt", None, "cannot be read"),
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


# --- prompts -> ids ---


def test_a_prompt_becomes_styled_ids() -> None:
    tokenizer = shared_tokenizer("byte-level")
    style = Style("test", lambda prompt: f"<|im_start|>{prompt}<|im_end|>")
    ids = encode_prompt(tokenizer, style, "hello")
    assert (ids[0], ids[-1]) == (1, 2)
    assert encode_prompt(tokenizer, style, "") == [1, 2]  # a style dresses an empty prompt too


def test_an_empty_prompt_becomes_bos(tmp_path: Path) -> None:
    assert encode_prompt(shared_tokenizer("llama3"), PLAIN, "") == [N_LLAMA3_RANKS]
    without_bos = load_tokenizer(model_folder(tmp_path, "byte-level", bos_token="<|im_start|>", add_bos_token=False))
    assert encode_prompt(without_bos, PLAIN, "") == [1]


def test_an_empty_prompt_is_an_error_where_the_model_has_no_bos() -> None:
    with pytest.raises(ConfigError, match="empty"):
        encode_prompt(shared_tokenizer("byte-level"), PLAIN, "")


def test_a_prompt_that_is_not_text_is_an_error() -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        encode_prompt(shared_tokenizer("byte-level"), PLAIN, "ab\udcff")


# --- styles ---

CHATML = (
    "{% for m in messages %}\n  {% generation %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}"
    "{{ eos_token }}{% endgeneration %}\n{% endfor %}\n{% if add_generation_prompt %}\n<|im_start|>{% endif %}"
)
CHATML_HI = "<|im_start|>user: Hi<|im_end|><|im_start|>"


def style_of(folder: Path, name: str = "tiny", override: str | None = None) -> Style:
    return load_style(folder, name, load_tokenizer(folder), override)


def test_prompt_style_yaml_comes_first(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "byte-level", chat_template=CHATML)
    (folder / "prompt_style.yaml").write_text("class_path: litgpt.prompts.Phi2\n", encoding="utf-8")
    assert style_of(folder, "SmolLM2-135M-Instruct").apply("Hi") == "Instruct: Hi\nOutput:"


@pytest.mark.parametrize(
    "content",
    [
        "class_path: os.system",
        "class_path: litgpt.prompts.Path",
        "class_path: litgpt.prompts.prompt_styles",
        "class_path: litgpt.prompts.missing",
        "class_path: litgpt.prompts.yaml.load",
        "class_path: litgpt.prompts",
        "class_path: [1]",
        "class_path: litgpt.utils.CLI",
        "- 1",
        "",
        "class_path: '",
        "!!python/object/apply:os.getcwd []",
    ],
)
def test_a_prompt_style_from_anywhere_else_is_refused(content: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "byte-level")
    (folder / "prompt_style.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"prompt_style\.yaml") as caught:
        style_of(folder)
    assert "\n" not in str(caught.value)


def test_then_the_style_that_litgpt_knows_for_the_name(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "byte-level", chat_template=CHATML)
    style = style_of(folder, "SmolLM2-135M-Instruct")
    assert style.name == "SmolLM2"
    assert style.apply("Hi").endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_then_the_models_own_chat_template(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "byte-level", chat_template=CHATML, eos_token="<|im_end|>")
    assert style_of(folder).apply("Hi") == CHATML_HI


def test_then_none(tmp_path: Path) -> None:
    assert style_of(model_folder(tmp_path, "byte-level")) is PLAIN
    assert PLAIN.apply("Hi") == "Hi"


def test_a_template_may_be_one_of_a_list_or_a_file_of_its_own(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    folder = model_folder(tmp_path, "byte-level", chat_template=templates, eos_token="<|im_end|>")
    assert style_of(folder).apply("Hi") == CHATML_HI
    (folder / "chat_template.jinja").write_text("{{ bos_token }}[{{ messages[0].content }}]", encoding="utf-8")
    assert style_of(folder).apply("Hi") == "[Hi]"


def test_an_override_goes_before_everything(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "byte-level", chat_template=CHATML, eos_token="<|im_end|>")
    (folder / "prompt_style.yaml").write_text("class_path: os.system", encoding="utf-8")
    name = "SmolLM2-135M-Instruct"
    assert style_of(folder, name, "none") is PLAIN
    assert style_of(folder, name, "chat-template").apply("Hi") == CHATML_HI
    assert style_of(folder, name, "phi-1").apply("Hi") == "Hi\n\nAnswer:"


def test_an_unknown_override_lists_the_names(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "byte-level")
    with pytest.raises(ConfigError, match=r"nonsense.* none, chat-template,.* llama3,"):
        style_of(folder, override="nonsense")
    with pytest.raises(ConfigError, match="no chat template"):
        style_of(folder, override="chat-template")


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_no_style_of_litgpt_fails_on_a_vocabulary_without_its_tokens(kind: str) -> None:
    from litgpt.prompts import prompt_styles

    tokenizer = shared_tokenizer(kind)
    for name in prompt_styles:
        style = load_style(Path(), "x", tokenizer, name)
        assert encode_prompt(tokenizer, style, "Hi")
        assert all(stop and all(isinstance(i, int) for i in stop) for stop in style.stops)


# --- chat templates ---


def render(source: str, content: str = "Hi", **special_tokens: str) -> str:
    template = ChatTemplate(source, Path("tokenizer_config.json"), special_tokens)
    return template.render([{"role": "user", "content": content}])


def test_templates_see_what_hugging_face_gives_them() -> None:
    assert render("{{ bos_token }}{{ tools is none }}{{ missing }}", bos_token="<s>") == "<s>True"
    assert render("{{ messages | tojson }}", "<é>") == '[{"role": "user", "content": "<é>"}]'
    assert render("{% for m in messages %}{% break %}{% endfor %}.") == "."
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('only\nwith a system prompt') }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0] + 1 }}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{% for %}",
        "{{ 'x' | nosuchfilter }}",
    ],
)
def test_a_template_that_fails_or_breaks_out_is_one_line(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json") as caught:
        render(source)
    assert "\n" not in str(caught.value)


# --- stop sequences of a model ---


def test_stops_are_the_union_of_style_tokenizer_and_generation_config(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "byte-level", eos_token="<|im_end|>")
    write_json(folder / "generation_config.json", {"eos_token_id": [2, 0]})
    tokenizer = load_tokenizer(folder)
    style = load_style(folder, "Meta-Llama-3-8B-Instruct", tokenizer)
    assert style.stops == ((2,), (3,))  # eos and <|eot_id|>
    assert stop_sequences(folder, tokenizer, style) == ((2,), (3,), (0,))
    assert stop_sequences(folder, tokenizer, PLAIN) == ((2,), (0,))


def test_a_model_that_names_no_end_has_no_stops(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "byte-level")
    tokenizer = load_tokenizer(folder)
    style = load_style(folder, "tiny-llama-1.1b-chat", tokenizer)
    assert stop_sequences(folder, tokenizer, style) == ()


# --- text as it grows ---


class CountingBackend:
    """Four tokens, two of them half a character; counts how often a token is looked at."""

    vocab_size = 4
    bos_id: int | None = None
    eos_id: int | None = None
    prefix: tuple[int, ...] = ()
    drops_leading_space = True

    def __init__(self) -> None:
        self.n_calls = 0

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def token_id(self, token: str) -> int | None:
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        self.n_calls += 1
        return (b" a", b"\xe2\x9c", b"\x93", b"z")[token_id]


def stream(**options: Any) -> TextStream:
    return TextStream(Tokenizer(CountingBackend()), **options)


def test_half_a_character_waits_for_its_other_half() -> None:
    text = stream()
    assert [text.push([i]) for i in (0, 1, 2, 1)] == [" a", "", "✓", ""]
    assert text.finish() == "\ufffd"


def test_several_tokens_may_come_at_once_or_none() -> None:
    text = stream()
    assert [text.push(ids) for ids in ([0, 1], [], [2, 3])] == [" a", "", "✓z"]
    assert text.finish() == ""


def test_the_space_before_the_first_word_is_dropped_only_where_nothing_stands_before() -> None:
    alone = stream(continues=False)
    assert [alone.push([0]), alone.push([0]), alone.finish()] == ["a", " a", ""]
    assert stream(continues=True).push([0]) == " a"


def test_each_token_is_looked_at_once() -> None:
    backend = CountingBackend()
    text = TextStream(Tokenizer(backend))
    for _ in range(300):
        text.push([3])
        text.push([0])
    text.finish()
    assert backend.n_calls == 600


def streamed(tokenizer: Tokenizer, parts: list[list[int]], *, continues: bool) -> str:
    text = TextStream(tokenizer, continues=continues)
    return "".join(map(text.push, parts)) + text.finish()


@ALL_KINDS
@given(data=st.data(), continues=st.booleans())
@settings(deadline=None, max_examples=150)
def test_what_was_shown_is_the_decoded_text(kind: str, data: st.DataObject, continues: bool) -> None:
    tokenizer = shared_tokenizer(kind)
    # Mostly bytes of unfinished characters.
    some = [i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1][::23]
    token = st.sampled_from(some) | st.integers(0, tokenizer.vocab_size + 3)
    parts = data.draw(st.lists(st.lists(token, max_size=4), max_size=12))
    ids = [token_id for part in parts for token_id in part]
    assert streamed(tokenizer, parts, continues=continues) == tokenizer.decode(ids, continues=continues)


@ALL_KINDS
@given(text=texts)
@settings(deadline=None)
def test_a_streamed_text_is_the_text(kind: str, text: str) -> None:
    tokenizer = shared_tokenizer(kind)
    assert streamed(tokenizer, [[i] for i in tokenizer.encode(text)], continues=False) == text
