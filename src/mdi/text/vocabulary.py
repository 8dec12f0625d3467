"""The vocabulary files that models come with, behind one interface: text -> ids, id -> bytes."""

import base64
import binascii
import codecs
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mdi.errors import CheckpointError
from mdi.files import read_bytes
from mdi.strings import format_bytes, one_line
from mdi.text.bpe_files import MERGES_FILE, VOCABULARY_FILE, has_bpe_files, load_bpe_files
from mdi.text.byte_level import LLAMA3_WORDS, byte_alphabet

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Processor

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model")
MAX_VOCABULARY_BYTES = 256_000_000  # the largest known one has 35 MB
MAX_IDS = 1 << 22
MAX_PREFIX_IDS = 64

# Llama 3's 256 special tokens: the named ones at their places behind the vocabulary, numbered reserves at all others.
_LLAMA3_SPECIALS = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
_N_LLAMA3_SPECIALS = 256
_LLAMA3_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d+)\r?")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Backend(Protocol):
    """What a vocabulary file can do. `bos_id`, `eos_id` and `prefix` are what the file itself declares."""

    vocab_size: int  # number of tokens
    n_ids: int  # one more than the largest id: more than `vocab_size` where ids are left out
    bos_id: int | None
    eos_id: int | None
    prefix: tuple[int, ...]
    drops_leading_space: bool

    def encode(self, text: str) -> list[int]:
        """Ids of `text` with nothing added; special tokens written in it become their ids."""

    def token_id(self, token: str) -> int | None:
        """The id of exactly this token, or None."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token stands for; none for special tokens and for ids beyond the vocabulary."""


def find_vocabulary(folder: Path) -> Path:
    """The vocabulary file of a model folder. Raises `CheckpointError` where there is none, or none of a usual size."""
    path = next((path for name in VOCABULARY_FILES if (path := folder / name).is_file()), None)
    if path is None and has_bpe_files(folder):
        path = folder / VOCABULARY_FILE
    if path is None:
        names = ", ".join(VOCABULARY_FILES)
        raise CheckpointError(f"{folder}: has no {names}, or {VOCABULARY_FILE} with {MERGES_FILE}: copy them there")
    if (n_bytes := path.stat().st_size) > MAX_VOCABULARY_BYTES:
        limit = format_bytes(MAX_VOCABULARY_BYTES)
        raise CheckpointError(f"{path}: {format_bytes(n_bytes)}, and no vocabulary has more than {limit}")
    return path


def load_vocabulary(folder: Path) -> Backend:
    """The vocabulary of a model folder. Raises `CheckpointError` naming the missing or damaged file.

    What a file makes of the libraries that read it is not bounded here: see `mdi.text.worker_process`.
    """
    path = find_vocabulary(folder)
    if path.name == VOCABULARY_FILE:
        return _HuggingFace(path, load_bpe_files(folder))
    data = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    if path.suffix == ".json":
        return _HuggingFace(path, _read_processor(path, data))
    if _LLAMA3_LINE.fullmatch(data.partition(b"\n")[0]):
        return _Llama3(path, data)
    return _SentencePiece(path, data)


# --- tokenizer.json ---


@dataclass(frozen=True)
class _Decoding:
    """How the tokens of a tokenizer.json become bytes."""

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    before_token: str = ""
    drops_leading_space: bool = False


