"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) from bytes. Sans-I/O."""

from collections.abc import Iterator

MAX_EVENT_BYTES = 1 << 20


class EventTooLarge(Exception):
    """An event of more than `MAX_EVENT_BYTES`, or a line that does not end."""


class EventParser:
    """The data of events, as their bytes arrive. Names and ids are dropped: all that counts is in the data."""

    def __init__(self) -> None:
        self._rest = b""  # an unfinished line
        self._data: list[bytes] = []  # of the unfinished event
        self._n_bytes = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of each event that `piece` completes. Raises `EventTooLarge`."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in (ended.removesuffix(b"\r") for ended in lines):
            if not line and self._data:
                yield b"\n".join(self._data)
                self._data, self._n_bytes = [], 0
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._n_bytes += len(line)
            self._check()
        self._check()

    def _check(self) -> None:
        if self._n_bytes + len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event of more than {MAX_EVENT_BYTES} bytes")
