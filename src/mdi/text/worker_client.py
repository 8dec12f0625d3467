"""A model folder's vocabulary and chat template, as the text worker gives them."""

import json
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar, get_args

from mdi.errors import ConfigError
from mdi.strings import format_bytes
from mdi.text.chat_template import ADVICE, template_file
from mdi.text.frames import Frame, FrameError
from mdi.text.tool_calls import ToolFormat
from mdi.text.vocabulary import MAX_IDS, find_vocabulary
from mdi.text.worker_process import Request, TextWorker

Answer = TypeVar("Answer")

MAX_TEXT_BYTES = 1 << 24  # millions of tokens, beyond any model's context

# What an answer may have, in proportion to what was asked. No text has more tokens than bytes, unless its normal form
# is longer: in Unicode 11 times at worst, for one character. Templates add instructions of their own.
_IDS_PER_BYTE, _SPARE_IDS = 16, 1024
_TABLE_PER_FILE_BYTE, _SPARE_TABLE_BYTES = 8, 1 << 20
_RENDERED_PER_BYTE, _SPARE_RENDERED_BYTES = 16, 1 << 20

_ID_BYTES = array("I").itemsize


class WorkerVocabulary:
    """A vocabulary whose file only the worker reads. The bytes of its tokens are here, to decode without asking."""

    def __init__(self, folder: Path, worker: TextWorker) -> None:
        """Raises `CheckpointError` naming the missing or damaged file."""
        self._folder, self._worker = folder, worker
        self._path = find_vocabulary(folder)
        self._file_bytes = self._path.stat().st_size
        max_table_bytes = _TABLE_PER_FILE_BYTE * self._file_bytes + _SPARE_TABLE_BYTES
        self._ask("describe", b"", max_table_bytes, self._read_description)

    def _read_description(self, answer: Frame) -> None:
        self.vocab_size: int = answer.value("vocab_size", int)
        self.n_ids: int = answer.value("n_ids", int)
        if not 0 <= self.vocab_size <= self.n_ids <= MAX_IDS:
            raise FrameError(f"{self.vocab_size} tokens, {self.n_ids} ids")
        self.bos_id, self.eos_id = self._read_id(answer, "bos_id"), self._read_id(answer, "eos_id")
        self.prefix = tuple(map(self._checked_id, answer.value("prefix", list)))
        self.drops_leading_space: bool = answer.value("drops_leading_space", bool)
        self._read_table(answer.payload)

    def _read_table(self, payload: bytes) -> None:
        """The lengths of all tokens, then their bytes."""
        n_bytes = _ID_BYTES * self.n_ids
        if len(payload) < n_bytes:
            raise FrameError("too few lengths of tokens")
        self._bytes = payload[n_bytes:]
        self._starts = array("Q", accumulate(array("I", payload[:n_bytes]), initial=0))
        if self._starts[-1] != len(self._bytes):
            raise FrameError("lengths of tokens that do not fit their bytes")

    def encode(self, text: str) -> list[int]:
        data = encoded(text)
        return self._ask("encode", data, _ID_BYTES * (_IDS_PER_BYTE * len(data) + _SPARE_IDS), self._read_ids)

    def token_id(self, token: str) -> int | None:
        return self._ask("token_id", encoded(token), 0, lambda answer: self._read_id(answer, "token_id"))

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.n_ids:
            return b""
        return self._bytes[self._starts[token_id] : self._starts[token_id + 1]]

    def _read_ids(self, answer: Frame) -> list[int]:
        if len(answer.payload) % _ID_BYTES:
            raise FrameError("part of an id")
        ids = array("I", answer.payload).tolist()
        self._checked_id(max(ids, default=0))
        return ids

    def _read_id(self, answer: Frame, key: str) -> int | None:
        found = answer.value(key, int, type(None))
        return None if found is None else self._checked_id(found)

    def _checked_id(self, token_id: object) -> int:
        if type(token_id) is not int or not 0 <= token_id < max(self.n_ids, 1):
            raise FrameError(f"the id {token_id!r}, of {self.n_ids}")
        return token_id

    def _ask(self, operation: str, payload: bytes, max_bytes: int, read: Callable[[Frame], Answer]) -> Answer:
        request = Request(
            operation,
            self._folder,
            subject=f"{self._path}: the tokenizer",
            advice="prepare the model again, from a source that you trust",
            max_answer_bytes=max_bytes,
            payload=payload,
            vocabulary_bytes=self._file_bytes,
            text_bytes=len(payload),
        )
        return self._worker.ask(request, read)


class WorkerTemplate:
    """A chat template that only the worker compiles and renders."""

    def __init__(self, folder: Path, worker: TextWorker) -> None:
        self._folder, self._worker = folder, worker
        self.tool_format: ToolFormat | None = None  # how the model calls tools, known once it `exists`

    def render(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> str:
        """The text of a conversation, up to where the model is to answer; see `ChatTemplate.render`.

        Raises `CheckpointError` where the template refuses it, or takes more than its limits.
        """
        data = encoded(json.dumps({"messages": list(messages), "tools": list(tools)}, ensure_ascii=False))
        return self._ask("render", data, _RENDERED_PER_BYTE * len(data) + _SPARE_RENDERED_BYTES, _read_text)

    def exists(self) -> bool:
        """Whether the folder has a template. Raises `CheckpointError` where it is damaged."""
        return self._ask("describe_template", b"", 0, self._read_description)

    def _read_description(self, answer: Frame) -> bool:
        kind = answer.value("tool_format", str, type(None))
        if kind is not None and kind not in get_args(ToolFormat):
            raise FrameError(f"tool_format is {kind!r}")
        self.tool_format = kind
        return bool(answer.value("exists", bool))

    def _ask(self, operation: str, payload: bytes, max_bytes: int, read: Callable[[Frame], Answer]) -> Answer:
        request = Request(
            operation,
            self._folder,
            subject=f"{template_file(self._folder)}: the chat template",
            advice=ADVICE,
            max_answer_bytes=max_bytes,
            payload=payload,
            text_bytes=len(payload),
        )
        return self._worker.ask(request, read)


def find_template(folder: Path, worker: TextWorker) -> WorkerTemplate | None:
    """The chat template of a model folder, if it has one. Raises `CheckpointError` where it is damaged."""
    template = WorkerTemplate(folder, worker)
    return template if template.exists() else None


def encoded(text: str) -> bytes:
    """The bytes in which a text goes to the worker. Raises `ConfigError` for one that is too long."""
    data = text.encode("utf-8")
    if len(data) > MAX_TEXT_BYTES:
        raise ConfigError(
            f"a text of {format_bytes(len(data))} is too long: {format_bytes(MAX_TEXT_BYTES)} are allowed"
        )
    return data


def _read_text(answer: Frame) -> str:
    try:
        return answer.payload.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise FrameError("text that is not UTF-8") from exc
