"""The ring: frames in every state and direction, and the ledger of segments beside a model of it."""

import random
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TypeVar

from fuzz.mutations import change_bytes, change_json, edge, pick, put
from fuzz.target import Target
from mdi.errors import LinkClosed, RemoteProtocolError
from mdi.ring.frame_mac import TAG_BYTES, FrameMac
from mdi.ring.messages import Activation, Fault, Goodbye, Hello, Message, Ping, Proof, Refuse, Welcome
from mdi.ring.wire import HEADER_BYTES, MAX_TEXT_BYTES, Decoder, Encoder, Session, State
from mdi.segments import Fork, Segment, SlotLedger, check_segments
from support.wire import plain

STATES = (State.HANDSHAKE, State.AWAITING_PROOF, State.OPEN, State.CLOSED)
SESSIONS = (
    Session(epoch=7, n_embd=4, wire_dtype="float32", n_slots=3, context=16, max_rows=8),
    Session(epoch=2**63 + 5, n_embd=3, wire_dtype="bfloat16", n_slots=64, context=2**31, max_rows=2**16),
)
LARGEST_BUFFERS = tuple(session.max_body_bytes for session in SESSIONS)
_HEADER = struct.Struct("<4sBBBBQIII")
_FIELDS = ((0, 4), (4, 1), (5, 1), (6, 1), (7, 1), (8, 8), (16, 4), (20, 4))
N_LEAD = 4  # bytes that say how to read the stream: direction, state, session, key; three sizes of pieces
SESSION_KEY = b"a session key for the fuzzer    "


@dataclass(frozen=True)
class Reading:
    """How a stream is read."""

    session: Session
    returning: bool
    backward: bool
    state: State
    pieces: tuple[int, ...]
    largest: int
    session_key: bytes | None  # where there is one, the stream begins behind the handshake

    @classmethod
    def of(cls, lead: bytes) -> "Reading":
        mode = lead[0]
        which = mode >> 4 & 1
        return cls(
            session=SESSIONS[which],
            returning=bool(mode & 1),
            backward=bool(mode & 2),
            state=State.OPEN if mode & 32 else STATES[mode >> 2 & 3],
            pieces=tuple(1 + byte for byte in lead[1:]),
            largest=LARGEST_BUFFERS[which],
            session_key=SESSION_KEY if mode & 32 else None,
        )

    @property
    def head_bytes(self) -> int:
        return HEADER_BYTES if self.session_key is None else HEADER_BYTES + TAG_BYTES

    def decoder(self) -> Decoder:
        decoder = Decoder(self.session, returning=self.returning, backward=self.backward)
        return _in_state(decoder, self.state, self.session_key)

    def encoder(self) -> Encoder:
        return _in_state(Encoder(self.session, backward=self.backward), self.state, self.session_key)


End = TypeVar("End", Decoder, Encoder)


def _in_state(end: End, state: State, session_key: bytes | None = None) -> End:
    end.state = state
    if session_key is not None:
        end.state = State.PROVED
        end.open(session_key)
    return end


@dataclass
class Outcome:
    """What came of a stream: messages, the error, and how the end of file was taken."""

    messages: list[Message]
    error: str
    end: str
    state: State


