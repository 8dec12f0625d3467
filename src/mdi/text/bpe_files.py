"""vocab.json and merges.txt -> a tokenizer: the form of byte-level BPE before there was tokenizer.json.

The two files do not say how a text is cut into words; the class of the model's tokenizer implies it. The library of
Hugging Face makes the same of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdi.documents import read_json, read_text
from mdi.errors import CheckpointError
from mdi.strings import one_line, quoted
from mdi.text.byte_level import GPT2_WORDS, QWEN2_WORDS, byte_level_tokenizer
from mdi.text.tokenizer_config import MAX_FILE_BYTES, read_tokenizer_config, token_text

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"
MAX_FILES_BYTES = 64 << 20  # of each of the two; the largest known one has 3 MB
MAX_ID = 1 << 22
_END_OF_TEXT = "<|endoftext|>"  # special in all of these classes, whether a file says so or not
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token


@dataclass(frozen=True)
class _Kind:
    """What a class of tokenizers does with a text before BPE."""

    words: str  # the pattern of a word
    is_composed: bool = False  # whether a text is brought into Unicode's normal form C first


_KINDS = {
    "GPT2Tokenizer": _Kind(GPT2_WORDS),
    "CodeGenTokenizer": _Kind(GPT2_WORDS),
    "Qwen2Tokenizer": _Kind(QWEN2_WORDS, is_composed=True),
}


def has_bpe_files(folder: Path) -> bool:
    """Whether a folder has both files."""
    return (folder / VOCABULARY_FILE).is_file() and (folder / MERGES_FILE).is_file()


def load_bpe_files(folder: Path) -> "Tokenizer":
    """The tokenizer of the two files, with the tokens that tokenizer_config.json and added_tokens.json add.

    Raises `CheckpointError` for a damaged file, or a class of tokenizers that is not known.
    """
    from tokenizers import models, normalizers

    config = read_tokenizer_config(folder)
    kind = _kind_of(folder, config)
    try:
        model = models.BPE(vocab=_read_vocabulary(folder / VOCABULARY_FILE), merges=_read_merges(folder / MERGES_FILE))
    except CheckpointError:
        raise
    except Exception as exc:  # the library raises nothing more specific
        raise CheckpointError(f"{folder / MERGES_FILE}: does not fit {VOCABULARY_FILE}: {one_line(exc)}") from exc
    tokenizer = byte_level_tokenizer(model, [kind.words])
    if kind.is_composed:
        tokenizer.normalizer = normalizers.NFC()
    _add_tokens(tokenizer, folder, config)
    return tokenizer


def _kind_of(folder: Path, config: Mapping[str, Any]) -> _Kind:
    name = str(config.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if name not in _KINDS:
        raise CheckpointError(
            f"{folder}: tokenizer_config.json names the class {quoted(name)}, and {VOCABULARY_FILE} and {MERGES_FILE} "
            f"are understood for {', '.join(_KINDS)}: take a folder with tokenizer.json"
        )
    if config.get("add_prefix_space") is True:
        raise CheckpointError(f"{folder}: add_prefix_space is supported with a tokenizer.json alone")
    return _KINDS[name]


def _read_vocabulary(path: Path) -> dict[str, int]:
    values = _object(read_json(path, MAX_FILES_BYTES, CheckpointError), path)
    if not all(type(number) is int and 0 <= number < MAX_ID for number in values.values()):
        raise CheckpointError(f"{path}: damaged: the ids of tokens are expected")
    return values


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in read_text(path, MAX_FILES_BYTES, CheckpointError).split("\n") if line.strip()]
    if lines and lines[0].startswith("#version"):
        del lines[0]
    pairs = [tuple(line.split(" ")) for line in lines]
    for number, pair in enumerate(pairs):
        if len(pair) != 2:
            raise CheckpointError(f"{path}: damaged: merge {number + 1} has {len(pair)} parts")
    return [(pair[0], pair[1]) for pair in pairs]


def _add_tokens(tokenizer: "Tokenizer", folder: Path, config: Mapping[str, Any]) -> None:
    """Add the tokens that lie behind the vocabulary, and mark the special ones."""
    from tokenizers import AddedToken

    added = _added_tokens(folder, config)
    for number, token in sorted(added.items()):
        tokenizer.add_tokens([token])
        if (found := tokenizer.token_to_id(token.content)) != number:
            raise CheckpointError(f"{folder}: the added token {quoted(token.content)} has the id {number}, not {found}")
    for text in (_END_OF_TEXT, *_special_texts(folder, config)):
        if tokenizer.token_to_id(text) is not None:
            tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True)])


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, "AddedToken"]:
    """By id, from both places where the library of Hugging Face has put them."""
    from tokenizers import AddedToken

    declared = _object(config.get("added_tokens_decoder") or {}, folder / "tokenizer_config.json")
    tokens = {}
    for number, value in declared.items():
        text = token_text(value)
        if not (number.isdecimal() and len(number) < 8 and text and isinstance(value, dict)):
            raise CheckpointError(f"{folder / 'tokenizer_config.json'}: damaged: the added token {quoted(number)}")
        flags = {name: value.get(name) is True for name in (*_FLAGS, "special")}
        tokens[int(number)] = AddedToken(text, **flags)
    path = folder / "added_tokens.json"
    for text, number in _object(_read_optional(path), path).items():
        if type(number) is not int or not 0 <= number < MAX_ID:
            raise CheckpointError(f"{path}: damaged: the id of {quoted(text)}")
        tokens.setdefault(number, AddedToken(text, normalized=False))
    return tokens


def _special_texts(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    path = folder / "special_tokens_map.json"
    for values in (config, _object(_read_optional(path), path)):
        for key, value in values.items():
            if key.endswith("_token") or key == "additional_special_tokens":
                items = value if isinstance(value, list) else [value]
                yield from (text for item in items if (text := token_text(item)))


def _read_optional(path: Path) -> Any:
    return read_json(path, MAX_FILE_BYTES, CheckpointError, distinct=False) if path.is_file() else {}


def _object(value: object, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: damaged: an object is expected, not {quoted(value)}")
    return value
