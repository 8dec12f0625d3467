"""What a node must know to open its two edges of the ring for one session."""

from dataclasses import dataclass
from typing import Any

from mdi.net.sockets import Peer
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.ring.wire import Session


@dataclass(frozen=True)
class LinkConfig:
    """One node's two edges of the ring in one session, as a value."""

    session: Session  # the numbers that every frame is held against
    predecessor: Peer
    successor: Peer
    expected: dict[str, Any]  # the facts that the predecessor's HELLO must hold
    hello: dict[str, Any]  # ours, for the successor
    returning: bool  # whether we are the starter, to whom the last node sends the kept rows only
    capacity: int  # messages that may wait to be sent; more is a bug
    peer_timeout_s: float  # a neighbour that is silent for so long is lost
    source_port: int = 0  # ours of the connection to the successor; 0 for any
    timeouts: Timeouts = DEFAULT_TIMEOUTS