class FrameTarget(Target):
    """`wire.Decoder`: the same messages and the same error in pieces of any size, and encoded again the same bytes."""

    name = "frames"
    unit = "frames"
    share = 3.0
    least_units = 1_000_000

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._seeds = self.seeds()

    def seeds(self) -> list[bytes]:
        handshake = [Hello({"rank": 0, "nonce": "00" * 16}), Proof(b"\1" * 32)]
        streams = []
        for which, session in enumerate(SESSIONS):
            bits = which << 4
            both = _running(session, returning=False), _running(session, returning=True)
            streams += [bytes((bits | returning, 252, 255, 255)) + _encoded(session, [*handshake, *messages])
                        for returning, messages in enumerate(both)]  # fmt: skip
            streams += [bytes((bits | 8 | returning, 0, 30, 90)) + _encoded(session, messages, State.OPEN)
                        for returning, messages in enumerate(both)]  # fmt: skip
            streams += [bytes((bits | 32 | returning, 0, 47, 60)) + _encoded(session, messages, session_key=SESSION_KEY)
                        for returning, messages in enumerate(both)]  # fmt: skip
            streams.append(
                bytes((bits | 4, 9, 9, 9)) + _encoded(session, [Refuse("nein: größer")], State.AWAITING_PROOF)
            )
            for answer in (Welcome(), Welcome(b"n" * 16, b"m" * 32), Refuse("another epoch")):
                streams.append(bytes((bits | 2, 32, 0, 200)) + _encoded(session, [answer], backward=True))
        return streams

    def check(self, data: bytes) -> int:
        if len(data) <= N_LEAD:
            return 0
        reading, stream = Reading.of(data[:N_LEAD]), data[N_LEAD:]
        outcome = _read(reading, stream, reading.pieces)
        if data[1] % 4 == 0:  # seldom enough to leave the time for other inputs
            assert outcome == _read(reading, stream, (1 << 30,)), "the sizes of the pieces made a difference"
        _assert_same_bytes(reading, stream, outcome.messages)
        self.accepted += not outcome.error
        return len(outcome.messages) + bool(outcome.error)

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        if len(data) <= N_LEAD or rng.random() < 0.05:
            return pick(rng, self._seeds)
        if rng.random() < 0.1:
            return change_bytes(data[:N_LEAD], rng).ljust(N_LEAD, b"\0")[:N_LEAD] + data[N_LEAD:]
        reading = Reading.of(data[:N_LEAD])
        frames = list(_frames(data[N_LEAD:], reading.head_bytes))
        at = rng.randrange(len(frames))
        match rng.randrange(8):
            case 0:
                frames[at:at] = [frames[rng.randrange(len(frames))]]
            case 1:
                del frames[at]
            case 2:
                frames[at] = frames[at][: rng.randint(0, len(frames[at]))]
            case 3 | 4:
                start, size = rng.choice(_FIELDS)
                frames[at] = _resealed(put(frames[at], start, edge(rng, size)), reading.head_bytes)
            case 5 | 6 if len(frames[at]) >= reading.head_bytes + 4:
                word = reading.head_bytes + 4 * rng.randrange((len(frames[at]) - reading.head_bytes) // 4)
                frames[at] = _resealed(put(frames[at], word, edge(rng, 4)), reading.head_bytes)
            case _:
                head, body = frames[at][: reading.head_bytes], frames[at][reading.head_bytes :]
                frames[at] = _resealed(
                    _resized(head + _changed_body(body, rng), reading.head_bytes), reading.head_bytes
                )
        if reading.session_key is not None and rng.random() < 0.7:
            frames = _with_macs(frames, reading.session_key)
        return data[:N_LEAD] + b"".join(frames)

    def repair(self, data: bytes, rng: random.Random) -> bytes:
        if len(data) <= N_LEAD or rng.random() >= 0.7:
            return data
        reading = Reading.of(data[:N_LEAD])
        frames = [_resealed(frame, reading.head_bytes) for frame in _frames(data[N_LEAD:], reading.head_bytes)]
        if reading.session_key is not None:
            frames = _with_macs(frames, reading.session_key)
        return data[:N_LEAD] + b"".join(frames)


def _running(session: Session, *, returning: bool) -> list[Message]:
    segments = (Segment(0, 3, 2, 1), Segment(2, 0, 3, 1))
    n_rows = 2 if returning else 5
    rows = bytes(i % 251 for i in range(n_rows * session.row_bytes))
    none_kept = (Segment(1, 0, 2, 0),)
    return [
        Activation(segments, memoryview(rows)),
        Activation(none_kept, memoryview(b"" if returning else bytes(2 * session.row_bytes))),
        Ping(),
        Fork(0, 2, 16),
        *([Fault(1, "gone: größer")] if returning else [Goodbye()]),
    ]


def _encoded(
    session: Session,
    messages: list[Message],
    state: State = State.HANDSHAKE,
    *,
    backward: bool = False,
    session_key: bytes | None = None,
) -> bytes:
    encoder = _in_state(Encoder(session, backward=backward), state, session_key)
    return b"".join(_encoded_one(encoder, message) for message in messages)


def _encoded_one(encoder: Encoder, message: Message) -> bytes:
    data = b"".join(bytes(part) for part in encoder.encode(message))
    if isinstance(message, Proof):
        encoder.open(None)
    return data


def _read(reading: Reading, stream: bytes, pieces: tuple[int, ...]) -> Outcome:
    decoder = reading.decoder()
    outcome = Outcome([], "", "", decoder.state)
    try:
        for message in _feed(decoder, stream, pieces, reading.largest):
            outcome.messages.append(plain(message))
    except RemoteProtocolError as exc:
        outcome.error = str(exc)
        _assert_dead(decoder, outcome.error)
    else:
        outcome.end = _end_of(decoder)
    outcome.state = decoder.state
    return outcome


def _feed(decoder: Decoder, stream: bytes, pieces: tuple[int, ...], largest: int) -> Iterator[Message]:
    at, sizes = 0, cycle(pieces)
    while at < len(stream):
        buffer = decoder.buffer()
        assert 0 < len(buffer) <= largest, f"a buffer of {len(buffer)} bytes"
        n = min(len(buffer), len(stream) - at, next(sizes))
        buffer[:n] = stream[at : at + n]
        at += n
        message = decoder.received(n)
        if isinstance(message, Proof):
            decoder.open(None)
        if message is not None:
            yield message


def _end_of(decoder: Decoder) -> str:
    try:
        decoder.end_of_file()
    except LinkClosed as exc:
        return str(exc)
    return "as planned"


def _assert_dead(decoder: Decoder, error: str) -> None:
    for call in (decoder.buffer, lambda: decoder.received(0), decoder.end_of_file):
        told = ""
        try:
            call()
        except RemoteProtocolError as exc:
            told = str(exc)
        assert told == error, "the decoder lives on after an error"


def _assert_same_bytes(reading: Reading, stream: bytes, messages: list[Message]) -> None:
    """There is one way to write a message, but for JSON, and texts that we would make shorter."""
    encoder = reading.encoder()
    for message, frame in zip(messages, _frames(stream, reading.head_bytes), strict=False):
        text = message.reason if isinstance(message, Refuse | Fault) else ""
        again = _encoded_one(encoder, message)
        free = isinstance(message, Hello | Refuse) or len(text.encode()) > MAX_TEXT_BYTES - 4
        assert free or again == frame, f"{message} can be written in two ways"


def _frames(stream: bytes, head_bytes: int) -> Iterator[bytes]:
    """Cut where the length fields say; the last one may be short."""
    at = 0
    while at < len(stream):
        stop = at + head_bytes + int.from_bytes(stream[at + 20 : at + 24], "little")
        yield stream[at:stop]
        at = stop


def _resealed(frame: bytes, head_bytes: int) -> bytes:
    """The frame with all checksums right, whatever its fields say."""
    if len(frame) < head_bytes:
        return frame
    header = frame[:24] + struct.pack("<I", zlib.crc32(frame[32:]) if head_bytes == HEADER_BYTES else 0)
    return header + struct.pack("<I", zlib.crc32(header)) + frame[32:]


def _with_macs(frames: Iterable[bytes], session_key: bytes) -> list[bytes]:
    """The frames with all MACs right, as by a peer that has the key and misuses it."""
    mac = FrameMac(session_key)
    head_bytes = HEADER_BYTES + TAG_BYTES
    return [frame[:HEADER_BYTES] + mac.tag(frame[:HEADER_BYTES], [frame[head_bytes:]]) + frame[head_bytes:]
            if len(frame) >= head_bytes else frame for frame in frames]  # fmt: skip


def _resized(frame: bytes, head_bytes: int) -> bytes:
    return put(frame, 20, struct.pack("<I", len(frame) - head_bytes)) if len(frame) >= head_bytes else frame


def _changed_body(body: bytes, rng: random.Random) -> bytes:
    return change_json(body, rng) if body[:1] == b"{" else change_bytes(body, rng)


class LedgerTarget(Target):
    """`SlotLedger` and `check_segments` beside a model: legal as a whole or not at all, and exactly when it should."""

    name = "ledger"
    share = 0.5
    unit = "operations"
    N_SLOTS, CONTEXT = 4, 16
    _OPERATION = struct.Struct("<Bqqqq")

    def seeds(self) -> list[bytes]:
        pack = self._OPERATION.pack
        fill = pack(1, 0, 0, 5, 1) + pack(0, 1, 0, 3, 0) + pack(1, 0, 5, 11, 11) + pack(2, 0, 2, 7, 0)
        return [fill, fill + pack(1, 2, 3, 1, 1) + pack(1, 2, 4, 1, 1), pack(1, 3, 0, 16, 16), pack(0, -1, 0, 1, 0)]

    def check(self, data: bytes) -> int:
        ledger, model = SlotLedger(self.N_SLOTS, self.CONTEXT), [0] * self.N_SLOTS
        pending: list[Segment] = []
        whole = len(data) // self._OPERATION.size * self._OPERATION.size
        for kind, *numbers in self._OPERATION.iter_unpack(data[:whole]):
            if kind % 3 == 0:
                pending.append(Segment(*numbers))
                continue
            expected = self._expected(kind % 3, numbers, pending, model)
            self._assert_agrees(ledger, kind % 3, numbers, pending, expected or model, legal=expected is not None)
            model, pending = expected or model, []
            self.accepted += expected is not None
        return whole // self._OPERATION.size

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        size = self._OPERATION.size
        at = rng.randint(0, len(data) // size) * size
        match rng.randrange(4):
            case 0:
                return data[:at] + data[at + size :]
            case 1:
                return change_bytes(data, rng)
            case _:
                numbers = (rng.choice((rng.randint(-1, 17), rng.randint(0, 4), 2**62)) for _ in range(4))
                return data[:at] + self._OPERATION.pack(rng.randrange(3), *numbers) + data[at:]

    def _expected(self, kind: int, numbers: list[int], pending: list[Segment], model: list[int]) -> list[int] | None:
        """What the slots hold afterwards; None where the operation is illegal."""
        slot, target, n, keep = numbers
        after = model.copy()
        if kind == 1:
            for s in [*pending, Segment(slot, target, n, keep)]:
                if not (s.slot in range(self.N_SLOTS) and 0 <= s.keep <= s.n and 1 <= s.n <= self.CONTEXT - s.start):
                    return None
                if not 0 <= s.start <= model[s.slot]:
                    return None
                after[s.slot] = s.start + s.n
            return after if len({slot, *(s.slot for s in pending)}) == len(pending) + 1 else None
        if slot not in range(self.N_SLOTS):
            return None
        if target not in range(self.N_SLOTS) or target == slot or not 1 <= n <= model[slot]:
            return None
        after[target] = n
        return after

    def _assert_agrees(
        self,
        ledger: SlotLedger,
        kind: int,
        numbers: list[int],
        pending: list[Segment],
        after: list[int],
        *,
        legal: bool,
    ) -> None:
        segments = [*pending, Segment(*numbers)]
        try:
            if kind == 1:
                ledger.extend(segments)
                check_segments(segments, self.N_SLOTS, self.CONTEXT)
            else:
                ledger.fork(*numbers[:3])
            accepted = True
        except RemoteProtocolError:
            accepted = False
        assert accepted == legal, f"{'accepted' if accepted else 'refused'}: {kind} {numbers} after {pending}"
        assert [ledger.filled(slot) for slot in range(self.N_SLOTS)] == after
