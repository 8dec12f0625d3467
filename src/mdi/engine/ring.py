"""The way from the starter's stage through all other nodes and back: links to other machines, or this node alone."""

import queue
from collections import deque
from collections.abc import Sequence
from typing import NoReturn, Protocol

import torch

from mdi.errors import LinkError, RemoteProtocolError, RingBroken
from mdi.ids import Rank
from mdi.model.stage import kept_rows
from mdi.model.tensors import from_buffer, to_buffer
from mdi.ring.link import Link, LinkDown, LinkEvent, PredecessorConnected, Received
from mdi.ring.messages import Activation, Fault, Goodbye
from mdi.segments import Fork, Release, Segment

STEP_TIMEOUT_S = 600.0  # a ring whose nodes all ping but that returns nothing for so long is stuck

Returned = tuple[Sequence[Segment], torch.Tensor]


class Ring(Protocol):
    """The way from the starter's stage through all other nodes and back."""

    def send(self, segments: tuple[Segment, ...], rows: torch.Tensor) -> None:
        """Send a message: hidden states (N, C) after the starter's stage."""

    def receive(self) -> Returned:
        """Wait for the next message to return: its segments and the kept rows (K, C)."""

    def control(self, message: Release | Fork) -> None:
        """Have the other nodes free or copy a slot, in order with the messages."""

    def say_goodbye(self) -> None:
        """End the session as planned."""

    def close(self) -> None:
        """Give up whatever still travels. Idempotent."""


class LocalRing:
    """A ring of one node."""

    def __init__(self) -> None:
        self._messages: deque[Returned] = deque()

    def send(self, segments: tuple[Segment, ...], rows: torch.Tensor) -> None:
        self._messages.append((segments, kept_rows(rows, segments)))

    def receive(self) -> Returned:
        return self._messages.popleft()

    def control(self, message: Release | Fork) -> None:
        pass

    def say_goodbye(self) -> None:
        pass

    def close(self) -> None:
        self._messages.clear()


class LinkRing:
    """A ring of several nodes, for one session. Whatever breaks it is raised as `RingBroken`."""

    def __init__(self, link: Link, inbox: "queue.Queue[LinkEvent]", names: Sequence[str]) -> None:
        """
        Args:
            inbox: where everything that happens on `link` arrives.
            names: what the nodes are called, in ring order.
        """
        self._link, self._inbox, self._names = link, inbox, names

    def connect(self, timeout_s: float) -> None:
        """Call the next node, which calls the one after it, and so on until the last one calls us."""
        self._link.accept()
        self._link.connect()
        try:
            event = self._inbox.get(timeout=timeout_s)
        except queue.Empty as exc:
            raise RingBroken("the ring did not close") from exc
        match event:
            case PredecessorConnected():
                return
            case LinkDown() as down:
                self._break(down)
        raise AssertionError(f"{event} before the ring closed")

    def send(self, segments: tuple[Segment, ...], rows: torch.Tensor) -> None:
        self._link.send(Activation(segments, to_buffer(rows, self._link.session.wire_dtype)))

    def receive(self) -> Returned:
        while isinstance(message := self._next_message(), Release | Fork):
            pass  # our own, back from its trip round the ring
        if not isinstance(message, Activation):
            raise RingBroken(f"{type(message).__name__} while samples travel")
        session = self._link.session
        return message.segments, from_buffer(message.data, session.wire_dtype, session.n_embd)

    def control(self, message: Release | Fork) -> None:
        self._link.send(message)

    def say_goodbye(self) -> None:
        """End the session as planned: the goodbye goes round the ring and comes back."""
        self._link.send(Goodbye())
        while not isinstance(self._next_message(), Goodbye):
            pass

    def close(self) -> None:
        self._link.close()

    def _next_message(self) -> object:
        try:
            event = self._inbox.get(timeout=STEP_TIMEOUT_S)
        except queue.Empty as exc:
            raise RingBroken(f"the ring returned nothing for {STEP_TIMEOUT_S:g} s, though it is alive") from exc
        match event:
            case Received(_, Fault(rank, reason)):
                rank = Rank(rank % len(self._names))
                name = self._names[rank]
                raise RingBroken(f"{name} is lost: {reason}", rank, peer=name, reason=reason)
            case Received(_, Activation() | Release() | Fork() | Goodbye() as message):
                return message
            case LinkDown() as down:
                self._break(down)
        raise RingBroken(f"unexpected on the ring: {event}")

    def _break(self, down: LinkDown) -> NoReturn:
        error = down.error
        if not isinstance(error, LinkError | RemoteProtocolError):
            raise error
        rank = Rank(self._names.index(down.peer.name))
        raise RingBroken(str(error), rank, peer=error.peer, reason=error.reason) from error
