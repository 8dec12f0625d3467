"""Tokenizers whose tokens are characters, as a `tokenizer.json`: of models that were trained on one small text."""

from collections.abc import Mapping

from mdi.errors import CheckpointError
from mdi.strings import quoted


def character_tokenizer(ids: Mapping[str, int]) -> str:
    """tokenizer.json of a vocabulary: character -> id, each from 0 on once.

    Raises `CheckpointError` where it is something else.
    """
    from tokenizers import Tokenizer, decoders, models

    if sorted(ids.values()) != list(range(len(ids))):
        raise CheckpointError("the ids of characters do not count from 0")
    if longer := [text for text in ids if len(text) != 1]:
        raise CheckpointError(f"{quoted(longer[0])} is no character")
    tokenizer = Tokenizer(models.BPE(vocab=dict(ids), merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return str(tokenizer.to_str())
