"""What a secondary does when something happens to its session: a table of phase x event. No I/O, no tensors.

    idle -- a starter's /init --> loading -- weights are there --> ready -- predecessor connects --> running

A session that ends as planned leaves the node idle. One that breaks leaves it *broken*: free, but kept for its
starter, which is about to begin another epoch. Whether a request for a session is let in is decided here too, once.
"""

import enum
from dataclasses import dataclass

from mdi.control.session import SessionSpec
from mdi.control.status import NodeState


class Phase(enum.Enum):
    """How far a session is."""

    IDLE = enum.auto()
    LOADING = enum.auto()
    READY = enum.auto()  # weights and slots are in place; the predecessor has not connected
    RUNNING = enum.auto()
    BROKEN = enum.auto()

    @property
    def state(self) -> NodeState:
        """What others see of it: a broken session is over."""
        return NodeState.IDLE if self is Phase.BROKEN else NodeState[self.name]


class Event(enum.Enum):
    """What can happen to it."""

    ADMITTED = enum.auto()  # a starter's session was let in
    LOADED = enum.auto()
    NEEDS_CHUNK = enum.auto()  # the starter has to send the weights first
    LOAD_FAILED = enum.auto()
    CONNECTED = enum.auto()  # by the predecessor
    MESSAGE = enum.auto()  # rows, or a slot command
    GOODBYE = enum.auto()
    FAULT = enum.auto()  # news of a node that is lost, from the predecessor
    LINK_DOWN = enum.auto()
    STAGE_FAILED = enum.auto()  # a message could not be computed
    RELEASED = enum.auto()  # the starter gave the session up
    UNWANTED = enum.auto()  # the starter is gone, or goes on without this node


class Action(enum.Enum):
    """What the node does about it, in order."""

    DROP_LINK = enum.auto()
    LOAD = enum.auto()
    OPEN_LINK = enum.auto()
    CONNECT = enum.auto()  # to the successor
    COMPUTE = enum.auto()
    FORWARD = enum.auto()  # the message of the event, or the fault that it leads to
    END = enum.auto()  # send what is queued, drop the link, free the slots; the weights stay


_END = (Action.END,)
_TABLE: dict[tuple[Phase, Event], tuple[Phase, tuple[Action, ...]]] = {
    # Whatever was there: a request that has been let in replaces it.
    **{(phase, Event.ADMITTED): (Phase.LOADING, (Action.DROP_LINK, Action.LOAD)) for phase in Phase},
    (Phase.LOADING, Event.LOADED): (Phase.READY, (Action.OPEN_LINK,)),
    (Phase.LOADING, Event.NEEDS_CHUNK): (Phase.IDLE, _END),
    (Phase.LOADING, Event.LOAD_FAILED): (Phase.BROKEN, _END),
    (Phase.READY, Event.LOAD_FAILED): (Phase.BROKEN, _END),  # the link could not be opened
    (Phase.READY, Event.CONNECTED): (Phase.RUNNING, (Action.CONNECT,)),
    (Phase.READY, Event.LINK_DOWN): (Phase.IDLE, (Action.FORWARD, Action.END)),
    (Phase.READY, Event.RELEASED): (Phase.IDLE, _END),
    (Phase.READY, Event.UNWANTED): (Phase.IDLE, _END),
    (Phase.RUNNING, Event.MESSAGE): (Phase.RUNNING, (Action.COMPUTE,)),
    (Phase.RUNNING, Event.GOODBYE): (Phase.IDLE, (Action.FORWARD, Action.END)),
    # The news travels on before the link is dropped: it has to reach the starter.
    (Phase.RUNNING, Event.FAULT): (Phase.BROKEN, (Action.FORWARD, Action.END)),
    (Phase.RUNNING, Event.LINK_DOWN): (Phase.BROKEN, (Action.FORWARD, Action.END)),
    (Phase.RUNNING, Event.STAGE_FAILED): (Phase.BROKEN, (Action.FORWARD, Action.END)),
    (Phase.BROKEN, Event.RELEASED): (Phase.IDLE, ()),
}


@dataclass(frozen=True)
class Session:
    """The session that the node is in, or was in last."""

    phase: Phase = Phase.IDLE
    spec: SessionSpec | None = None

    @property
    def current(self) -> SessionSpec | None:
        """The spec, while the node is in the session."""
        return self.spec if self.phase in (Phase.LOADING, Phase.READY, Phase.RUNNING) else None

    def after(self, event: Event, spec: SessionSpec | None = None) -> tuple["Session", tuple[Action, ...]]:
        """The session after an event, and what to do; `spec` is the new one of ADMITTED.

        An event that the table does not have changes nothing: it comes late, from a session that has ended.
        """
        phase, actions = _TABLE.get((self.phase, event), (self.phase, ()))
        return Session(phase, spec or self.spec), actions


@dataclass(frozen=True)
class Admit:
    """The session is let in."""


@dataclass(frozen=True)
class Refuse:
    """It is not."""

    reason: str


@dataclass(frozen=True)
class AskStarter:
    """It depends on whether the starter that the node waits for still wants it."""

    spec: SessionSpec


def admission(session: Session, requested: SessionSpec) -> Admit | Refuse | AskStarter:
    """Whether a session may begin now.

    The node's own run may begin a new epoch at any time. Another run has to wait while this one is at work; a node
    that merely waits for its ring to close, or whose session broke, is kept for its starter as long as that lives.
    """
    last = session.spec
    if last is not None and last.run == requested.run:
        # The request of an earlier attempt may arrive late, for one, after this node was stopped for a while.
        is_running = requested.epoch == last.epoch and session.phase is Phase.RUNNING
        if requested.epoch < last.epoch or is_running:
            return Refuse(f"epoch {requested.epoch} of this run is over: this node has been in epoch {last.epoch}")
        return Admit()
    match session.phase:
        case Phase.LOADING | Phase.RUNNING if last is not None:
            return busy_with(last)
        case Phase.READY | Phase.BROKEN if last is not None:
            return AskStarter(last)
    return Admit()


def busy_with(spec: SessionSpec) -> Refuse:
    """The refusal that names whom the node serves."""
    starter = f"{spec.starter.addr}:{spec.starter.port}"
    serves = f"already serves the starter at {starter} with {spec.model} (run {spec.run})"
    return Refuse(f"{serves}; it ends with that run unless that starter has --keep-nodes")
