"""Messages <-> bytes, and which message is legal when. Sans-I/O: no socket is touched here.

A frame is a 32-byte header, then a body. All integers are little-endian:

    offset size  field
         0    4  magic b"MDIR"
         4    1  version
         5    1  kind
         6    1  dtype of the rows (0 where there are none)
         7    1  reserved, 0
         8    8  epoch of the session
        16    4  number of segments
        20    4  body length in bytes
        24    4  CRC-32 of the body
        28    4  CRC-32 of the 28 bytes before

In a ring with a key, behind the handshake, a 16-byte MAC of the whole frame follows the header and replaces the CRC-32
of the body, which is 0.

`docs/wire-protocol.md` is the normative description, with an example of every kind.
"""

import enum
import itertools
import json
import struct
import zlib
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

from mdi.documents import parse_json
from mdi.errors import LinkClosed, LocalProtocolError, RemoteProtocolError
from mdi.ids import Rank
from mdi.net.keys import MAC_BYTES, NONCE_BYTES
from mdi.ring.frame_mac import TAG_BYTES, FrameMac
from mdi.ring.messages import Activation, Fault, Goodbye, Hello, Message, Ping, Proof, Refuse, Welcome
from mdi.segments import Fork, Segment, check_segments, kept_rows_of, rows_of

MAGIC = b"MDIR"
VERSION = 4
MAX_TEXT_BYTES = 4096  # of a handshake, a refusal or a fault

_HEADER = struct.Struct("<4sBBBBQIII")
_U32 = struct.Struct("<I")
_SEGMENT = struct.Struct("<IIII")
HEADER_BYTES = _HEADER.size + _U32.size
SEGMENT_BYTES = _SEGMENT.size

DTYPE_CODES = {"float32": 1, "float16": 2, "bfloat16": 3}
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}


class Kind(enum.IntEnum):
    """What a frame carries."""

    HELLO = 1  # predecessor -> successor, first frame of a connection
    WELCOME = 2  # the answer to HELLO
    REFUSE = 3  # the other answer to HELLO, or to WELCOME, with the reason
    ACTIVATION = 4
    FORK = 6
    PING = 7
    FAULT = 8
    GOODBYE = 9
    PROOF = 10  # predecessor -> successor, the answer to WELCOME


class State(enum.Enum):
    """Where one direction of a connection stands."""

    HANDSHAKE = enum.auto()
    AWAITING_PROOF = enum.auto()
    PROVED = enum.auto()  # until `open()`: whoever forgets the session key gets no frame through
    OPEN = enum.auto()
    CLOSED = enum.auto()


# The legal frames of each state, and the state that each leads to.
_RUNNING = {
    Kind.ACTIVATION: State.OPEN,
    Kind.FORK: State.OPEN,
    Kind.PING: State.OPEN,
    Kind.FAULT: State.CLOSED,
    Kind.GOODBYE: State.CLOSED,
}
FORWARD = {
    State.HANDSHAKE: {Kind.HELLO: State.AWAITING_PROOF},
    State.AWAITING_PROOF: {Kind.PROOF: State.PROVED, Kind.REFUSE: State.CLOSED},
    State.PROVED: {},
    State.OPEN: _RUNNING,
    State.CLOSED: {},
}
BACKWARD: dict[State, dict[Kind, State]] = {
    State.HANDSHAKE: {Kind.WELCOME: State.AWAITING_PROOF, Kind.REFUSE: State.CLOSED},
    State.AWAITING_PROOF: {},
    State.PROVED: {},
    State.OPEN: {},
    State.CLOSED: {},
}


@dataclass(frozen=True)
class Session:
    """What both ends of a connection know beforehand and hold every frame against."""

    epoch: int
    n_embd: int
    wire_dtype: str
    n_slots: int
    context: int  # positions per slot
    max_rows: int  # rows per message

    @property
    def row_bytes(self) -> int:
        return self.n_embd * DTYPE_BYTES[self.wire_dtype]

    @property
    def max_body_bytes(self) -> int:
        return max(MAX_TEXT_BYTES, self.n_slots * SEGMENT_BYTES + self.max_rows * self.row_bytes)


_KIND_OF: dict[type, Kind] = {
    Hello: Kind.HELLO,
    Welcome: Kind.WELCOME,
    Proof: Kind.PROOF,
    Refuse: Kind.REFUSE,
    Activation: Kind.ACTIVATION,
    Fork: Kind.FORK,
    Ping: Kind.PING,
    Fault: Kind.FAULT,
    Goodbye: Kind.GOODBYE,
}


