"""One constrained answer, in a process of its own: the tokens so far -> which tokens may follow.

The process is a copy of the text worker, which has read the vocabulary: it costs a few milliseconds, and whatever a
grammar makes of the library that reads it ends this one answer. The next tokens are computed before they are asked for.
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdi.strings import one_line
from mdi.text.frames import MAX_ERROR_CHARS, Frame, receive_frame, send_frame
from mdi.text.grammars import MAX_SCHEMA_BYTES
from mdi.text.vocabulary import Backend
from mdi.text.worker_limits import limits

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_TOKEN_BYTES = 1000  # the library takes no longer ones
_LINE_BREAK = "\n"  # put before a text, so that its first word gets no space of the vocabulary's own


@dataclass(frozen=True)
class MatchLimits:
    """What a grammar may take. The library's own bounds end a step after some 20 ms, and these where it does not."""

    read_s: float = 10.0
    step_s: float = 3.0
    max_items: int = 20_000  # of the parser, in one step
    max_lexer_states: int = 50_000  # of some 2 KB each
    max_lexer_fuel: int = 100_000  # in one step: 7 ms


def mask_bytes(n_ids: int) -> int:
    """Of a mask with a bit for each token."""
    return -(-n_ids // 8)


def library_tokenizer(vocabulary: Backend, stop_ids: Sequence[int]) -> "LLTokenizer":
    """The vocabulary as the library takes it. `stop_ids` end an answer, and are no text in it."""
    from llguidance import LLTokenizer, TokenizerWrapper

    ours = _Vocabulary(vocabulary, stop_ids)
    tokenizer = LLTokenizer(TokenizerWrapper(ours), eos_token=list(stop_ids))
    ours.longest_tokens = tokenizer.greedy_tokenize
    return tokenizer


class _Vocabulary:
    """A vocabulary with the names that the library asks for."""

    bos_token_id = None
    special_token_ids = ()

    def __init__(self, vocabulary: Backend, stop_ids: Sequence[int]) -> None:
        self._vocabulary, self.eos_token_id = vocabulary, stop_ids[0]
        self.tokens = [_usable(vocabulary.token_bytes(token_id)) for token_id in range(vocabulary.n_ids)]
        for token_id in stop_ids:
            self.tokens[token_id] = b""
        self.longest_tokens: Callable[[str], list[int]] = lambda text: []

    def __call__(self, data: bytes) -> list[int]:
        """The ids of what a grammar leaves no choice about: those that the model was trained on, if they are its bytes.

        They are not where a special token's name is text, or where a space is put before the first word.
        """
        text = data.decode("utf-8")
        for start in ("", _LINE_BREAK):
            ids = self._vocabulary.encode(start + text)
            for n in range(min(len(ids), 3) + 1):
                if self._bytes(ids[:n]).removeprefix(b" ") == start.encode() and self._bytes(ids[n:]) == data:
                    return ids[n:]
        return self.longest_tokens(text)

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens[token_id] for token_id in ids)


def _usable(token: bytes) -> bytes:
    """A token as the library takes it: it may mark one by a first byte that no text has."""
    return b"" if len(token) > MAX_TOKEN_BYTES or token[:1] == b"\xff" else token


def serve_matches(channel: socket.socket, tokenizer: "LLTokenizer") -> None:
    """Take a grammar, then token after token; answer each with the mask of those that may follow.

    Ends with the other end of the channel. A grammar or a token that is refused is answered with an error.
    """
    request = receive_frame(channel, MAX_SCHEMA_BYTES)
    memory_bytes, allowed = request.header["memory_bytes"], MatchLimits(**request.header["limits"])
    with limits(allowed.read_s, memory_bytes):
        matcher = _matcher(tokenizer, request.payload.decode("utf-8"), allowed)
    while True:
        with limits(allowed.step_s, memory_bytes):
            answer = _answer(matcher, mask_bytes(tokenizer.vocab_size))
        send_frame(channel, answer)
        token: int = receive_frame(channel, 0).header["token"]
        with limits(allowed.step_s, memory_bytes):
            matcher.consume_token(token)


def _matcher(tokenizer: "LLTokenizer", grammar: str, allowed: MatchLimits) -> "LLMatcher":
    from llguidance import LLMatcher, LLParserLimits

    library_limits = LLParserLimits(
        step_lexer_fuel=allowed.max_lexer_fuel,
        step_max_items=allowed.max_items,
        max_lexer_states=allowed.max_lexer_states,
        verbose_errors=False,
    )
    return LLMatcher(tokenizer, grammar, log_level=0, limits=library_limits)


def _answer(matcher: "LLMatcher", n_bytes: int) -> Frame:
    mask = matcher.compute_bitmask()[:n_bytes]
    if matcher.is_error():
        return Frame({"error": one_line(matcher.get_error().removesuffix("<non-verbose/>"), MAX_ERROR_CHARS)})
    if matcher.stop_reason() not in ("NotStopped", "EndOfSentence", "NoExtension"):
        return Frame({"error": f"no token may follow ({matcher.stop_reason()})"})
    return Frame({}, mask)
