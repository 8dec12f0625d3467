"""Frames between a program and its text worker."""

import json
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from mdi.text.frames import MAX_HEADER_BYTES, Frame, FrameError, FrameTooLarge, receive_frame, send_frame

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def raw(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<II", len(header), len(payload)) + header + payload


def test_a_frame_arrives_as_it_was_sent(ends: Ends) -> None:
    frame = Frame({"folder": "m\udcff\u00e9", "n": None}, bytes(range(256)))
    send_frame(ends[0], frame)
    assert receive_frame(ends[1], 256) == frame


@pytest.mark.parametrize(
    "data",
    [raw(b"{"), raw(b"\xff"), raw(b"[]"), raw(b"7"), raw(b"[" * MAX_HEADER_BYTES), raw(b"")],
    ids=["cut off", "not UTF-8", "a list", "a number", "nested", "empty"],
)
def test_what_is_no_frame_is_an_error(data: bytes, ends: Ends) -> None:
    ends[0].sendall(data)
    with pytest.raises(FrameError):
        receive_frame(ends[1], 100)


@pytest.mark.parametrize("lengths", [(MAX_HEADER_BYTES + 1, 0), (2, 101), (2, (1 << 32) - 1)])
def test_a_length_is_refused_before_its_bytes_come(lengths: tuple[int, int], ends: Ends) -> None:
    ends[0].sendall(struct.pack("<II", *lengths))
    with pytest.raises(FrameTooLarge):
        receive_frame(ends[1], 100)


@pytest.mark.parametrize("n_bytes", [0, 7, 9, 20])
def test_a_closed_end_is_an_end_of_file(n_bytes: int, ends: Ends) -> None:
    ends[0].sendall(raw(b'{"a": 1}', bytes(8))[:n_bytes])
    ends[0].close()
    with pytest.raises(EOFError):
        receive_frame(ends[1], 100)


def test_the_deadline_is_that_of_the_whole_frame(ends: Ends) -> None:
    ends[0].sendall(raw(b"{}", bytes(8))[:9])
    with pytest.raises(TimeoutError):
        receive_frame(ends[1], 100, time.monotonic())


@pytest.mark.parametrize("value", ["1", 1.0, True, None, [1]])
def test_a_value_has_exactly_the_type_that_is_asked_for(value: object) -> None:
    frame = Frame(json.loads(json.dumps({"n": value})))
    with pytest.raises(FrameError, match="n is"):
        frame.value("n", int)
    assert frame.value("n", type(value)) == value