class Encoder:
    """Messages -> buffers, for one direction of one connection. Used from one thread at a time."""

    def __init__(self, session: Session, *, backward: bool = False) -> None:
        self._session = session
        self._table = BACKWARD if backward else FORWARD
        self.state = State.HANDSHAKE
        self._mac: FrameMac | None = None

    def open(self, session_key: bytes | None) -> None:
        """Let the frames behind the handshake through, each with a MAC if there is a `session_key`."""
        assert self.state is State.PROVED
        self.state, self._mac = State.OPEN, None if session_key is None else FrameMac(session_key)

    def encode(self, message: Message) -> list[bytes | memoryview]:
        """The buffers of one frame, to be sent in order; the rows are not copied.

        Raises `LocalProtocolError` where the message is not legal now, or its parts disagree.
        """
        kind = _KIND_OF[type(message)]
        next_state = self._table[self.state].get(kind)
        if next_state is None:
            raise LocalProtocolError(f"{kind.name} cannot be sent in state {self.state.name}")
        dtype, n_segments, parts = self._body(message)
        n_bytes = sum(len(part) for part in parts)
        if n_bytes > self._session.max_body_bytes or not (kind is Kind.ACTIVATION or n_bytes in _BODY_BYTES[kind]):
            raise LocalProtocolError(f"{kind.name} of {n_bytes} bytes is not of a legal size")
        crc = 0 if self._mac else _crc_of(parts)
        header = _HEADER.pack(MAGIC, VERSION, kind, dtype, 0, self._session.epoch, n_segments, n_bytes, crc)
        header += _U32.pack(zlib.crc32(header))
        self.state = next_state
        return [header + self._mac.tag(header, parts) if self._mac else header, *parts]

    def _body(self, message: Message) -> tuple[int, int, list[bytes | memoryview]]:
        match message:
            case Hello(facts):
                return 0, 0, [pack_facts(facts)]
            case Welcome(nonce, mac):
                return 0, 0, [nonce + mac]
            case Proof(mac):
                return 0, 0, [mac]
            case Refuse(reason):
                return 0, 0, [_short_text(reason)]
            case Activation(segments, data):
                rows = self._checked_rows(segments, data)
                packed = b"".join(itertools.starmap(_SEGMENT.pack, segments))
                parts: list[bytes | memoryview] = [packed, data] if rows else [packed]
                return DTYPE_CODES[self._session.wire_dtype], len(segments), parts
            case Fork(source, target, n):
                return 0, 0, [self._pack_fork(source, target, n)]
            case Fault(rank, reason):
                return 0, 0, [_U32.pack(rank) + _short_text(reason)]
            case _:
                return 0, 0, []

    def _checked_rows(self, segments: tuple[Segment, ...], data: memoryview) -> int:
        session = self._session
        try:
            check_segments(segments, session.n_slots, session.context)
        except RemoteProtocolError as exc:
            raise LocalProtocolError(str(exc)) from exc
        rows, rest = divmod(len(data), session.row_bytes)
        if rest or rows > session.max_rows or rows not in (rows_of(segments), kept_rows_of(segments)):
            raise LocalProtocolError(f"{len(data)} bytes of rows do not fit {segments}")
        return rows

    def _pack_fork(self, source: int, target: int, n: int) -> bytes:
        n_slots, context = self._session.n_slots, self._session.context
        if not (0 <= source < n_slots and 0 <= target < n_slots and 0 <= n <= context):
            raise LocalProtocolError(f"slots {source} and {target}, {n} positions: there are {n_slots} of {context}")
        return _SEGMENT.pack(source, target, n, 0)


def pack_facts(facts: dict[str, Any]) -> bytes:
    """The body of a HELLO: the same bytes for the same facts, so that a proof can cover them."""
    return json.dumps(facts, sort_keys=True).encode()


def _short_text(text: str) -> bytes:
    return text.encode(errors="replace")[: MAX_TEXT_BYTES - _U32.size].decode(errors="ignore").encode()


