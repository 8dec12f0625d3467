"""Text that is shown as its tokens arrive."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdi.text.stream import TextStream
from mdi.text.tokenizer import Tokenizer
from support.vocabularies import ALL_KINDS, shared_tokenizer, texts


class CountingBackend:
    """Four tokens, two of them half a character; counts how often a token is looked at."""

    vocab_size = n_ids = 4
    bos_id: int | None = None
    eos_id: int | None = None
    prefix: tuple[int, ...] = ()
    drops_leading_space = True

    def __init__(self) -> None:
        self.n_calls = 0

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def token_id(self, token: str) -> int | None:
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        self.n_calls += 1
        return (b" a", b"\xe2\x9c", b"\x93", b"z")[token_id]


def stream(**options: Any) -> TextStream:
    return TextStream(Tokenizer(CountingBackend()), **options)


def test_half_a_character_waits_for_its_other_half() -> None:
    text = stream()
    assert [text.push([i]) for i in (0, 1, 2, 1)] == [" a", "", "✓", ""]
    assert text.finish() == "\ufffd"


def test_several_tokens_may_come_at_once_or_none() -> None:
    text = stream()
    assert [text.push(ids) for ids in ([0, 1], [], [2, 3])] == [" a", "", "✓z"]
    assert text.finish() == ""


def test_the_space_before_the_first_word_is_dropped_only_where_nothing_stands_before() -> None:
    alone = stream(continues=False)
    assert [alone.push([0]), alone.push([0]), alone.finish()] == ["a", " a", ""]
    assert stream(continues=True).push([0]) == " a"


def test_each_token_is_looked_at_once() -> None:
    backend = CountingBackend()
    text = TextStream(Tokenizer(backend))
    for _ in range(300):
        text.push([3])
        text.push([0])
    text.finish()
    assert backend.n_calls == 600


def streamed(tokenizer: Tokenizer, parts: list[list[int]], *, continues: bool) -> str:
    text = TextStream(tokenizer, continues=continues)
    return "".join(map(text.push, parts)) + text.finish()


@pytest.mark.slow
@ALL_KINDS
@given(data=st.data(), continues=st.booleans())
@settings(deadline=None, max_examples=150)
def test_what_was_shown_is_the_decoded_text(kind: str, data: st.DataObject, continues: bool) -> None:
    tokenizer = shared_tokenizer(kind)
    # Mostly bytes of unfinished characters.
    some = [i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1][::23]
    token = st.sampled_from(some) | st.integers(0, tokenizer.vocab_size + 3)
    parts = data.draw(st.lists(st.lists(token, max_size=4), max_size=12))
    ids = [token_id for part in parts for token_id in part]
    assert streamed(tokenizer, parts, continues=continues) == tokenizer.decode(ids, continues=continues)


@ALL_KINDS
@given(text=texts)
@settings(deadline=None)
def test_a_streamed_text_is_the_text(kind: str, text: str) -> None:
    tokenizer = shared_tokenizer(kind)
    assert streamed(tokenizer, [[i] for i in tokenizer.encode(text)], continues=False) == text


def test_special_tokens_may_be_text() -> None:
    tokenizer = shared_tokenizer("byte-level")
    special = tokenizer.token_id("<|im_end|>")
    assert special is not None
    ids = [*tokenizer.encode("a ring"), special]
    assert TextStream(tokenizer).push(ids) == "a ring"
    assert TextStream(tokenizer, names={special: b"</tool_call>"}).push(ids) == "a ring</tool_call>"
