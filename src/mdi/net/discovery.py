"""DNS-SD over multicast DNS (RFC 6763, RFC 6762): how nodes of one local network find each other without addresses.

An entry says where a node answers HTTP, its version, and the fingerprint of its key. Anybody may make one, and anybody
can read them all, so an entry is a hint: what a node is, its answers prove.
"""

import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdi.net.access import parse_ip
from mdi.net.interfaces import shared_addresses
from mdi.strings import one_line

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf

log = logging.getLogger(__name__)

SERVICE = "_mdi-llm._tcp.local."
MAX_ENTRIES = 256  # of a network that are read
RESOLVE_MS = 1000  # for the rest of an entry, of which the name came
_FINGERPRINT = re.compile(r"[0-9a-f]{4}")
_OF_PROCESS = re.compile(r" \[[0-9a-f]+\]$")
_MAX_NAME_BYTES = 63  # of one label (RFC 1035)


@dataclass(frozen=True)
class Entry:
    """What the network says of a node."""

    name: str
    addresses: tuple[str, ...]  # those of IPv4 first
    port: int
    version: str
    fingerprint: str


class Announcement:
    """An entry for a node of this machine, as long as the context lasts.

    It is made in a thread of its own, since the network is first asked for a second whether the name is free.
    Where the network does not carry it, a line says so: the node can still be named by its address.
    """

    def __init__(self, name: str, process: str, port: int, version: str, fingerprint: str) -> None:
        """`process` tells this node from any other one, whatever `name` its machine has."""
        self._name, self._server = _instance(name, process), f"mdi-{process}.local."
        self._port, self._txt = port, {"version": version, "port": str(port), "key": fingerprint}
        self._zeroconf: Zeroconf | None = None
        self._thread = threading.Thread(target=self._register, name="announcement", daemon=True)

    def __enter__(self) -> "Announcement":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._zeroconf is not None:
            self._zeroconf.close()

    def wait(self) -> None:
        """Wait until the entry is made, or cannot be."""
        self._thread.join()

    def _register(self) -> None:
        from zeroconf import Error, ServiceInfo

        addresses = shared_addresses()
        if not addresses:
            log.info("no network to announce this node on")
            return
        info = ServiceInfo(
            SERVICE,
            f"{self._name}.{SERVICE}",
            parsed_addresses=addresses,
            port=self._port,
            properties=self._txt,
            server=self._server,
        )
        try:
            self._zeroconf = _open(addresses)
            self._zeroconf.register_service(info)
        except (OSError, RuntimeError, Error) as exc:
            log.warning("--discover will not find this node, whose network takes no announcement: %s", one_line(exc))


def browse(seconds: float) -> list[Entry]:
    """The nodes that answer within so many seconds, by name, on all networks of this machine. Raises `OSError`."""
    from zeroconf import ServiceBrowser

    addresses = shared_addresses()
    if not addresses:
        return []
    names: dict[str, None] = {}

    def note(zeroconf: "Zeroconf", service_type: str, name: str, state_change: "ServiceStateChange") -> None:
        if len(names) < MAX_ENTRIES:
            names[name] = None

    zeroconf = _open(addresses)
    try:
        with ServiceBrowser(zeroconf, SERVICE, handlers=[note]):
            time.sleep(seconds)
        found = [_read(zeroconf, name) for name in sorted(names.copy())]
    finally:
        zeroconf.close()
    return [entry for entry in found if entry is not None]


def _open(addresses: list[str]) -> "Zeroconf":
    from zeroconf import Zeroconf

    return Zeroconf(interfaces=list(addresses))


def _read(zeroconf: "Zeroconf", name: str) -> Entry | None:
    """The entry of a name; None where there is none by now, or none that a node makes."""
    from zeroconf import BadTypeInNameException

    try:
        info = zeroconf.get_service_info(SERVICE, name, RESOLVE_MS)
    except BadTypeInNameException:
        return None
    return None if info is None else _entry(name, info)


def _entry(name: str, info: "ServiceInfo") -> Entry | None:
    ips = [ip for text in info.parsed_scoped_addresses() if (ip := parse_ip(text)) is not None and not ip.is_link_local]
    version, fingerprint = _text(info.properties, b"version"), _text(info.properties, b"key")
    if not ips or not info.port or _FINGERPRINT.fullmatch(fingerprint) is None:
        return None
    addresses = tuple(map(str, sorted(ips, key=lambda ip: ip.version)))
    shown = _OF_PROCESS.sub("", name.removesuffix(f".{SERVICE}"))
    return Entry(one_line(shown, 100), addresses, info.port, version, fingerprint)


def _text(properties: Mapping[bytes, bytes | None], key: bytes) -> str:
    return one_line((properties.get(key) or b"").decode("ascii", "replace") or "-", 40)


def _instance(name: str, process: str) -> str:
    """The name of an entry: one label with the machine's name, less its domain, and the process.

    The process is in it because machines of one name are common, and two of them that start at once, as after a power
    cut, ask for the name at once: both take it to be free, and only one of them is found.
    """
    suffix = f" [{process}]"
    host = name.partition(".")[0].encode()[: _MAX_NAME_BYTES - len(suffix)].decode(errors="ignore")
    return f"{host or 'node'}{suffix}"