class Decoder:
    """Bytes -> messages, for one direction of one connection. Used from the reader thread only.

    The caller asks `buffer()` where the next bytes belong, fills any part of it and reports with
    `received(n)`, which returns a message once one is complete. So rows are received straight into
    the memory that becomes their tensor. `returning` says that rows come from the last node of the
    ring, which sends only the kept ones.

    A frame is checked field by field before memory for the next part is allocated. After an error
    the decoder is dead: every later call raises the same error.
    """

    def __init__(self, session: Session, *, returning: bool = False, backward: bool = False) -> None:
        self._session = session
        self._returning = returning
        self._table = BACKWARD if backward else FORWARD
        self.state = State.HANDSHAKE
        self._error: RemoteProtocolError | None = None
        self._mac: FrameMac | None = None
        self._header = memoryview(bytearray(HEADER_BYTES))
        self._begin_frame()

    def open(self, session_key: bytes | None) -> None:
        """Let the frames behind the handshake through, each with a MAC if there is a `session_key`."""
        assert self.state is State.PROVED
        self.state = State.OPEN
        if session_key is not None:
            self._mac = FrameMac(session_key)
            self._header = memoryview(bytearray(HEADER_BYTES + TAG_BYTES))
            self._begin_frame()

    def _begin_frame(self) -> None:
        self._target, self._filled = self._header, 0
        self._kind: Kind | None = None
        self._segments: tuple[Segment, ...] = ()
        self._parts: list[memoryview] = []

    def buffer(self) -> memoryview:
        """Where the next bytes belong: never empty, and never reaching into the next frame."""
        if self._error is not None:
            raise self._error
        return self._target[self._filled :]

    @property
    def frame_bytes(self) -> int:
        """The size of the frame that is being read, as far as it is known: of its header, then of all of it."""
        return len(self._header) + (0 if self._kind is None else self._body_bytes)

    def received(self, n_bytes: int) -> Message | None:
        """Take note of `n_bytes` written to `buffer()`; return the message they complete, if any.

        Raises `RemoteProtocolError` for anything that is not legal here and now.
        """
        if self._error is not None:
            raise self._error
        self._filled += n_bytes
        if self._filled < len(self._target):
            return None
        try:
            return self._advance()
        except RemoteProtocolError as exc:
            self._error = exc
            raise

    def end_of_file(self) -> None:
        """The peer closed. Raises `LinkClosed` unless it had said goodbye."""
        if self._error is not None:
            raise self._error
        if self.state is not State.CLOSED or self._filled:
            within = " within a frame" if self._filled or self._kind is not None else ""
            raise LinkClosed(f"closed the connection{within} without a goodbye")

    def _advance(self) -> Message | None:
        if self._kind is None:
            next_bytes = self._read_header()
        else:
            self._parts.append(self._target)
            first_of_two = self._kind is Kind.ACTIVATION and len(self._parts) == 1
            next_bytes = self._read_segments() if first_of_two else 0
        if next_bytes:
            self._target, self._filled = memoryview(bytearray(next_bytes)), 0
            return None
        return self._finish_frame()

    def _read_header(self) -> int:
        """Check the header; return the size of the body's first part."""
        fields = self._header[: _HEADER.size]
        header: tuple[bytes, int, int, int, int, int, int, int, int] = _HEADER.unpack(fields)
        magic, version, kind, dtype, reserved, epoch, n_segments, n_bytes, crc = header
        if magic != MAGIC:
            raise RemoteProtocolError(f"not a ring message: it begins with {bytes(magic)!r}")
        if version != VERSION:
            raise RemoteProtocolError(f"the peer speaks version {version} of the ring protocol, this node {VERSION}")
        if _U32.unpack(self._header[_HEADER.size : HEADER_BYTES])[0] != zlib.crc32(fields):
            raise RemoteProtocolError("a damaged header: its checksum does not match")
        if kind not in self._table[self.state]:
            name = Kind(kind).name if kind in list(Kind) else f"kind {kind}"
            raise RemoteProtocolError(f"{name} is not legal in state {self.state.name}")
        if epoch != self._session.epoch:
            raise RemoteProtocolError(f"a frame of epoch {epoch}; this session is {self._session.epoch}")
        self._check_sizes(Kind(kind), dtype, reserved, n_segments, n_bytes)
        self._kind, self._body_bytes, self._crc = Kind(kind), n_bytes, crc
        return n_segments * SEGMENT_BYTES if self._kind is Kind.ACTIVATION else n_bytes

    def _check_sizes(self, kind: Kind, dtype: int, reserved: int, n_segments: int, n_bytes: int) -> None:
        session = self._session
        if kind is Kind.ACTIVATION:
            if _DTYPE_NAMES.get(dtype) != session.wire_dtype:
                raise RemoteProtocolError(f"rows of dtype {dtype}; this session uses {session.wire_dtype}")
            row_bytes = n_bytes - n_segments * SEGMENT_BYTES
            if not 1 <= n_segments <= session.n_slots:
                raise RemoteProtocolError(f"{n_segments} segments; this session has {session.n_slots} slots")
            if row_bytes < 0 or row_bytes % session.row_bytes or row_bytes > session.max_rows * session.row_bytes:
                raise RemoteProtocolError(
                    f"a body of {n_bytes} bytes for {n_segments} segments; this session allows {session.max_rows}"
                    f" rows of {session.row_bytes} bytes"
                )
        elif dtype or n_segments or n_bytes not in _BODY_BYTES[kind]:
            raise RemoteProtocolError(f"{kind.name} of {n_bytes} bytes, {n_segments} segments and dtype {dtype}")
        if reserved:
            raise RemoteProtocolError(f"the reserved byte is {reserved}")

    def _read_segments(self) -> int:
        """Check the segments; return the size of the rows that follow."""
        packed = self._parts[0]
        self._segments = tuple(map(Segment._make, _SEGMENT.iter_unpack(packed)))
        check_segments(self._segments, self._session.n_slots, self._session.context)
        rows = kept_rows_of(self._segments) if self._returning else rows_of(self._segments)
        row_bytes = self._body_bytes - len(packed)
        if row_bytes != rows * self._session.row_bytes:
            raise RemoteProtocolError(f"{row_bytes} bytes of rows where the segments say {rows} rows")
        return row_bytes

    def _finish_frame(self) -> Message:
        self._check_body()
        kind = self._kind
        assert kind is not None
        message = self._message(kind)
        self.state = self._table[self.state][kind]
        self._begin_frame()
        return message

    def _check_body(self) -> None:
        """Nothing of a frame is used before: its sizes were only held against those of the session."""
        if self._mac is None:
            if self._crc != _crc_of(self._parts):
                raise RemoteProtocolError("a damaged body: its checksum does not match")
        elif not self._mac.verify(self._header[HEADER_BYTES:], self._header[:HEADER_BYTES], self._parts):
            raise RemoteProtocolError("a frame that is not the peer's next one: its MAC does not match")
        elif self._crc:
            raise RemoteProtocolError("a frame with a MAC and a checksum of its body")

    def _message(self, kind: Kind) -> Message:
        match kind:
            case Kind.ACTIVATION:
                return Activation(self._segments, self._parts[1] if len(self._parts) > 1 else memoryview(b""))
            case Kind.HELLO:
                return Hello(_read_facts(self._parts[0]))
            case Kind.WELCOME:
                body = b"".join(self._parts)
                return Welcome(body[:NONCE_BYTES], body[NONCE_BYTES:])
            case Kind.PROOF:
                return Proof(b"".join(self._parts))
            case Kind.REFUSE:
                return Refuse(_read_text(self._parts[0]) if self._parts else "no reason given")
            case Kind.FORK:
                return self._read_fork()
            case Kind.FAULT:
                (rank,) = _U32.unpack(self._parts[0][: _U32.size])
                return Fault(Rank(rank), _read_text(self._parts[0][_U32.size :]))
            case Kind.PING:
                return Ping()
            case Kind.GOODBYE:
                return Goodbye()

    def _read_fork(self) -> Fork:
        source, target, n, unused = _SEGMENT.unpack(self._parts[0])
        if unused:
            raise RemoteProtocolError(f"a FORK with {unused} in the place of zero")
        if max(source, target) >= self._session.n_slots or n > self._session.context:
            raise RemoteProtocolError(
                f"slots {source} and {target}, {n} positions: there are {self._session.n_slots} slots"
            )
        return Fork(source, target, n)


# The legal sizes of a body, but for ACTIVATION.
_BODY_BYTES: dict[Kind, Container[int]] = {
    Kind.HELLO: range(2, MAX_TEXT_BYTES + 1),
    Kind.WELCOME: (0, NONCE_BYTES + MAC_BYTES, NONCE_BYTES + 2 * MAC_BYTES),
    Kind.REFUSE: range(MAX_TEXT_BYTES + 1),
    Kind.FORK: (SEGMENT_BYTES,),
    Kind.PING: (0,),
    Kind.FAULT: range(_U32.size, MAX_TEXT_BYTES + 1),
    Kind.GOODBYE: (0,),
    Kind.PROOF: (0, MAC_BYTES),
}


def _crc_of(parts: Iterable[bytes | memoryview]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _read_text(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as exc:
        raise RemoteProtocolError("a string that is not UTF-8") from exc


def _read_facts(data: memoryview) -> dict[str, Any]:
    facts = parse_json(bytes(data), "a handshake", RemoteProtocolError)
    if not isinstance(facts, dict):
        raise RemoteProtocolError("a handshake that is not a JSON object")
    return facts