class _HuggingFace:
    """A tokenizer of the `tokenizers` library, read from `path`."""

    eos_id: int | None = None

    def __init__(self, path: Path, processor: "Processor") -> None:
        self._processor = processor
        # Both are settings for training that some published files carry.
        self._processor.no_truncation()
        self._processor.no_padding()
        added = self._processor.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._decoding = _read_decoding(path, self._processor.decoder)
        self.drops_leading_space = self._decoding.drops_leading_space
        ids = self._processor.get_vocab(with_added_tokens=True).values()
        self.vocab_size, self.n_ids = len(ids), 1 + max(ids, default=-1)
        if self.n_ids > MAX_IDS:
            raise CheckpointError(f"{path}: damaged: token id {self.n_ids - 1}, and no model has so many")
        self._path = path
        self._characters = _only_characters(self._processor, self._decoding)
        self.prefix = self._post_processor_prefix()
        self.bos_id = self.prefix[0] if len(self.prefix) == 1 else None

    def _post_processor_prefix(self) -> tuple[int, ...]:
        if self._characters is not None:
            return ()
        encoding = self._processor.encode("a")
        marked = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        prefix = tuple(token_id for token_id, _ in takewhile(lambda pair: pair[1], marked))
        if len(prefix) > MAX_PREFIX_IDS:
            raise CheckpointError(f"{self._path}: damaged: {len(prefix)} tokens in front of every text")
        return prefix

    def encode(self, text: str) -> list[int]:
        if self._characters is not None and (unknown := sorted(set(text) - self._characters)):
            raise CheckpointError(
                f"{self._path}: this model was trained on other characters: no token for {unknown[0]!r}"
            )
        return list(self._processor.encode(text, add_special_tokens=False).ids)

    def token_id(self, token: str) -> int | None:
        found = self._processor.token_to_id(token)
        return None if found is None else int(found)

    def token_bytes(self, token_id: int) -> bytes:
        token = self._processor.id_to_token(token_id) if token_id >= 0 else None
        if token is None or token_id in self._special:
            return b""
        if self._decoding.byte_level and token_id not in self._added:
            return _byte_level_bytes(token)
        return _piece_bytes(token, self._decoding)


def _read_processor(path: Path, data: bytes) -> "Processor":
    from tokenizers import Tokenizer as Processor

    try:
        return Processor.from_buffer(data)  # a path would have to be UTF-8
    except Exception as exc:  # the library raises nothing more specific
        raise CheckpointError(f"{path}: not a tokenizer ({one_line(exc)})") from exc


def _read_decoding(path: Path, decoder: Any) -> _Decoding:
    """Interpret the `decoder` of a tokenizer.json; `CheckpointError` for kinds no known model uses."""
    if decoder is None:  # tokens are words, joined by spaces
        return _Decoding(before_token=" ", drops_leading_space=True)
    # The library shows a decoder's settings only as its pickled state, which is JSON; reading them
    # from the file again would parse megabytes of vocabulary for them.
    steps = list(_flat_steps(json.loads(decoder.__getstate__())))
    kinds = {step["type"] for step in steps}
    if unknown := kinds - {"ByteLevel", "ByteFallback", "Fuse", "Replace", "Metaspace", "Strip"}:
        raise CheckpointError(f"{path}: its decoder {min(unknown)} is not supported")
    return _Decoding(
        byte_level="ByteLevel" in kinds,
        byte_fallback="ByteFallback" in kinds,
        replacements=tuple(_replacement(path, s) for s in steps if s["type"] in ("Replace", "Metaspace")),
        drops_leading_space=any(_drops_space(path, step) for step in steps),
    )


def _only_characters(processor: "Processor", decoding: _Decoding) -> frozenset[str] | None:
    """All that a vocabulary of single characters can encode, as others are left out in silence; None for any other."""
    if decoding != _Decoding() or (tokens := processor.get_vocab()).keys() == set():
        return None
    return frozenset(tokens) if all(len(token) == 1 for token in tokens) else None


def _flat_steps(step: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if step["type"] != "Sequence":
        yield step
    for inner in step.get("decoders", ()):
        yield from _flat_steps(inner)


def _replacement(path: Path, step: dict[str, Any]) -> tuple[str, str]:
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    pattern = step["pattern"].get("String")
    if pattern is None:
        raise CheckpointError(f"{path}: its decoder replaces by a regular expression, which is not supported")
    return pattern, step["content"]


def _drops_space(path: Path, step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True))
    if step["type"] != "Strip":
        return False
    if (step["content"], step["stop"]) != (" ", 0) or step["start"] > 1:
        raise CheckpointError(f"{path}: its decoder strips more than one leading space: not supported")
    return bool(step["start"])


_BYTE_OF = byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[char] for char in token)
    except KeyError:  # a word put into the vocabulary as it is
        return token.encode("utf-8")


def _piece_bytes(token: str, decoding: _Decoding) -> bytes:
    if decoding.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
        return bytes.fromhex(match[1])
    for old, new in decoding.replacements:
        token = token.replace(old, new)
    return (decoding.before_token + token).encode("utf-8")


# --- tokenizer.model ---


