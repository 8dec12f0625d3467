"""Somebody on the path between two nodes, who knows the protocol and not the key."""

import enum
import struct
import threading
import zlib
from collections.abc import Callable

HEADER_BYTES, TAG_BYTES = 32, 16
ACTIVATION, PROOF = 4, 10
SIGN_BIT = 0x80


class Forgery(enum.Enum):
    """What becomes of the frame that is struck."""

    ROWS = "other rows"
    REPEAT = "sent twice"
    MOVE = "sent behind the next frame"
    DROP = "left out"


class Forger:
    """Makes the rewriters of a relay. Once armed, it forges the next ACTIVATION of any connection."""

    def __init__(self) -> None:
        self._armed: Forgery | None = None
        self.struck = threading.Event()

    def arm(self, forgery: Forgery) -> None:
        self.struck.clear()
        self._armed = forgery

    def rewriter(self) -> Callable[[bytes], bytes]:
        """For one connection, from its first byte on."""
        waiting, head_bytes, held = b"", HEADER_BYTES, b""

        def rewrite(data: bytes) -> bytes:
            nonlocal waiting, head_bytes, held
            waiting, out = waiting + data, b""
            while frame := _first_frame(waiting, head_bytes):
                waiting = waiting[len(frame) :]
                if frame[5] == PROOF and len(frame) > HEADER_BYTES:
                    head_bytes = HEADER_BYTES + TAG_BYTES
                forgery = self._take(frame)
                now, later = _forged(frame, forgery, head_bytes)
                out, held = out + now + held, later
            return out

        return rewrite

    def _take(self, frame: bytes) -> Forgery | None:
        if self._armed is None or frame[5] != ACTIVATION:
            return None
        forgery, self._armed = self._armed, None
        self.struck.set()
        return forgery


def _first_frame(data: bytes, head_bytes: int) -> bytes:
    """Empty while it is not complete."""
    if len(data) < head_bytes:
        return b""
    n_bytes = head_bytes + int.from_bytes(data[20:24], "little")
    return data[:n_bytes] if len(data) >= n_bytes else b""


def _forged(frame: bytes, forgery: Forgery | None, head_bytes: int) -> tuple[bytes, bytes]:
    """What goes on now, and what goes behind the next frame."""
    match forgery:
        case Forgery.ROWS:
            return _with_other_rows(frame, head_bytes), b""
        case Forgery.REPEAT:
            return frame + frame, b""
        case Forgery.MOVE:
            return b"", frame
        case Forgery.DROP:
            return b"", b""
    return frame, b""


def _with_other_rows(frame: bytes, head_bytes: int) -> bytes:
    """The sign of every value is another one, and the checksums are right."""
    rows_at = head_bytes + 16 * int.from_bytes(frame[16:20], "little")
    rows = bytes(byte ^ SIGN_BIT if i % 4 == 3 else byte for i, byte in enumerate(frame[rows_at:]))
    body = frame[head_bytes:rows_at] + rows
    header = frame[:24] + struct.pack("<I", zlib.crc32(body) if head_bytes == HEADER_BYTES else 0)
    return header + struct.pack("<I", zlib.crc32(header)) + frame[HEADER_BYTES:head_bytes] + body
