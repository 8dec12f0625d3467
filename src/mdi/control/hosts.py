"""What a node is called: the header Host of a request to it, and which values of that a node takes for its own.

The MAC of a request covers its Host, so a request to one node that is relayed to another one is refused there. And a
browser whose name server was made to point at a node (DNS rebinding) sends the name of the attacker's site.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mdi.net.access import parse_ip

LOCAL_ADDRESS = "mdi.local_address"  # in the environ: the node's end of the connection, as (address, port)

_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]+)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}

Name = tuple[str | ipaddress.IPv4Address | ipaddress.IPv6Address, int]


def content_type(environ: Mapping[str, Any]) -> str:
    """The type of a request's body, without its parameters. A web page may send forms and plain text to anybody."""
    return str(environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()


def host_of(addr: str, port: int) -> str:
    """The header Host for a node at `addr`, as clients send it. Raises `UnicodeError` for what cannot be a name."""
    if ":" in addr:
        return f"[{addr.partition('%')[0]}]:{port}"  # the zone of a link-local address means something only here
    return f"{addr.encode('idna').decode()}:{port}"


class OwnHosts:
    """The values of Host that mean this node."""

    def __init__(self, addr: str, known_as: Iterable[str] = ()) -> None:
        """
        Args:
            addr: that the node is configured to listen on.
            known_as: `address:port` under which others call it where something in between forwards to it; a port of
                0 means the one that it listens on.
        """
        self._addr = addr
        self._known_as = {name for text in known_as if (name := parse_host(text)) is not None}

    def include(self, host: str, local: tuple[str, int], scheme: str = "http") -> bool:
        """Whether `host` means this node, on a connection to its address and port `local`."""
        name = parse_host(host, scheme)
        if name is None:
            return False
        known_as = {(known, port or local[1]) for known, port in self._known_as}
        return name in known_as or name in self._names(local) or _is_loopback_name(name, local)

    def include_origin(self, origin: str, local: tuple[str, int], scheme: str) -> bool:
        """Whether a web page with this header Origin is this node's own."""
        theirs, _, host = origin.partition("://")
        return theirs == scheme and self.include(host, local, scheme)

    def describe(self, local: tuple[str, int]) -> str:
        """The node's own name, for the error of whoever calls it by another one."""
        return host_of(self._addr, local[1])

    def _names(self, local: tuple[str, int]) -> set[Name | None]:
        """The local address counts because the node may listen on all addresses of its machine, or be given by name."""
        return {parse_host(host_of(addr, local[1])) for addr in (self._addr, local[0])}


def parse_host(text: str, scheme: str = "http") -> Name | None:
    """Name or address, and port, of a header Host; all spellings of one are equal. None where it is none."""
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    name = match[1].strip("[]")
    port = int(match[2]) if match[2] else _DEFAULT_PORTS[scheme]
    return parse_ip(name) or name.lower().rstrip("."), port


def _is_loopback_name(name: Name, local: tuple[str, int]) -> bool:
    """Only this machine can connect to its loopback addresses, and it may call them by any of them."""
    ip = parse_ip(local[0])
    if ip is None or not ip.is_loopback or name[1] != local[1]:
        return False
    return name[0] == "localhost" if isinstance(name[0], str) else name[0].is_loopback
