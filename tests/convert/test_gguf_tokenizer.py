import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from mdi.convert.gguf.file import open_gguf
from mdi.convert.gguf.tokenizer import write_tokenizer
from mdi.errors import CheckpointError, StorageError
from support.files import small_files_only
from support.gguf_files import TOKENS, byte_level_tokenizer, write_gguf
from support.paths import DATA

STORED = json.loads(gzip.decompress((DATA / "pre_tokenizer_ids.json.gz").read_bytes()))
END = TOKENS.index("<|endoftext|>")
IM_END = TOKENS.index("<|im_end|>")
BOS = TOKENS.index("<|bos|>")


def convert(values: dict[str, Any], folder: Path) -> tuple[Tokenizer, dict[str, Any], dict[str, Any]]:
    """The tokenizer, tokenizer_config.json and generation_config.json; a value of None removes its key."""
    values = {key: value for key, value in values.items() if value is not None}
    write_tokenizer(open_gguf(write_gguf(folder / "t.gguf", "llama", values, {})), folder)
    config, generation = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("tokenizer_config", "generation_config")
    )
    return Tokenizer.from_file(str(folder / "tokenizer.json")), config, generation


# ---- byte-level BPE


@pytest.mark.parametrize("pre", STORED["ids"])
def test_words_are_cut_as_llama_cpp_cuts_them(pre: str, tmp_path: Path) -> None:
    values = {f"tokenizer.ggml.{key}": STORED[key] for key in ("tokens", "merges")}
    tokenizer, _, _ = convert(values | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}, tmp_path)
    for text, ids in zip(STORED["strings"], STORED["ids"][pre], strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        assert tokenizer.decode(ids) == text


def test_the_stored_ids_tell_the_pre_tokenizers_apart() -> None:
    kinds = list(STORED["ids"].values())
    assert all(a != b for i, a in enumerate(kinds) for b in kinds[:i])
    assert len(STORED["strings"]) == 400


def test_tekken_keeps_combining_marks_with_their_letters(tmp_path: Path) -> None:
    """The model's own pattern; llama.cpp's stand-in for it cuts before a mark such as U+0301."""
    values = byte_level_tokenizer() | {"tokenizer.ggml.pre": "tekken"}
    tokenizer, config, _ = convert(values, tmp_path)
    words = [text for text, _ in tokenizer.pre_tokenizer.pre_tokenize_str("camelCase 12 e\u0301a\n")]
    assert words == ["camel", "Case", "Ġ", "1", "2", "ĠeÌģa", "Ċ"]
    assert config["add_bos_token"] is False  # the file's own word against the default of this kind


def test_control_tokens_are_found_in_a_text(tmp_path: Path) -> None:
    tokenizer, config, generation = convert(byte_level_tokenizer(), tmp_path)
    assert tokenizer.encode("hello<|im_end|>").ids == [TOKENS.index("hello"), IM_END]
    assert tokenizer.decode([TOKENS.index("hello"), IM_END]) == "hello"
    assert config == {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": "<|bos|>",
        "chat_template": byte_level_tokenizer()["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    assert generation == {"bos_token_id": BOS, "eos_token_id": [IM_END, END]}


@pytest.mark.parametrize(
    ("changes", "before", "after"),
    [
        ({}, [], []),
        ({"tokenizer.ggml.add_bos_token": True}, [BOS], []),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, [BOS], [IM_END]),
        ({"tokenizer.ggml.add_eos_token": True}, [], [IM_END]),
        ({"tokenizer.ggml.add_bos_token": None}, [], []),
        ({"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.pre": "llama-bpe"}, [BOS], []),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}, [], []),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 10**6}, [], []),
    ],
)
def test_metadata_decides_what_is_put_around_a_text(
    changes: dict[str, Any], before: list[int], after: list[int], tmp_path: Path
) -> None:
    tokenizer, config, _ = convert(byte_level_tokenizer() | changes, tmp_path)
    assert tokenizer.encode("hello").ids == [*before, TOKENS.index("hello"), *after]
    assert tokenizer.encode("hello", add_special_tokens=False).ids == [TOKENS.index("hello")]
    assert (config["add_bos_token"], config["add_eos_token"]) == (bool(before), bool(after))


def test_every_way_to_end_a_turn_is_listed(tmp_path: Path) -> None:
    tokens = [*TOKENS[:-1], "<turn>", "<|eot_id|>", "x<|im_end|>"]
    values = byte_level_tokenizer() | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.eos_token_id": tokens.index("<|bos|>"),
        "tokenizer.ggml.eot_token_id": tokens.index("<turn>"),
    }
    _, _, generation = convert(values, tmp_path)
    named = [tokens[i] for i in generation["eos_token_id"]]
    assert named == ["<|bos|>", "<turn>", "<|im_end|>", "<|eot_id|>"]


def test_user_defined_tokens_are_found_but_not_special(tmp_path: Path) -> None:
    values = byte_level_tokenizer()
    values["tokenizer.ggml.token_type"] = [*values["tokenizer.ggml.token_type"][:-1], 4]
    values["tokenizer.ggml.tokens"] = [*TOKENS[:-1], "   "]
    tokenizer, _, _ = convert(values, tmp_path)
    ids = tokenizer.encode("hello   hello").ids
    assert ids == [TOKENS.index("hello"), END, TOKENS.index("hello")]
    assert tokenizer.decode(ids) == "hello   hello"


# ---- SentencePiece

