"""Token ids -> text as they come."""

import codecs
from collections.abc import Iterable

from mdi.text.stops import StopSequences, match_stop, partial_match_length
from mdi.text.tokenizer import Tokenizer


class TextStream:
    """The text of one sample, token by token.

    What is shown is complete UTF-8 and cannot turn out to be part of a stop sequence. All that was shown,
    joined, is `tokenizer.decode(kept, continues=continues)`, where `kept` lacks the stop sequence.
    """

    def __init__(self, tokenizer: Tokenizer, stops: StopSequences, *, continues: bool = True) -> None:
        """`continues` says that the sample goes on from a text, so that a leading space belongs to it."""
        self._tokenizer = tokenizer
        self._stops = stops
        self._held: list[int] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer.drops_leading_space and not continues
        self._is_finished = False

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that can be shown now, often empty."""
        assert not self._is_finished, "push after finish"
        self._held.append(token_id)
        n_held = max(match_stop(self._held, self._stops), partial_match_length(self._held, self._stops))
        n_free = len(self._held) - n_held
        free, self._held = self._held[:n_free], self._held[n_free:]
        return self._text(free)

    def finish(self, *, stopped: bool) -> str:
        """The rest of the text. `stopped` says that the tokens end with a stop sequence, which is dropped."""
        assert not self._is_finished, "finish called twice"
        self._is_finished = True
        n_kept = len(self._held) - (match_stop(self._held, self._stops) if stopped else 0)
        return self._text(self._held[:n_kept], final=True)

    def _text(self, ids: Iterable[int], *, final: bool = False) -> str:
        text = self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, ids)), final)
        if text and self._drop_space:
            self._drop_space = False
            return text.removeprefix(" ")
        return text
