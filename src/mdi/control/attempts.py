"""Attempts of a node to reach another one, which others may ask it for.

Whoever may use a node can have it open a connection, so what it does for him is bounded: to an address, not a name, and
one that could be of its ring; a request of ours to the HTTP port, signed for that address; and to a ring port, which
only a node of the same ring tells it, a connection without a byte. It answers with two words.
"""

import errno
import socket

from mdi.control.client import ControlClient
from mdi.control.protocol import NotANode, NotAuthorized, Refused, UnknownName, Unreachable
from mdi.control.reach import Outcome, Reach, Target
from mdi.errors import ControlError
from mdi.net.access import Access, AllowedHosts, IpAddress, parse_ip
from mdi.net.sockets import reset
from mdi.net.timeouts import Timeouts

MAX_ATTEMPTS = 4  # of one node at once: half of the threads that answer requests
_NO_WAY = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_BROADCAST = "255.255.255.255"


def check_target(target: Target, caller: str, access: Access) -> None:
    """Raise `ControlError` unless `target` could be a node of the ring of a node with `access`, asked by `caller`."""
    ip, caller_ip = parse_ip(target.addr), parse_ip(caller)
    if ip is None:
        raise ControlError("only addresses are tried, not names")
    if ip.is_loopback and (caller_ip is None or not caller_ip.is_loopback):
        raise ControlError(f"{target.addr} is this node's own machine")
    if _is_of_no_ring(ip):
        raise ControlError(f"{target.addr} is no address that a node of another machine can have")
    if ip == caller_ip:
        return
    if access.addrs is None and access.keys is None:
        raise ControlError("this node has no key, and knows no addresses")
    if access.addrs is not None and not AllowedHosts(access.addrs, "").include(target.addr):
        raise ControlError(f"{target.addr} is not in this node's configuration")


def _is_of_no_ring(ip: IpAddress) -> bool:
    """Among link-local addresses are the services that clouds give their machines credentials by."""
    return ip.is_unspecified or ip.is_multicast or ip.is_link_local or str(ip) == _BROADCAST


def attempt(target: Target, access: Access, timeouts: Timeouts) -> Reach:
    """Try both ports of a node from here. Takes seconds at most."""
    client = ControlClient("the node", target.addr, target.port, access, timeouts, by_address=access.tls is None)
    try:
        status = client.status()
    except ControlError as exc:
        return Reach(outcome_of(exc))
    if status.ring_port is None:
        return Reach(Outcome.REACHED)
    return Reach(Outcome.REACHED, _try_port(target.addr, status.ring_port, timeouts.connect_s))


def outcome_of(error: ControlError) -> Outcome:
    """What became of a call that failed."""
    match error:
        case UnknownName():
            return Outcome.UNKNOWN_NAME
        case Unreachable():
            return _of_os_error(error.__cause__)
        case NotAuthorized():
            return Outcome.OTHER_KEY
        case NotANode():
            return Outcome.NOT_A_NODE
        case Refused():
            return Outcome.REFUSED
    return Outcome.NO_ANSWER


def _try_port(addr: str, port: int, timeout_s: float) -> Outcome:
    try:
        reset(socket.create_connection((addr, port), timeout_s))
    except OSError as exc:
        return _of_os_error(exc)
    return Outcome.REACHED


def _of_os_error(exc: BaseException | None) -> Outcome:
    match exc:
        case TimeoutError():
            return Outcome.TIMED_OUT
        case ConnectionRefusedError():
            return Outcome.REFUSED
        case OSError(errno=number) if number in _NO_WAY:
            return Outcome.NO_WAY
    return Outcome.NO_ANSWER
