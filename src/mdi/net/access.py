"""Which peers are authorized: those that know the ring's key or, without one, those at the address of a node."""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mdi.net.keys import Keys
from mdi.net.timeouts import Clock
from mdi.net.tls import Tls

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

RESOLVED_S = 10.0  # how long the addresses of a name are believed
ASK_AGAIN_S = 1.0  # how long an address is refused without asking: the machine behind a name may have got a new one


@dataclass(frozen=True)
class Access:
    """Keys, TLS files and allowed addresses of the configuration, as one value for all connections of a node."""

    keys: Keys | None = None
    tls: Tls | None = None
    addrs: tuple[str, ...] | None = ()  # of the nodes that are authorized where there is no key; None: all are

    def check(self, *, waits: bool = False) -> None:
        """Raise `ConfigError` where a file that is named is missing or unusable; see `Tls.check`."""
        if self.tls is not None:
            self.tls.check(waits=waits)


THIS_MACHINE = Access()


def resolved(addr: str) -> set[str]:
    """The addresses of a name, or the address itself; none where the name is unknown. Waits for the name service."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(addr, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()


def as_written(addr: str) -> set[str]:
    """`addr` where it is an address, nothing where it is a name; for callers that must not wait."""
    return {addr} if parse_ip(addr) is not None else set()


class AllowedHosts:
    """The machines of some nodes, by name or address. Called from any thread.

    Names are resolved when a connection comes, not before: a machine may get its address later than we start.
    """

    def __init__(
        self,
        addrs: Iterable[str],
        local: str,
        clock: Clock = time.monotonic,
        resolve: Callable[[str], set[str]] = resolved,
    ) -> None:
        """`local` is the address that we listen on: connections from it are local."""
        self._addrs, self._local, self._clock, self._resolve = tuple(addrs), local, clock, resolve
        self._hosts: set[str] = set()
        self._resolved_s = -float("inf")
        self._lock = threading.Lock()

    def include(self, address: str) -> bool:
        """Whether a connection from `address` comes from one of the machines."""
        host = self._host(address)
        with self._lock:
            age_s = self._clock() - self._resolved_s
            if age_s >= (RESOLVED_S if host in self._hosts else ASK_AGAIN_S):
                self._hosts = {self._host(ip) for addr in self._addrs for ip in self._resolve(addr)}
                self._resolved_s = self._clock()
            return host in self._hosts

    def _host(self, address: str) -> str:
        ip = parse_ip(address)
        return "here" if ip is not None and (ip.is_loopback or ip == parse_ip(self._local)) else str(ip)


def is_loopback(addr: str) -> bool:
    """Whether only this machine can reach what listens on `addr`."""
    ips = [parse_ip(text) for text in resolved(addr)]
    return bool(ips) and all(ip is not None and ip.is_loopback for ip in ips)


def plain_address(address: str) -> str:
    """An address of a socket as people write it: IPv4 also where a dual-stack socket shows it as ::ffff:10.0.0.1."""
    ip = parse_ip(address)
    return str(ip) if ip is not None and ip.version == 4 else address


def parse_ip(address: str) -> IpAddress | None:
    """The address, in any spelling and without its zone; None where it is a name."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip  # a dual-stack socket shows 10.0.0.1 as ::ffff:10.0.0.1
