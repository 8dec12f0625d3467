"""What travels between neighbours: the handshake, rows with their segments, slot commands, signs of life and ends."""

from dataclasses import dataclass
from typing import Any

from mdi.segments import Fork, Release, Segment, rows_of


@dataclass(frozen=True)
class Hello:
    """The first frame: who calls, and everything both ends must agree on."""

    facts: dict[str, Any]


@dataclass(frozen=True)
class Welcome:
    """The handshake is accepted. In a ring with a key: the answerer's challenge, and the proof that it has the key."""

    nonce: bytes = b""
    mac: bytes = b""


@dataclass(frozen=True)
class Proof:
    """The caller's answer to WELCOME. In a ring with a key: the proof that it has the key."""

    mac: bytes = b""


@dataclass(frozen=True)
class Refuse:
    """The handshake is refused, by either side."""

    reason: str


@dataclass(frozen=True)
class Activation:
    """Segments and the bytes of their rows, in the session's wire dtype."""

    segments: tuple[Segment, ...]
    data: memoryview


@dataclass(frozen=True)
class Ping:
    """Nothing to say, still alive."""


@dataclass(frozen=True)
class Fault:
    """A node is lost: its place in the ring, and what was seen."""

    node: int
    reason: str


@dataclass(frozen=True)
class Goodbye:
    """The session ends as planned."""


Message = Hello | Welcome | Proof | Refuse | Activation | Release | Fork | Ping | Fault | Goodbye


def carried_rows(message: Message) -> int:
    """Rows that a message stands for; 0 where it is none of hidden states."""
    return rows_of(message.segments) if isinstance(message, Activation) else 0
