"""Server-sent events: whole, byte by byte, with what may stand between them, and without end."""

import pytest

from mdi.cli.chat.events import MAX_EVENT_BYTES, EventParser, EventTooLarge

STREAM = b'event: message\ndata: {"a": 1}\n\n:\n\n\ndata:two\r\ndata: lines\r\nid: 7\r\n\r\ndata: unfinished\n'
EVENTS = [b'{"a": 1}', b"two\nlines"]


@pytest.mark.parametrize("size", [1, 2, 7, len(STREAM)])
def test_events_are_found_however_their_bytes_arrive(size: int) -> None:
    parser = EventParser()
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


def test_an_event_ends_at_its_empty_line_alone() -> None:
    parser = EventParser()
    list(parser.feed(STREAM))
    assert list(parser.feed(b"\n")) == [b"unfinished"]


@pytest.mark.parametrize("line", [b"data: " + b"x" * 1000 + b"\n", b"x" * 1000, b"data: x" + b"x" * 1000])
def test_an_event_without_end_is_refused(line: bytes) -> None:
    parser = EventParser()
    endless = (event for _ in range(MAX_EVENT_BYTES // 1000 + 1) for event in parser.feed(line))
    with pytest.raises(EventTooLarge, match=f"more than {MAX_EVENT_BYTES} bytes"):
        list(endless)
