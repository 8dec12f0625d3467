"""The tokenizer of the texts that a model is trained on: made from the texts themselves, or taken from a model."""

import json
from collections.abc import Iterable
from pathlib import Path

from mdi.convert.nanogpt_tokenizer import END_OF_TEXT, gpt2_tokenizer
from mdi.convert.text_files import copy_text_files
from mdi.errors import ConfigError
from mdi.files import write_text
from mdi.text.byte_level import GPT2_WORDS, byte_level_tokenizer
from mdi.text.character_level import character_tokenizer

DEFAULT_VOCABULARY = 1000  # tokens of a byte-pair vocabulary


def write_vocabulary(wanted: str, n_tokens: int | None, texts: Iterable[str], folder: Path) -> None:
    """Write the tokenizer's files into `folder`.

    `wanted` is `character`, `bpe` or `gpt2`, or the folder of a model; `n_tokens` the size of a byte-pair vocabulary.
    `texts` are only read where the tokenizer is made from them. Raises `ConfigError`, `CheckpointError`,
    `StorageError`.
    """
    match wanted:
        case "character":
            characters = sorted(set().union(*texts))
            write_text(folder / "tokenizer.json", character_tokenizer({char: i for i, char in enumerate(characters)}))
        case "bpe":
            write_text(folder / "tokenizer.json", train_byte_pairs(texts, n_tokens or DEFAULT_VOCABULARY))
            _write_end_of_text(folder)
        case "gpt2":
            if (tokenizer := gpt2_tokenizer()) is None:
                raise ConfigError("--tokenizer gpt2: cannot be fetched; name a folder with GPT-2's tokenizer.json")
            write_text(folder / "tokenizer.json", tokenizer)
            _write_end_of_text(folder)
        case _:
            copy_text_files(Path(wanted), folder)


def train_byte_pairs(texts: Iterable[str], n_tokens: int) -> str:
    """tokenizer.json of a byte-level BPE vocabulary with at most `n_tokens` tokens, 257 of which need no merging."""
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = byte_level_tokenizer(models.BPE(), [GPT2_WORDS])
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def _write_end_of_text(folder: Path) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
    write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
