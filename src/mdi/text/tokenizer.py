"""Text <-> token ids, whichever file the model keeps its vocabulary in.

Every backend says which bytes each token stands for; decoding joins bytes and reads them as UTF-8.
That makes a token's bytes independent of its neighbours, so that a stream costs the same for every token
and shows exactly what decoding the whole would show.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mdi.errors import CheckpointError
from mdi.files import read_bytes
from mdi.strings import one_line
from mdi.text.vocabulary import Backend, load_vocabulary

log = logging.getLogger(__name__)


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
        self.vocab_size = backend.vocab_size
        # SentencePiece puts a space before the first word of a text, which decoding takes away again.
        self.drops_leading_space = backend.drops_leading_space
        self._prefix = self._choose_prefix(add_bos)

    def _choose_prefix(self, add_bos: bool | None) -> list[int]:
        if add_bos is False:
            return []
        if add_bos and self.bos_id is not None:
            return [self.bos_id]
        return list(self._backend.prefix)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, begun with the model's BOS where it wants one and `text` has none of its own."""
        ids = self._backend.encode(text)
        has_bos = bool(ids) and ids[0] in (self.bos_id, *self._prefix[:1])
        return ids if has_bos else self._prefix + ids

    def decode(self, ids: Iterable[int], *, continues: bool = False) -> str:
        """The text of `ids` without special tokens; bytes that are not UTF-8 become U+FFFD.

        `continues` says that other text stands before it, so a leading space belongs to it.
        """
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.drops_leading_space and not continues else text

    def token_id(self, token: str) -> int | None:
        """The id of exactly this token, or None where the vocabulary lacks it."""
        return self._backend.token_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token stands for; none for special tokens and for ids beyond the vocabulary."""
        return self._backend.token_bytes(token_id)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises `CheckpointError` naming the missing or damaged file.

    BOS is added as `add_bos_token` of tokenizer_config.json says; without it, as the vocabulary
    file's own post-processor does; always for a tokenizer.model.
    """
    config = read_tokenizer_config(folder)
    backend = load_vocabulary(folder)
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
        token_id = next(iter(generation_ids(folder, f"{kind}_token_id")), None)
    return token_id


# --- configuration files beside the vocabulary ---


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty where there is none. Raises `CheckpointError` if it is damaged."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(read_bytes(path))
    except ValueError as exc:
        raise CheckpointError(f"{path}: not valid JSON ({one_line(exc)})") from exc
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: a JSON object is expected")
    return config


def token_text(value: object) -> str | None:
    """A token as configuration files write it: a string, or an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def generation_ids(folder: Path, key: str) -> tuple[int, ...]:
    """The token ids under `key` of generation_config.json, written there as a number or as a list.

    A file that cannot be understood is ignored with a warning in the log.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return ()
    try:
        value = _lenient_json(read_bytes(path).decode("utf-8")).get(key)
    except ValueError as exc:
        log.warning("%s is ignored: not valid JSON (%s)", path, one_line(exc))
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)


def _lenient_json(text: str) -> dict[str, Any]:
    """A JSON object, commas missing at line ends or left over before a bracket forgiven.

    Llama 3.2 was published with such a generation_config.json. Raises `ValueError`.
    """
    try:
        value = json.loads(text)
    except ValueError:
        text = re.sub(r",(?=\s*[}\]])", "", text)
        value = json.loads(re.sub(r'(?<=[\w"}\]])(?=[^\S\n]*\n\s*")', ",", text))
    if not isinstance(value, dict):
        raise ValueError("a JSON object is expected")
    return value
