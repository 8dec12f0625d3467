"""The way from the starter's stage through all other nodes and back: links to other machines, or this node alone."""

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

import torch

from mdi.engine.trips import Travelling, Trips
from mdi.errors import LinkError, RemoteProtocolError, RingBroken, RingStalled
from mdi.ids import Rank
from mdi.inbox import Inbox
from mdi.model.stage import kept_rows
from mdi.model.tensors import from_buffer, to_buffer
from mdi.ring.link import Link, LinkDown, PredecessorConnected, Received
from mdi.ring.messages import Activation, Fault, Goodbye
from mdi.segments import Fork, Segment, prompt_rows_of


@dataclass(frozen=True)
class Returned:
    """A message is back from its trip: its segments, and the rows (K, C) that each of them keeps."""

    segments: tuple[Segment, ...]
    rows: torch.Tensor


class Ring(Protocol):
    """What the engine sends batches into. What comes back, and whatever breaks the ring, arrives in the inbox."""

    def send(self, segments: tuple[Segment, ...], rows: torch.Tensor, own_s: float) -> None:
        """Send a message: hidden states (N, C) after the starter's stage, which took it `own_s` seconds."""

    def next_event(self) -> object:
        """The next event of the inbox. Raises `RingStalled` where a message is overdue, `Stopped` as the inbox does."""

    def receive(self, event: object) -> Returned | None:
        """What an event of the inbox returns to the starter; None where it returns no rows.

        Raises `RingBroken` where the event says that the ring cannot go on.
        """

    def fork(self, fork: Fork) -> None:
        """Have the other nodes copy a slot, in order with the messages."""

    def close_gracefully(self) -> None:
        """End the session as planned."""

    def close(self) -> None:
        """Give up whatever is still in flight. Idempotent."""

    @property
    def under_way(self) -> tuple[Travelling, ...]:
        """The messages on their way round, the oldest first. May be asked from any thread."""

    @property
    def n_waiting(self) -> int:
        """Messages that wait at this node, to be sent or to be taken. May be asked from any thread."""


class LocalRing:
    """A ring of one node."""

    under_way: tuple[Travelling, ...] = ()  # they arrive as they are sent
    n_waiting = 0

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def send(self, segments: tuple[Segment, ...], rows: torch.Tensor, own_s: float) -> None:
        self._inbox.post(Returned(segments, kept_rows(rows, segments)))

    def next_event(self) -> object:
        return self._inbox.get()

    def receive(self, event: object) -> Returned | None:
        return event if isinstance(event, Returned) else None

    def fork(self, fork: Fork) -> None:
        pass

    def close_gracefully(self) -> None:
        pass

    def close(self) -> None:
        pass


class LinkRing:
    """A ring of several nodes, for one session. Whatever breaks it is raised as `RingBroken`."""

    def __init__(self, link: Link, inbox: Inbox, names: Sequence[str], part: float) -> None:
        """
        Args:
            inbox: where everything that happens on `link` arrives.
            names: what the nodes are called, by rank.
            part: what the starter computes of each message, between 0 and 1.
        """
        self._link, self._inbox, self._names = link, inbox, names
        self._timeouts = link.config.timeouts
        # A link that fails is told by the node behind it, which knows more, and has the first word.
        self._trips = Trips(self._timeouts, 2 * link.config.peer_timeout_s, part)
        self._n_sent = self._n_taken = 0  # messages with rows, by the main thread

    def connect(self, timeout_s: float) -> None:
        """Connect to the successor, which connects to its own, and so on until the last node connects to us."""
        self._link.accept()
        self._link.connect()
        match self._next_link_event(timeout_s, "the ring did not close"):
            case PredecessorConnected():
                return
            case LinkDown() as down:
                self._break(down)
        raise AssertionError("a message before the ring closed")

    def send(self, segments: tuple[Segment, ...], rows: torch.Tensor, own_s: float) -> None:
        message = Activation(segments, to_buffer(rows, self._link.session.wire_dtype))
        # Before the message leaves, which may be at once: another thread could see one that left and was never counted.
        self._trips.sent(len(rows), own_s, prompt_rows_of(segments))
        self._n_sent += 1
        self._link.send(message)

    def next_event(self) -> object:
        began_s = self._timeouts.clock()
        try:
            event = self._inbox.get(self._trips.left_s())
        except queue.Empty as exc:
            self._trips.waited(self._timeouts.clock() - began_s)
            raise RingStalled(self._trips.overdue, sent=self._link.n_sent, received=self._link.n_received) from exc
        self._trips.waited(self._timeouts.clock() - began_s)
        return event

    def receive(self, event: object) -> Returned | None:
        match event:
            case Received(link, message, at_s) if link is self._link:
                if isinstance(message, Activation):
                    self._n_taken += 1
                    self._trips.returned(at_s)
                return self._returned(message)
            case LinkDown(link) if link is self._link:
                self._break(event)
        return None  # of an earlier link: nothing to this session

    def _returned(self, message: object) -> Returned | None:
        session = self._link.session
        match message:
            case Activation(segments, data):
                return Returned(segments, from_buffer(data, session.wire_dtype, session.n_embd))
            case Fork():  # our own, back from its trip round the ring
                return None
            case Fault(sent_rank, reason):
                rank = Rank(sent_rank % len(self._names))
                name = self._names[rank]
                raise RingBroken(f"{name} is lost: {reason}", rank, peer=name, reason=reason)
        raise RingBroken(f"{type(message).__name__} while samples are in flight")

    def fork(self, fork: Fork) -> None:
        self._link.send(fork)

    def close_gracefully(self) -> None:
        """End the session as planned: the goodbye goes round the ring and comes back."""
        deadline_s = self._timeouts.deadline_s(self._timeouts.goodbye_s)
        self._link.send(Goodbye())
        while True:
            event = self._next_link_event(self._timeouts.left_s(deadline_s), "the goodbye did not come back")
            if isinstance(event, Received) and isinstance(event.message, Goodbye):
                return
            self.receive(event)

    def close(self) -> None:
        self._link.close()

    @property
    def under_way(self) -> tuple[Travelling, ...]:
        return self._trips.under_way

    @property
    def n_waiting(self) -> int:
        link = self._link
        return max(0, self._n_sent - link.n_sent) + max(0, link.n_received - self._n_taken)

    def _next_link_event(self, timeout_s: float, otherwise: str) -> object:
        try:
            while True:
                event = self._inbox.wait_for(PredecessorConnected, Received, LinkDown, timeout_s=timeout_s)
                if getattr(event, "link", None) is self._link:
                    return event
        except queue.Empty as exc:
            raise RingBroken(otherwise) from exc

    def _break(self, down: LinkDown) -> NoReturn:
        error = down.error
        if not isinstance(error, LinkError | RemoteProtocolError):
            raise error
        rank = Rank(self._names.index(down.peer.name))
        raise RingBroken(str(error), rank, peer=error.peer, reason=error.reason) from error
