"""The tokenizer that a GGUF file carries as metadata -> tokenizer.json and its two companions.

llama.cpp is the reference: the same text gives the same ids there and here. Two kinds are known: "gpt2", byte-level
BPE with a list of merges, and "llama", SentencePiece BPE, whose merges follow from the scores of the vocabulary.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from mdi.convert.gguf.file import GgufFile, Metadata
from mdi.errors import CheckpointError
from mdi.files import write_text
from mdi.strings import one_line
from mdi.text.byte_level import GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS, TEKKEN_WORDS, byte_level_tokenizer


@dataclass(frozen=True)
class _PreTokenizer:
    """The pre-tokenizer that `tokenizer.ggml.pre` names: patterns applied in order, and two defaults."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_DEFAULT = _PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"))
_GPT2 = _PreTokenizer((GPT2_WORDS,))
_DIGITS = _PreTokenizer((r"\p{N}", GPT2_WORDS))
_LLAMA3 = _PreTokenizer((LLAMA3_WORDS,), ignore_merges=True, add_bos=True)
_QWEN2 = _PreTokenizer((QWEN2_WORDS,))
_PRE_TOKENIZERS = {
    "default": _DEFAULT,
    "gpt-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": _PreTokenizer((LLAMA3_WORDS,)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": _QWEN2,
    "megrez": _QWEN2,
    "tekken": _PreTokenizer((TEKKEN_WORDS,), ignore_merges=True, add_bos=True),
}

# Tokens that end a turn in some model family, known by their text because files often do not mark them.
_END_OF_TURN = frozenset(
    [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<｜end▁of▁sentence｜>",
    ]
)

# A vocabulary whose tokens are made of each other has merges in proportion to the square of their lengths.
MAX_TOKEN_CHARS = 1024  # known tokens have 256 at most
MAX_MERGES_PER_TOKEN = 32  # on average; known vocabularies have 3


class _Type(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class _Vocabulary:
    """Tokens and their types by id, and the special ids, None where the file names none."""

    path: Path
    tokens: list[str]
    types: list[int]
    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    ends: tuple[int, ...]  # every id that ends a generation, `eos` first
    add_bos: bool
    add_eos: bool

    def text(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.tokens[token_id]


def write_tokenizer(file: GgufFile, folder: Path) -> int:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json; return the number of tokens.

    Raises `CheckpointError` for a tokenizer that is damaged or of a kind that cannot be rebuilt exactly, `StorageError`
    where `folder` cannot be written.
    """
    kind = file.metadata.string("tokenizer.ggml.model")
    if kind == "gpt2":
        pre_tokenizer = _pre_tokenizer_of(file)
        vocabulary = _read_vocabulary(file, add_bos=pre_tokenizer.add_bos)
        tokenizer = _byte_level(vocabulary, file.metadata.strings("tokenizer.ggml.merges"), pre_tokenizer)
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    elif kind == "llama":
        prefix = file.metadata.flag("tokenizer.ggml.add_space_prefix", True)
        vocabulary = _read_vocabulary(file, bos=1, eos=2, unk=0, add_bos=True)
        tokenizer = _sentencepiece(vocabulary, _scores(file, len(vocabulary.tokens)), prefix=prefix)
        # litGPT restores the space before a lone token for this class only, and only these lose it
        config = {"tokenizer_class": "LlamaTokenizer" if prefix else "PreTrainedTokenizerFast"}
    else:
        raise CheckpointError(f"{file.path}: tokenizer kind {kind!r} is not supported, only 'gpt2' and 'llama' are")
    _add_special_tokens(tokenizer, vocabulary)
    # Not by `tokenizer.save`, which raises a bare Exception on a full disk.
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    if "tokenizer.chat_template" in file.metadata:
        config["chat_template"] = file.metadata.string("tokenizer.chat_template")
    _write_json(folder / "tokenizer_config.json", config | _tokenizer_config(vocabulary))
    _write_json(folder / "generation_config.json", _generation_config(vocabulary))
    return len(vocabulary.tokens)


def _pre_tokenizer_of(file: GgufFile) -> _PreTokenizer:
    name = file.metadata.string("tokenizer.ggml.pre", "default")
    if name not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{file.path}: pre-tokenizer {name!r} is not supported, only {', '.join(sorted(_PRE_TOKENIZERS))} are;"
            " prepare this model from its Hugging Face folder instead"
        )
    return _PRE_TOKENIZERS[name]


def _read_vocabulary(
    file: GgufFile, *, bos: int | None = None, eos: int | None = None, unk: int | None = None, add_bos: bool
) -> _Vocabulary:
    """The vocabulary; the arguments are llama.cpp's defaults for keys that the metadata lack."""
    metadata = file.metadata
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(metadata.strings("tokenizer.ggml.tokens"))]
    n = len(tokens)
    if (longest := max(map(len, tokens), default=0)) > MAX_TOKEN_CHARS:
        raise CheckpointError(f"{file.path}: damaged: a token of {longest} characters")
    if not tokens or len(set(tokens)) != n:
        raise CheckpointError(f"{file.path}: the token list is empty or holds a token twice")
    bos, eos = _special_id(metadata, "bos", n, bos), _special_id(metadata, "eos", n, eos)
    turn_ends = [_special_id(metadata, name, n, None) for name in ("eot", "eom")]
    by_text = [i for i, token in enumerate(tokens) if token in _END_OF_TURN]
    return _Vocabulary(
        path=file.path,
        tokens=tokens,
        types=_token_types(file, n),
        bos=bos,
        eos=eos,
        unk=_special_id(metadata, "unknown", n, unk),
        pad=_special_id(metadata, "padding", n, None),
        ends=tuple(dict.fromkeys(i for i in [eos, *turn_ends, *by_text] if i is not None)),
        add_bos=metadata.flag("tokenizer.ggml.add_bos_token", add_bos) and bos is not None,
        add_eos=metadata.flag("tokenizer.ggml.add_eos_token", False) and eos is not None,
    )


def _special_id(metadata: Metadata, name: str, n_tokens: int, default: int | None) -> int | None:
    """The id under `tokenizer.ggml.<name>_token_id`; like llama.cpp, one outside the vocabulary does not count."""
    key = f"tokenizer.ggml.{name}_token_id"
    candidates = [metadata.integer(key) if key in metadata else None, default]
    return next((i for i in candidates if i is not None and 0 <= i < n_tokens), None)


def _token_types(file: GgufFile, n_tokens: int) -> list[int]:
    types = _one_per_token(file, "token_type", n_tokens)
    return [int(_Type.NORMAL)] * n_tokens if types is None else [int(kind) for kind in types]


def _scores(file: GgufFile, n_tokens: int) -> list[float]:
    scores = _one_per_token(file, "scores", n_tokens)
    if scores is None:
        raise CheckpointError(f"{file.path}: the metadata key tokenizer.ggml.scores is missing")
    return [float(score) for score in scores]


def _one_per_token(file: GgufFile, name: str, n_tokens: int) -> list[Any] | None:
    values = file.metadata.array(f"tokenizer.ggml.{name}")
    if values is not None and len(values) != n_tokens:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{name} has {len(values)} entries for {n_tokens} tokens")
    return None if values is None else values.tolist()


def _byte_level(vocabulary: _Vocabulary, merges: list[str], pre_tokenizer: _PreTokenizer) -> Tokenizer:
    pairs = [_pair(vocabulary.path, merge) for merge in merges]
    model = _bpe(vocabulary, pairs, ignore_merges=pre_tokenizer.ignore_merges)
    return byte_level_tokenizer(model, pre_tokenizer.patterns)


def _pair(path: Path, merge: str) -> tuple[str, str]:
    """The two halves of a merge, parted by the first space that is not its first character."""
    middle = merge.find(" ", 1)
    if middle < 0:
        raise CheckpointError(f"{path}: the merge {merge!r} in tokenizer.ggml.merges has no two halves")
    return merge[:middle], merge[middle + 1 :]


def _sentencepiece(vocabulary: _Vocabulary, scores: list[float], *, prefix: bool) -> Tokenizer:
    missing = {f"<0x{byte:02X}>" for byte in range(256)}.difference(vocabulary.tokens)
    if missing:
        raise CheckpointError(f"{vocabulary.path}: the vocabulary has no token {min(missing)} for a single byte")
    unk = vocabulary.text(vocabulary.unk)
    merges = _merges_from_scores(vocabulary, scores)
    tokenizer = Tokenizer(_bpe(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token=unk))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges_from_scores(vocabulary: _Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token out of two others, best score first.

    SentencePiece joins the two neighbours whose union scores best, the leftmost of equals. Where scores are equal the
    longer union goes first here, so that a run of spaces grows from the left as it does there.
    """
    plain = (_Type.NORMAL, _Type.USER_DEFINED, _Type.UNUSED)
    parts = {token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in plain}
    ranked = sorted(
        (-score, -len(token), i)
        for i, (token, score) in enumerate(zip(vocabulary.tokens, scores, strict=True))
        if token in parts
    )
    tokens = (vocabulary.tokens[i] for *_, i in ranked)
    pairs = ((left, right) for token in tokens for left, right in _halves(token) if left in parts and right in parts)
    limit = MAX_MERGES_PER_TOKEN * len(vocabulary.tokens)
    merges = list(islice(pairs, limit + 1))
    if len(merges) > limit:
        raise CheckpointError(
            f"{vocabulary.path}: damaged: its tokens can be made of each other in {limit} ways and more"
        )
    return merges


def _halves(token: str) -> Iterator[tuple[str, str]]:
    return ((token[:i], token[i:]) for i in range(1, len(token)))


def _bpe(vocabulary: _Vocabulary, merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    try:
        return models.BPE(vocab=vocab, merges=merges, **options)
    except Exception as exc:  # the binding has no error class of its own
        raise CheckpointError(f"{vocabulary.path}: the merges do not fit the vocabulary: {one_line(exc)}") from exc


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Tokens that are found in a text before it is cut into words, and the ones added around every text."""
    special, plain = [], []
    for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind in (_Type.CONTROL, _Type.UNKNOWN) or i in vocabulary.ends:
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == _Type.USER_DEFINED:
            plain.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)
    before, after = ["BOS"] * vocabulary.add_bos, ["EOS"] * vocabulary.add_eos
    if before or after:
        ids = {"BOS": vocabulary.bos, "EOS": vocabulary.eos}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B:1", *after],
            special_tokens=[
                {"id": name, "ids": [ids[name]], "tokens": [vocabulary.text(ids[name])]} for name in before + after
            ],
        )


def _tokenizer_config(vocabulary: _Vocabulary) -> dict[str, Any]:
    config: dict[str, Any] = {
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "clean_up_tokenization_spaces": False,
    }
    for name in ("bos", "eos", "unk", "pad"):
        text = vocabulary.text(getattr(vocabulary, name))
        if text is not None:
            config[f"{name}_token"] = text
    return config


def _generation_config(vocabulary: _Vocabulary) -> dict[str, Any]:
    ids = {"bos_token_id": vocabulary.bos, "pad_token_id": vocabulary.pad}
    config: dict[str, Any] = {key: i for key, i in ids.items() if i is not None}
    return config | ({"eos_token_id": list(vocabulary.ends)} if vocabulary.ends else {})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
