"""What travels between neighbours: the handshake, rows with their segments, slot commands, signs of life and ends."""

from dataclasses import dataclass
from typing import Any

from mdi.ids import Rank
from mdi.segments import Fork, Segment, rows_of


@dataclass(frozen=True)
class Hello:
    """The first frame: who connects, and everything both ends must agree on."""

    facts: dict[str, Any]


@dataclass(frozen=True)
class Welcome:
    """The handshake is accepted. In a ring with a key: the responder's nonce, and a proof of each of its keys."""

    nonce: bytes = b""
    mac: bytes = b""


@dataclass(frozen=True)
class Proof:
    """The initiator's answer to WELCOME. In a ring with a key: its proof of the key that both have."""

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
    """Nothing to send, still alive."""


@dataclass(frozen=True)
class Fault:
    """A node is lost: its rank, and what was seen of it."""

    rank: Rank
    reason: str


@dataclass(frozen=True)
class Goodbye:
    """The session ends as planned."""


Message = Hello | Welcome | Proof | Refuse | Activation | Fork | Ping | Fault | Goodbye


def carried_rows(message: Message) -> int:
    """Rows that a message stands for; 0 for those that carry no hidden states."""
    return rows_of(message.segments) if isinstance(message, Activation) else 0
