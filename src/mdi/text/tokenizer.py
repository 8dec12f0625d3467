"""Text <-> token ids, whichever file the model keeps its vocabulary in.

Each backend maps a token to bytes; decoding joins the bytes and decodes them as UTF-8. A token's bytes never
depend on its neighbours, so streaming costs the same for every token and gives exactly the text of decoding the whole.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mdi.text.tokenizer_config import read_tokenizer_config, special_ids, token_text
from mdi.text.vocabulary import Backend
from mdi.text.worker_client import WorkerVocabulary
from mdi.text.worker_process import TextWorker


class Tokenizer:
    """A model's tokenizer: its vocabulary and its rule for the token that begins a text."""

    def __init__(
        self,
        backend: Backend,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        add_bos: bool | None = None,
    ) -> None:
        """`bos_id` and `eos_id` override the backend's; `add_bos` None means what the backend does."""
        self._backend = backend
        self.bos_id = backend.bos_id if bos_id is None else bos_id
        self.eos_id = backend.eos_id if eos_id is None else eos_id
        self.vocab_size, self.n_ids = backend.vocab_size, backend.n_ids
        # SentencePiece inserts a space before the first word of a text, which decoding removes.
        self.drops_leading_space = backend.drops_leading_space
        self._prefix = self._choose_prefix(add_bos)

    def _choose_prefix(self, add_bos: bool | None) -> list[int]:
        if add_bos is False:
            return []
        if add_bos and self.bos_id is not None:
            return [self.bos_id]
        return list(self._backend.prefix)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, with BOS in front if the model expects it and `text` does not start with it."""
        ids = self._backend.encode(text)
        has_bos = bool(ids) and ids[0] in (self.bos_id, *self._prefix[:1])
        return ids if has_bos else self._prefix + ids

    def decode(self, ids: Iterable[int], *, continues: bool = False) -> str:
        """The text of `ids` without special tokens; bytes that are not UTF-8 become U+FFFD.

        `continues`: the text continues another one, so a leading space belongs to it.
        """
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.drops_leading_space and not continues else text

    def token_id(self, token: str) -> int | None:
        """The id of exactly this token, or None where the vocabulary lacks it."""
        return self._backend.token_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token stands for; none for special tokens and for ids beyond the vocabulary."""
        return self._backend.token_bytes(token_id)


def load_tokenizer(folder: Path, worker: TextWorker) -> Tokenizer:
    """The tokenizer of a model folder. Raises `CheckpointError` naming the missing or damaged file.

    `worker` reads the vocabulary and encodes texts; decoding needs it no more.
    """
    return tokenizer_for(folder, WorkerVocabulary(folder, worker))


def tokenizer_for(folder: Path, backend: Backend) -> Tokenizer:
    """The tokenizer of a vocabulary, as the configuration files in its folder have it.

    BOS is added as `add_bos_token` of tokenizer_config.json says; without it, as the vocabulary
    file's own post-processor does; always for a tokenizer.model.
    """
    config = read_tokenizer_config(folder)
    add_bos = config.get("add_bos_token")
    return Tokenizer(
        backend,
        bos_id=_special_id(folder, config, backend, "bos"),
        eos_id=_special_id(folder, config, backend, "eos"),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
    )


def _special_id(folder: Path, config: Mapping[str, Any], backend: Backend, kind: str) -> int | None:
    """The id of the model's `bos` or `eos` token by its configuration files, or None."""
    token = token_text(config.get(f"{kind}_token"))
    token_id = None if token is None else backend.token_id(token)
    if token_id is None:
        token_id = next(iter(special_ids(folder, f"{kind}_token_id")), None)
    return token_id
