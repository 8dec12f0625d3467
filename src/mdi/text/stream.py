"""Token ids -> text as they come."""

import codecs
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from mdi.text.tokenizer import Tokenizer


class TextStream:
    """The text of one sample as it grows: its bytes joined, and shown as far as they are complete UTF-8.

    All that was returned, joined, is `tokenizer.decode(ids, continues=continues)`.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, continues: bool = True, names: Mapping[int, bytes] = MappingProxyType({})
    ) -> None:
        """
        Args:
            continues: the sample goes on from a text, so that a leading space belongs to it.
            names: of special tokens that are to be text.
        """
        self._tokenizer, self._names = tokenizer, names
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer.drops_leading_space and not continues

    def push(self, ids: Iterable[int]) -> str:
        """Take the next tokens; return the text that is complete now, often empty."""
        return self._text(ids)

    def finish(self) -> str:
        """The rest of the text: bytes that no token will complete show as replacement characters."""
        return self._text((), final=True)

    def _text(self, ids: Iterable[int], *, final: bool = False) -> str:
        text = self._decoder.decode(b"".join(map(self._bytes, ids)), final)
        if text and self._drop_space:
            self._drop_space = False
            return text.removeprefix(" ")
        return text

    def _bytes(self, token_id: int) -> bytes:
        return self._names.get(token_id) or self._tokenizer.token_bytes(token_id)
