"""Who may speak to a node: whoever knows the ring's key, or without one, whoever calls from a node's address."""

import ipaddress
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from mdi.net.keys import Key
from mdi.net.tls import Tls

RESOLVED_S = 10.0  # how long the addresses of a name are believed


@dataclass(frozen=True)
class Access:
    """What the configuration says of it, as one value that goes wherever connections are made or taken."""

    key: Key | None = None
    tls: Tls | None = None
    addrs: tuple[str, ...] | None = ()  # of the nodes that may call where there is no key; None: anyone may

    def check(self) -> None:
        """Raise `ConfigError` where a file that is named is missing or unusable."""
        if self.tls is not None:
            self.tls.check()


THIS_MACHINE = Access()


class Callers:
    """The machines of some nodes, by name or address. Called from any thread.

    Names are resolved when somebody calls, not before: a machine may get its address later than we start.
    """

    def __init__(self, addrs: Iterable[str], local: str) -> None:
        """`local` is the address that we listen on: to be called from it is to be called from this machine."""
        self._addrs, self._local = tuple(addrs), local
        self._places: set[str] = set()
        self._fresh_until_s = 0.0
        self._lock = threading.Lock()

    def include(self, address: str) -> bool:
        """Whether a connection from `address` comes from one of the machines."""
        with self._lock:
            if time.monotonic() >= self._fresh_until_s:
                self._places = {self._place(ip) for addr in self._addrs for ip in _resolve(addr)}
                self._fresh_until_s = time.monotonic() + RESOLVED_S
            return self._place(address) in self._places

    def _place(self, address: str) -> str:
        ip = _parse(address)
        return "here" if ip is not None and (ip.is_loopback or ip == _parse(self._local)) else str(ip)


def is_loopback(addr: str) -> bool:
    """Whether nobody but this machine can reach what listens on `addr`."""
    ips = [_parse(text) for text in _resolve(addr)]
    return bool(ips) and all(ip is not None and ip.is_loopback for ip in ips)


def _resolve(addr: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(addr, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip
