"""What each of some nodes says of itself, and what it finds when it tries to reach the others and this machine."""

import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from mdi.cluster.reachability import Pair
from mdi.cluster.visitor import Visitor
from mdi.control.attempts import MAX_ATTEMPTS, attempt, outcome_of
from mdi.control.client import ControlClient
from mdi.control.reach import Outcome, Reach, Target
from mdi.control.status import NodeStatus
from mdi.errors import ControlError
from mdi.net.access import Access, parse_ip
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts

MAX_CALLS = 32  # of nodes at once
HERE = 0  # the number of this machine; the nodes have those from 1

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class NodeToAsk:
    """A node and where it answers HTTP."""

    name: str  # for errors
    addr: str
    port: int
    by_address: bool  # see `Caller`


@dataclass(frozen=True)
class Answered:
    """A node that was asked, and its status, or why there is none."""

    node: NodeToAsk
    answer: NodeStatus | ControlError

    @property
    def status(self) -> NodeStatus | None:
        return self.answer if isinstance(self.answer, NodeStatus) else None


class NodeSurvey:
    """Calls all nodes at once, with deadlines: it takes seconds."""

    def __init__(self, access: Access, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self._access, self._timeouts = access, timeouts

    def ask(self, nodes: Sequence[NodeToAsk]) -> list[Answered]:
        """What each says of itself."""
        return _at_once(self._ask, nodes)

    def try_ways(self, answered: Sequence[Answered], here: Visitor | None) -> Mapping[Pair, Reach]:
        """What each node finds when it tries each other one, and this machine where it listens as `here`.

        One that cannot be asked finds nothing.
        """
        numbers = range(len(answered) + 1)
        able = [one for one in numbers if one == HERE or answered[one - 1].status is not None]

        def ways_from(one: int) -> dict[Pair, Reach]:
            others = [other for other in numbers if other != one]
            found = _at_once(lambda other: self._try(answered, here, one, other), others, MAX_ATTEMPTS)
            return {(one, other): reach for other, reach in zip(others, found, strict=True) if reach is not None}

        return {pair: reach for ways in _at_once(ways_from, able) for pair, reach in ways.items()}

    def _client(self, node: NodeToAsk) -> ControlClient:
        return ControlClient(node.name, node.addr, node.port, self._access, self._timeouts, by_address=node.by_address)

    def _ask(self, node: NodeToAsk) -> Answered:
        try:
            return Answered(node, self._client(node).status())
        except ControlError as exc:
            return Answered(node, exc)

    def _try(self, answered: Sequence[Answered], here: Visitor | None, one: int, other: int) -> Reach | None:
        """What node number `one` finds of number `other`; None where it cannot be told."""
        if one == HERE:
            return self._try_from_here(answered[other - 1])
        asked = answered[one - 1]
        target = _visitor_target(asked, here) if other == HERE else self._target(answered[other - 1])
        if target is None:
            return None
        try:
            return self._client(asked.node).reach(target)
        except ControlError:  # busy, or of an earlier version
            return None

    def _try_from_here(self, found: Answered) -> Reach:
        if isinstance(found.answer, ControlError):
            return Reach(outcome_of(found.answer))
        target = self._target(found)
        return Reach(Outcome.REACHED) if target is None else attempt(target, self._access, self._timeouts)

    def _target(self, found: Answered) -> Target | None:
        """Where others are to try a node: the address that it was called at here, else the first of its name."""
        if self._access.tls is not None and parse_ip(found.node.addr) is None:
            return None  # its certificate is for the name
        called = found.status.called if found.status else None
        addr = called or _first_address(found.node.addr)
        return None if addr is None else Target(addr, found.node.port)


def _visitor_target(asked: Answered, here: Visitor | None) -> Target | None:
    """This machine, as a node sees it."""
    caller = asked.status.caller if asked.status else None
    return None if caller is None or here is None else Target(caller, here.port)


def _first_address(addr: str) -> str | None:
    if parse_ip(addr) is not None:
        return addr
    try:
        return str(socket.getaddrinfo(addr, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError):
        return None


def _at_once(call: Callable[[S], T], values: Sequence[S], most: int = MAX_CALLS) -> list[T]:
    if not values:
        return []
    with ThreadPoolExecutor(min(len(values), most), "survey") as pool:
        return list(pool.map(call, values))
