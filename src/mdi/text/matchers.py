"""Constrained answers, as the program that generates them sees them: a copy of the text worker says what may follow."""

import contextlib
import socket
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mdi.errors import ConfigError, GrammarError
from mdi.strings import one_line
from mdi.text.frames import MAX_ERROR_CHARS, Frame, FrameError, receive_frame, send_frame
from mdi.text.matching import MatchLimits, mask_bytes
from mdi.text.tokenizer import Tokenizer
from mdi.text.vocabulary import find_vocabulary
from mdi.text.worker_process import Request, TextWorker

_SPARE_S = 10.0  # for the kernel to end a process that has taken too long


class Matcher:
    """One answer that has to follow a grammar. Used by one thread at a time.

    The process at the other end computes the next mask as soon as it has a token, while the token goes round the ring.
    """

    def __init__(self, channel: socket.socket, n_ids: int, limits: MatchLimits) -> None:
        self._channel, self._mask_bytes, self._limits = channel, mask_bytes(n_ids), limits

    def begin(self, grammar: str, memory_bytes: int) -> None:
        """Have the grammar read. Raises `GrammarError` where it is refused."""
        self._send(Frame({"memory_bytes": memory_bytes, "limits": asdict(self._limits)}, grammar.encode()))
        self._first: bytes | None = self._receive(self._limits.read_s)

    def mask(self) -> bytes:
        """A bit for each token id, the lowest first: whether it may follow. To be asked for once before each token.

        Raises `GrammarError` where none may, or the process has ended.
        """
        first, self._first = self._first, None
        return self._receive(self._limits.step_s) if first is None else first

    def accept(self, token: int) -> None:
        """The token that follows was chosen."""
        self._send(Frame({"token": token}))

    def close(self) -> None:
        """End the process. Idempotent; any thread may call it."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
        self._channel.close()

    def _send(self, frame: Frame) -> None:
        with contextlib.suppress(OSError):  # the other end is gone, and the next answer is missed
            send_frame(self._channel, frame, time.monotonic() + _SPARE_S)

    def _receive(self, seconds: float) -> bytes:
        try:
            answer = receive_frame(self._channel, self._mask_bytes, time.monotonic() + seconds + _SPARE_S)
        except (EOFError, OSError, FrameError) as exc:
            raise GrammarError(f"takes more than {seconds:g} s, or more memory than it may") from exc
        if error := answer.header.get("error"):
            raise GrammarError(one_line(str(error), MAX_ERROR_CHARS))
        if len(answer.payload) != self._mask_bytes:
            raise GrammarError("gives no valid answer")
        return answer.payload


class Matchers:
    """Makes a matcher of a model's vocabulary for each constrained answer."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        stop_ids: Sequence[int],
        worker: TextWorker,
        limits: MatchLimits | None = None,
    ) -> None:
        """`stop_ids` are the tokens that end an answer."""
        self._folder, self._worker, self._n_ids = folder, worker, tokenizer.n_ids
        self._limits = limits or MatchLimits()
        self._path = find_vocabulary(folder)
        self._stop_ids = [token_id for token_id in stop_ids if 0 <= token_id < tokenizer.n_ids]

    def begin(self, grammar: str) -> Matcher:
        """A matcher for one answer; to be closed.

        Raises `GrammarError` for a grammar that is refused, `ConfigError` where the model has no token that ends an
        answer, `ModuleNotFoundError` where llguidance is missing, `CheckpointError`.
        """
        if not self._stop_ids:
            raise ConfigError("this model has no token that ends an answer, so none can be held to a form")
        vocabulary_bytes = self._path.stat().st_size
        memory_bytes = self._worker.memory_bytes(vocabulary_bytes, len(grammar))
        channel, theirs = socket.socketpair()
        matcher = Matcher(channel, self._n_ids, self._limits)
        try:
            with theirs:
                self._worker.ask(self._request(theirs, vocabulary_bytes), lambda answer: None)
            matcher.begin(grammar, memory_bytes)
        except BaseException:
            matcher.close()
            raise
        return matcher

    def _request(self, end: socket.socket, vocabulary_bytes: int) -> Request:
        return Request(
            "match",
            self._folder,
            subject=f"{self._path}: the tokenizer",
            advice="prepare the model again, from a source that you trust",
            max_answer_bytes=0,
            payload=array("I", self._stop_ids).tobytes(),
            vocabulary_bytes=vocabulary_bytes,
            end_of_socket=end,
        )
