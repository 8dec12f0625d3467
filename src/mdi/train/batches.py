"""Windows of the tokens, drawn at random.

Every micro-batch is a function of the seed, the step and its number within the step. So a run that is resumed sees what
an unbroken one would have seen, and several processes see what one would have seen that accumulates more micro-batches.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mdi.errors import ConfigError
from mdi.progress import progress_bar
from mdi.train.dataset import TRAIN_FILE, VAL_FILE, DatasetInfo, read_tokens

Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and targets, (B, T) each
_BLOCK_TOKENS = 1 << 24  # checked at a time


def seed_of(seed: int, step: int, number: int) -> int:
    """The seed of what is drawn at random for micro-batch `number` of a step."""
    return int(np.random.SeedSequence([seed % 2**64, step, number]).generate_state(1, np.uint64)[0])


class Batches:
    """The tokens of one dataset, as a model with this context and vocabulary takes them."""

    def __init__(self, folder: Path, info: DatasetInfo, *, batch_size: int, context: int, vocab_size: int) -> None:
        """Raises `ConfigError` where the tokens are too few for one window, or too large for the vocabulary.

        All of them are read to find out: on a GPU a token without an embedding would end the process without a word.
        """
        self._batch_size, self._context = batch_size, context
        if info.vocab_size > vocab_size:
            raise ConfigError(f"{folder}: has ids of a vocabulary of {info.vocab_size}, the model one of {vocab_size}")
        self._train = read_tokens(folder / TRAIN_FILE, info.dtype, info.train_tokens)
        self._val = read_tokens(folder / VAL_FILE, info.dtype, info.val_tokens)
        for name, tokens in ((TRAIN_FILE, self._train), (VAL_FILE, self._val)):
            if len(tokens) <= context:
                raise ConfigError(
                    f"{folder / name}: has {len(tokens)} tokens, too few for a context of {context}: use a longer text,"
                    " or a smaller --context-length"
                )
            _check_tokens(folder / name, tokens, vocab_size)

    def draw(self, seed: int, step: int, number: int) -> Batch:
        """Micro-batch `number` of a step."""
        random = np.random.default_rng([seed % 2**64, step, number])
        return self._windows(self._train, random.integers(0, len(self._train) - self._context, self._batch_size))

    def validation(self, n_batches: int) -> Iterator[Batch]:
        """Always the same windows, spread evenly over the tokens for validation."""
        starts = np.linspace(0, len(self._val) - self._context - 1, n_batches * self._batch_size).astype(np.int64)
        for batch in starts.reshape(n_batches, self._batch_size):
            yield self._windows(self._val, batch)

    def _windows(self, tokens: np.ndarray, starts: np.ndarray) -> Batch:
        windows = np.stack([tokens[start : start + self._context + 1] for start in starts]).astype(np.int64)
        rows = torch.from_numpy(windows)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def _check_tokens(path: Path, tokens: np.ndarray, vocab_size: int) -> None:
    with progress_bar(tokens.nbytes, f"checking {path.name}", "B") as advance:
        for start in range(0, len(tokens), _BLOCK_TOKENS):
            block = tokens[start : start + _BLOCK_TOKENS]
            if (largest := int(block.max())) >= vocab_size:
                raise ConfigError(
                    f"{path}: has the token {largest}, where the model knows {vocab_size}: prepare the data again"
                )
            advance(block.nbytes)
