"""The tokenizer of a model that nanoGPT or the published program trained -> tokenizer.json.

A checkpoint has none. It lies beside it, or in the folder above, with the data that the model was trained on:

    tokenizer.json               any tokenizer
    meta.json, meta.pkl          characters: in `stoi`, character -> id
    encoder.json and merges.bpe  the published program's byte pairs: ids below 256 are bytes

Where there is none of them and the vocabulary has the size of GPT-2's, it is GPT-2's, which tiktoken fetches.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdi.checkpoint.pickles import Damaged, load_pickle
from mdi.documents import Fields, read_document, read_json, read_text
from mdi.errors import CheckpointError
from mdi.files import write_text
from mdi.strings import one_line
from mdi.text.byte_level import GPT2_WORDS, byte_alphabet, byte_level_tokenizer
from mdi.text.character_level import character_tokenizer

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
N_GPT2, N_GPT2_PADDED = 50257, 50304  # nanoGPT fills the vocabulary up to a multiple of 64
END_OF_TEXT = "<|endoftext|>"


def write_tokenizer(source: Path, folder: Path, n_vocab: int) -> None:
    """Write tokenizer.json into `folder` for the model in `source`, which has `n_vocab` tokens.

    Says so where there is none: the model can be split, but not asked. Raises `CheckpointError` for a file that is
    damaged, or whose tokens are not the model's.
    """
    if (found := _beside(source, n_vocab)) is None and n_vocab in (N_GPT2, N_GPT2_PADDED):
        found = gpt2_tokenizer()
    if found is None:
        log.warning(
            "%s: no meta.pkl or tokenizer.json lies beside it; put tokenizer.json into %s to ask the model",
            source,
            folder,
        )
        return
    write_text(folder / "tokenizer.json", found)


def _beside(source: Path, n_vocab: int) -> str | None:
    for place in (source.resolve().parent, source.resolve().parent.parent):
        if (path := place / "tokenizer.json").is_file():
            return read_text(path, MAX_BYTES, CheckpointError)
        for path in (place / "meta.json", place / "meta.pkl"):
            if path.is_file():
                return _characters(path, n_vocab)
        if (place / "encoder.json").is_file() and (place / "merges.bpe").is_file():
            return _published_pairs(place / "merges.bpe", n_vocab)
    return None


def _characters(path: Path, n_vocab: int) -> str:
    """A pickle is taken apart as data, and nothing that it names is called."""
    if path.suffix == ".json":
        values = read_json(path, MAX_BYTES, CheckpointError)
    else:
        try:
            values = load_pickle(read_document(path, MAX_BYTES, CheckpointError))
        except Damaged as exc:
            raise CheckpointError(f"{path}: damaged, or more than plain values: {exc}") from exc
    ids = Fields(values, str(path), CheckpointError).get("stoi", _are_ids, "ids by character")
    _check_size(path, len(ids), n_vocab)
    try:
        return character_tokenizer(ids)
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc


def _are_ids(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and type(id_) is int for key, id_ in value.items())


def _check_size(path: Path, n_tokens: int, n_vocab: int) -> None:
    if n_tokens > n_vocab:
        raise CheckpointError(f"{path} has {n_tokens} tokens, the model {n_vocab}: is it another model's?")


def _published_pairs(path: Path, n_vocab: int) -> str:
    """Lines `first second id`, of ids: those below 256 are bytes, the others pairs in the order of their merging."""
    tokens = [bytes([byte]) for byte in range(256)]
    merges = []
    for line in read_text(path, MAX_BYTES, CheckpointError).split("\n"):
        if not line:
            continue
        numbers = [int(word) for word in line.split() if word.isascii() and word.isdecimal() and len(word) < 8]
        if len(numbers) != 3 or numbers[2] != len(tokens) or max(numbers[:2]) >= len(tokens):
            raise CheckpointError(f"{path}: damaged: {one_line(line, 60)!r} is no pair of earlier tokens")
        merges.append((tokens[numbers[0]], tokens[numbers[1]]))
        tokens.append(b"".join(merges[-1]))
    _check_size(path, len(tokens), n_vocab)
    return byte_pair_tokenizer(tokens, merges, words=rf"(?i:{GPT2_WORDS})")


def gpt2_tokenizer() -> str | None:
    """GPT-2's tokenizer; None where it cannot be had here."""
    import tiktoken

    try:
        encoding = tiktoken.get_encoding("gpt2")
    except (
        OSError,
        ValueError,
    ) as exc:  # no network (the errors of requests are `OSError`s), or other bytes than expected
        log.warning("tiktoken cannot fetch GPT-2's vocabulary (%s)", one_line(exc, 100))
        return None
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    return byte_pair_tokenizer(tokens, merges_of(tokens), words=GPT2_WORDS, special=(END_OF_TEXT,))


def merges_of(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The pair that each token was merged from: what its bytes are merged to by all tokens before it."""
    ids = {token: i for i, token in enumerate(tokens)}
    merges = []
    for i, token in enumerate(tokens):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            best = min(range(len(parts) - 1), key=lambda k: ids.get(parts[k] + parts[k + 1], i))
            if ids.get(parts[best] + parts[best + 1], i) >= i:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def byte_pair_tokenizer(
    tokens: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]], *, words: str, special: Sequence[str] = ()
) -> str:
    """tokenizer.json of byte-level BPE: tokens by id, the pairs that are merged in this order, and special tokens.

    `words` is the pattern that cuts a text into what is merged on its own.
    """
    from tokenizers import AddedToken, models

    character = {byte: char for char, byte in byte_alphabet().items()}

    def written(token: bytes) -> str:
        return "".join(character[byte] for byte in token)

    vocab: Mapping[str, int] = {written(token): i for i, token in enumerate(tokens)}
    pairs = [(written(first), written(second)) for first, second in merges]
    tokenizer = byte_level_tokenizer(models.BPE(vocab=dict(vocab), merges=pairs), [words])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return str(tokenizer.to_str())
