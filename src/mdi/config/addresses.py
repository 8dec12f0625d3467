"""Addresses of machines as users type them: what is wrong with one, and lists of them with ports."""

import re
from dataclasses import dataclass

from mdi.errors import ConfigError
from mdi.net.access import parse_ip
from mdi.net.sockets import MAX_PORT
from mdi.strings import quoted

DEFAULT_HTTP_PORT = 8088  # of a node without a file

_WITH_PORT = re.compile(r"(\[.*\]|[^:\[\]]+):[0-9]*")
_NAME = re.compile(r"[^\W_]([\w-]*\w)?(\.[^\W_]([\w-]*\w)?)*\.?")  # of a machine, in any script
_NUMBERS = re.compile(r"[0-9.]+")
_ENTRY = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<plain>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True)
class NodeAddress:
    """Where a node answers HTTP: the address or the name of its machine, and a port."""

    addr: str
    port: int = DEFAULT_HTTP_PORT

    def __str__(self) -> str:
        """As it is typed."""
        text = with_port(self.addr, self.port)
        return text.removesuffix(f":{DEFAULT_HTTP_PORT}") if self.port == DEFAULT_HTTP_PORT else text


def with_port(addr: str, port: int) -> str:
    """`192.168.1.5:8088`, `[fd00::5]:8088`"""
    return f"[{addr}]:{port}" if ":" in addr else f"{addr}:{port}"


def parse_addresses(text: str, flag: str) -> tuple[NodeAddress, ...]:
    """`192.168.1.11,pi4.local:8089,[fd00::5]:8088` -> addresses. Raises `ConfigError` that names the `flag`."""
    found: list[NodeAddress] = []
    for entry in text.split(","):
        address = _parse_entry(entry.strip(), flag)
        if address in found:
            raise ConfigError(f"{flag}: {address} is there twice")
        found.append(address)
    return tuple(found)


def _parse_entry(entry: str, flag: str) -> NodeAddress:
    if not entry:
        raise ConfigError(f"{flag}: an empty entry; expected addresses with commas between, such as 10.0.0.5,pi4.local")
    if parse_ip(entry) is not None:  # of IPv6, which may stand without brackets where it has no port
        return _checked(NodeAddress(entry), flag)
    match = _ENTRY.fullmatch(entry)
    if match is None:
        is_url = "://" in entry
        problem = address_problem(entry) if is_url else "is neither an address nor a name, with or without a port"
        raise ConfigError(f"{flag}: {quoted(entry)} {problem}")
    port = DEFAULT_HTTP_PORT if match["port"] is None else int(match["port"])
    if not 1 <= port <= MAX_PORT:
        raise ConfigError(f"{flag}: {quoted(entry)}: {port} is not a port number (1 to {MAX_PORT})")
    return _checked(NodeAddress(match["bracketed"] or match["plain"], port), flag)


def _checked(address: NodeAddress, flag: str) -> NodeAddress:
    if problem := address_problem(address.addr):
        raise ConfigError(f"{flag}: {quoted(address.addr)} {problem}")
    ip = parse_ip(address.addr)
    if ip is not None and ip.is_unspecified:
        raise ConfigError(f"{flag}: {address.addr} means any address: give the one that the node's machine has")
    if ip is not None and ip.version == 6 and ip.is_link_local:
        raise ConfigError(f"{flag}: {address.addr} means something on one cable only: give another of its addresses")
    return address


def address_problem(value: str) -> str | None:
    """What is wrong with the address of a machine, as the predicate of a sentence; None: nothing is seen."""
    if "://" in value or "/" in value:
        return "is a URL: an address or a name alone is expected, such as 192.168.1.5"
    if any(character.isspace() for character in value):
        return "holds a blank"
    if value.startswith("[") and value.endswith("]"):
        return f"stands in brackets: write {value[1:-1]}"
    if parse_ip(value) is not None:
        return None
    if _WITH_PORT.fullmatch(value):
        return "has a port: an address alone is expected, ports are keys of their own"
    if ":" in value or _NUMBERS.fullmatch(value) or not _NAME.fullmatch(value):
        return "is neither an address nor the name of a machine"
    return None
