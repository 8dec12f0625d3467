"""Secondaries that announce themselves on the local network: where they are, and which of them a starter can use."""

import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mdi import __version__
from mdi.config.addresses import NodeAddress
from mdi.control.client import ControlClient
from mdi.control.status import NodeState, SecondaryStatus
from mdi.errors import ConfigError, ControlError
from mdi.installation import program_name
from mdi.net.access import Access
from mdi.net.discovery import Entry, browse
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.strings import one_line

log = logging.getLogger(__name__)

CONNECT_S = 1.0  # to one of the addresses of an entry


@dataclass(frozen=True)
class Discovered:
    """A node that announces itself, and the first of its addresses that can be reached."""

    entry: Entry
    where: NodeAddress


def discover(seconds: float) -> list[Discovered]:
    """All nodes that answer, of whatever key and version. Raises `ConfigError` where this machine cannot ask."""
    try:
        entries = browse(seconds)
    except (OSError, RuntimeError) as exc:
        raise ConfigError(f"--discover: no network carries it ({one_line(exc)}): name the nodes by --nodes") from exc
    if not entries:
        return []
    with ThreadPoolExecutor(len(entries), "discover") as pool:
        return list(pool.map(_located, entries))


def usable_nodes(seconds: float, access: Access, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> tuple[NodeAddress, ...]:
    """The secondaries that a starter can use; why not the others is told. Raises `ConfigError` where there are none."""
    found = discover(seconds)
    usable: dict[str | None, NodeAddress] = {}  # by process: a node may have more than one entry
    with ThreadPoolExecutor(max(1, len(found)), "discover") as pool:
        answers = pool.map(lambda node: _process_of(node, access, timeouts), found)
        for node, answer in zip(found, answers, strict=True):
            if isinstance(answer, ControlError):
                log.warning("--discover leaves out %s at %s: %s", node.entry.name, node.where, answer)
            else:
                usable.setdefault(answer, node.where)
    if not usable:
        raise ConfigError(
            f"--discover found no node to use within {seconds:g} s: start {program_name('secondary')} on each machine, "
            "with the same MDI_KEY, or name the nodes by --nodes"
        )
    return tuple(usable.values())


def _process_of(node: Discovered, access: Access, timeouts: Timeouts) -> str | ControlError | None:
    """Which process a node that can be used is; else why it cannot."""
    keys, where = access.keys, node.where
    if keys is None or node.entry.fingerprint not in keys.fingerprints:
        return ControlError("it has another key")
    if node.entry.version != __version__:
        return ControlError(f"it runs version {node.entry.version}, this machine {__version__}")
    try:
        status = ControlClient("the node", where.addr, where.port, access, timeouts, by_address=True).status()
    except ControlError as exc:
        return exc
    if not isinstance(status, SecondaryStatus):
        return ControlError("it is a starter")
    return ControlError("it serves another run") if status.state is not NodeState.IDLE else status.process


def _located(entry: Entry) -> Discovered:
    addr = next((addr for addr in entry.addresses if _is_reachable(addr, entry.port)), entry.addresses[0])
    return Discovered(entry, NodeAddress(addr, entry.port))


def _is_reachable(addr: str, port: int) -> bool:
    try:
        socket.create_connection((addr, port), CONNECT_S).close()
    except OSError:
        return False
    return True