SENTENCES = """the ring hands each token to the next node and the next node hands it on until the last sends it home
a plug is pulled mid sentence yet the sentence finishes because nothing but tokens has to be remembered 1999 2024 3.14
größer Äpfel naïve café Москва столица Ελλάδα 東京都 日本語 한국어 العربية हिन्दी def main(): return [x for x in y]"""
WORDS = SENTENCES.split()


def train(**options: Any) -> sentencepiece.SentencePieceProcessor:
    draw = random.Random(5)
    lines = [" ".join(draw.choices(WORDS, k=9)) + " " * draw.randint(0, 5) + "end" for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=520,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def spm_values(sp: sentencepiece.SentencePieceProcessor, user_defined: tuple[str, ...] = ()) -> dict[str, Any]:
    tokens = [sp.id_to_piece(i) for i in range(sp.vocab_size())]

    def kind(i: int) -> int:
        if tokens[i] in user_defined:
            return 4
        return 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(sp.get_score(i)) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [kind(i) for i in range(len(tokens))],
    }


def texts(n: int) -> list[str]:
    draw = random.Random(6)
    alphabet = "abcdefgh the ring   \n\tÄß日本Москва한국😀👍🏽é0123456789.,(){}<>"
    made = ["", " ", "a", " a ", "\n\n", "hello world", "日本語😀 ok", "x" * 30, " " * 17]
    while len(made) < n:
        pieces = [
            draw.choice(WORDS) if draw.random() < 0.5 else draw.choice(alphabet) for _ in range(draw.randint(1, 25))
        ]
        made.append(draw.choice(["", " "]).join(pieces))
    return made


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids_are_those_of_sentencepiece(prefix: bool, tmp_path: Path) -> None:
    sp = train(add_dummy_prefix=prefix)
    values = spm_values(sp) | {"tokenizer.ggml.add_space_prefix": prefix}
    tokenizer, config, generation = convert(values, tmp_path)
    for text in texts(1000):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == sp.encode(text), text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("the ring").ids == [1, *sp.encode("the ring")]  # BOS, llama.cpp's default for this kind
    assert config["add_bos_token"] is True and config["add_eos_token"] is False
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert config["tokenizer_class"] == ("LlamaTokenizer" if prefix else "PreTrainedTokenizerFast")
    assert generation == {"bos_token_id": 1, "eos_token_id": [2]}


def test_user_defined_pieces_and_runs_of_spaces_as_in_gemma(tmp_path: Path) -> None:
    runs = tuple("▁" * n for n in range(2, 8))
    sp = train(add_dummy_prefix=False, user_defined_symbols=["<start_of_turn>", "\n\n", *runs])
    values = spm_values(sp, ("<start_of_turn>", "\n\n", *runs)) | {"tokenizer.ggml.add_space_prefix": False}
    tokenizer, _, _ = convert(values, tmp_path)
    for n in range(1, 40):
        for text in ("a" + " " * n, " " * n + "\n\n", "<start_of_turn>" + " " * n + "\n\n\n"):
            assert tokenizer.encode(text, add_special_tokens=False).ids == sp.encode(text), repr(text)


def test_control_tokens_in_a_sentencepiece_text(tmp_path: Path) -> None:
    sp = train(add_dummy_prefix=True)
    tokenizer, _, _ = convert(spm_values(sp), tmp_path)
    assert tokenizer.encode("<s>the ring</s>", add_special_tokens=False).ids == [1, *sp.encode("the ring"), 2]


def test_a_vocabulary_without_bytes_or_scores_is_refused(tmp_path: Path) -> None:
    values = spm_values(train())
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.scores is missing"):
        convert(values | {"tokenizer.ggml.scores": None}, tmp_path)
    tokens = [token.replace("<0x7F>", "seven-f") for token in values["tokenizer.ggml.tokens"]]
    with pytest.raises(CheckpointError, match="no token <0x7F> for a single byte"):
        convert(values | {"tokenizer.ggml.tokens": tokens}, tmp_path)
    with pytest.raises(CheckpointError, match="scores has 3 entries"):
        convert(values | {"tokenizer.ggml.scores": [1.0, 2.0, 3.0]}, tmp_path)


def test_tokens_that_are_made_of_each_other_are_refused(tmp_path: Path) -> None:
    """Their merges would take time and memory in proportion to the square of their lengths."""
    values = spm_values(train())

    def with_tokens(lengths: range) -> dict[str, Any]:
        more = ["z" * length for length in lengths]
        return values | {
            "tokenizer.ggml.tokens": values["tokenizer.ggml.tokens"] + more,
            "tokenizer.ggml.scores": values["tokenizer.ggml.scores"] + [0.0] * len(more),
            "tokenizer.ggml.token_type": values["tokenizer.ggml.token_type"] + [1] * len(more),
        }

    with pytest.raises(CheckpointError, match=r"made of each other in \d+ ways and more"):
        convert(with_tokens(range(2, 1000)), tmp_path)
    with pytest.raises(CheckpointError, match="a token of 2000 characters"):
        convert(with_tokens(range(2000, 2001)), tmp_path)


def test_a_full_disk(tmp_path: Path) -> None:
    file = open_gguf(write_gguf(tmp_path / "t.gguf", "llama", spm_values(train()), {}))
    with small_files_only(), pytest.raises(StorageError, match=r"tokenizer\.json: "):
        write_tokenizer(file, tmp_path)
