"""Frames between a program and its text worker: a small JSON object, and bytes that need no JSON."""

import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

MAX_HEADER_BYTES = 1 << 16  # of the JSON object: a path, some numbers, one line of an error
MAX_ERROR_CHARS = 2000

_LENGTHS = struct.Struct("<II")  # bytes of the JSON object, bytes of the payload


class FrameError(Exception):
    """The other end sent something that is not a frame, or not the answer to what was asked."""


class FrameTooLarge(FrameError):
    """A frame that is larger than was allowed."""


@dataclass(frozen=True)
class Frame:
    """One request or one answer."""

    header: dict[str, Any]
    payload: bytes = b""

    def value(self, key: str, *kinds: type[Any]) -> Any:
        """A value of the header. Raises `FrameError` where its type is none of `kinds`."""
        value = self.header.get(key)
        if type(value) not in kinds:
            raise FrameError(f"{key} is {value!r}")
        return value


def send_frame(sock: socket.socket, frame: Frame, deadline_s: float | None = None) -> None:
    """Send a frame, until `deadline_s` of the monotonic clock. Raises `OSError`."""
    header = json.dumps(frame.header).encode("ascii")  # escapes carry any path, also one that is not UTF-8
    sock.settimeout(_left_s(deadline_s))
    sock.sendall(_LENGTHS.pack(len(header), len(frame.payload)) + header + frame.payload)


def receive_frame(sock: socket.socket, max_payload_bytes: int, deadline_s: float | None = None) -> Frame:
    """The next frame. Its lengths are checked before memory is taken for it.

    Raises `EOFError` where the other end has closed, `FrameError` for anything but a frame, `OSError`.
    """
    n_header, n_payload = _LENGTHS.unpack(_receive(sock, _LENGTHS.size, deadline_s))
    if n_header > MAX_HEADER_BYTES or n_payload > max_payload_bytes:
        raise FrameTooLarge(f"{n_header + n_payload} bytes, {MAX_HEADER_BYTES + max_payload_bytes} at most")
    try:
        header = json.loads(_receive(sock, n_header, deadline_s))
    except (ValueError, RecursionError) as exc:
        raise FrameError("no JSON object") from exc
    if not isinstance(header, dict):
        raise FrameError("no JSON object")
    return Frame(header, bytes(_receive(sock, n_payload, deadline_s)))


def _receive(sock: socket.socket, n_bytes: int, deadline_s: float | None) -> bytearray:
    data = bytearray(n_bytes)
    rest = memoryview(data)
    while rest:
        sock.settimeout(_left_s(deadline_s))
        n_received = sock.recv_into(rest)
        if not n_received:
            raise EOFError
        rest = rest[n_received:]
    return data


def _left_s(deadline_s: float | None) -> float | None:
    """A timeout for a socket; never 0, which would not wait, nor time out."""
    return None if deadline_s is None else max(0.001, deadline_s - time.monotonic())