class _Llama3:
    """Meta's own Llama 3 file, a line `<base64 of the token> <rank>` for each token, through tiktoken."""

    drops_leading_space = False

    def __init__(self, path: Path, data: bytes) -> None:
        import tiktoken

        ranks = _read_ranks(path, data)
        self._n_ranks = len(ranks)
        self._specials = _llama3_specials(self._n_ranks)
        self._encoding = tiktoken.Encoding(
            path.name, pat_str=LLAMA3_WORDS, mergeable_ranks=ranks, special_tokens=self._specials
        )
        self.vocab_size = self.n_ids = self._n_ranks + _N_LLAMA3_SPECIALS
        self.bos_id: int | None = self._specials["<|begin_of_text|>"]
        self.eos_id: int | None = self._specials["<|end_of_text|>"]
        self.prefix: tuple[int, ...] = (self._specials["<|begin_of_text|>"],)

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode(text, allowed_special="all")

    def token_id(self, token: str) -> int | None:
        if token in self._specials:
            return self._specials[token]
        try:
            return self._encoding.encode_single_token(token)
        except KeyError:
            return None

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self._n_ranks:
            return b""
        return self._encoding.decode_single_token_bytes(token_id)


def _read_ranks(path: Path, data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines()):
        match = _LLAMA3_LINE.fullmatch(line)
        if match is None or int(match[2]) != number:
            raise CheckpointError(f"{path}: line {number + 1} is damaged")
        try:
            ranks[base64.b64decode(match[1], validate=True)] = number
        except binascii.Error as exc:
            raise CheckpointError(f"{path}: line {number + 1} is damaged ({exc})") from exc
    if len(ranks) != number + 1 or any(bytes([byte]) not in ranks for byte in range(256)):
        raise CheckpointError(f"{path}: incomplete: a token occurs twice, or a single byte has none")
    return ranks


def _llama3_specials(first_id: int) -> dict[str, int]:
    reserves = (f"<|reserved_special_token_{i}|>" for i in range(_N_LLAMA3_SPECIALS))
    return {
        _LLAMA3_SPECIALS[place] if place in _LLAMA3_SPECIALS else next(reserves): first_id + place
        for place in range(_N_LLAMA3_SPECIALS)
    }


class _SentencePiece:
    """A SentencePiece model such as Llama 2's."""

    def __init__(self, path: Path, data: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        if not data:
            raise CheckpointError(f"{path}: the file is empty")
        try:
            processor = SentencePieceProcessor(model_proto=data)
        except (RuntimeError, OSError, ValueError) as exc:
            raise CheckpointError(f"{path}: neither a Llama 3 nor a SentencePiece vocabulary") from exc
        self._processor: Any = processor
        self.vocab_size = self.n_ids = int(processor.vocab_size())
        self.bos_id = _valid_id(processor.bos_id())
        self.eos_id = _valid_id(processor.eos_id())
        self.prefix: tuple[int, ...] = () if self.bos_id is None else (self.bos_id,)
        self.drops_leading_space = processor.encode("a", out_type=str)[:1] != ["a"]
        self._controls = {processor.id_to_piece(i): i for i in range(self.vocab_size) if processor.is_control(i)}
        names = sorted(self._controls, key=len, reverse=True)
        self._control_names = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None

    def encode(self, text: str) -> list[int]:
        # The library takes the name of a control token for plain text, so those are cut out first.
        parts = self._control_names.split(text) if self._control_names else [text]
        ids: list[int] = []
        for part in parts:
            ids += [self._controls[part]] if part in self._controls else self._processor.encode(part)
        return ids

    def token_id(self, token: str) -> int | None:
        found = int(self._processor.piece_to_id(token))
        return found if self._processor.id_to_piece(found) == token else None

    def token_bytes(self, token_id: int) -> bytes:
        processor = self._processor
        if not 0 <= token_id < self.vocab_size or processor.is_control(token_id):
            return b""
        if processor.is_unknown(token_id) or processor.is_unused(token_id):
            return b""
        piece: str = processor.id_to_piece(token_id)
        if processor.is_byte(token_id):
            return bytes.fromhex(piece[3:5])
        return piece.replace("\u2581", " ").encode("utf-8")


def _valid_id(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None
