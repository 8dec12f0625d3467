"""Nodes-config JSON -> frozen dataclasses, with every check on what a user writes into it.

Errors are `ConfigError`s that name the file, the key, the value and what is allowed.
"""

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mdi.config.addresses import address_problem, with_port
from mdi.config.bounds import parse_size
from mdi.config.paths import SETTINGS_DIR
from mdi.documents import read_json
from mdi.errors import ConfigError
from mdi.formats import DEVICE
from mdi.installation import program_name
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.key_sources import key_from_file, key_from_text, keys_from, warn_if_readable_by_others
from mdi.net.keys import Key
from mdi.net.sockets import MAX_PORT
from mdi.net.tls import Tls, tls_from_environment
from mdi.strings import did_you_mean, one_line, quoted

log = logging.getLogger(__name__)

MAX_SHARE = 10**6
MAX_LAYERS = 10_000
MAX_FILE_BYTES = 1 << 20
# Of the keys of a node. One that is missing may be there under another name, but not under one of these.
_NAMES = {"nodes", "starter", "secondary", "addr", "listen", "communication", "inference", "device", "share"}
_NAMES |= {"max_layers", "memory_limit", "port", "starter_addr", "known_as", "port_in", "port_out"}
LOOPBACK = ("localhost", "127.", "::1")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}")


@dataclass(frozen=True)
class NodeConfig:
    """One machine (or one device of a machine) of the ring."""

    addr: str
    http_port: int
    port_in: int
    port_out: int
    device: str | None = None
    share: float = 1.0  # how much work the node can take, relative to the others
    starter_addr: str | None = None  # where a secondary expects its starter
    access: Access = THIS_MACHINE  # which peers are authorized
    known_as: tuple[str, ...] = ()  # `address:port` by which others call its HTTP port, where something forwards to it
    listen: str | None = None  # the address that it listens on, where that is another than `addr`
    max_layers: int | None = None  # that a measured plan may give it; None: as many as its memory holds
    memory_limit_bytes: int | None = None  # that it may take for a model; None: what is free

    @property
    def listen_addr(self) -> str:
        """The address that its ports are bound to."""
        return self.listen or self.addr

    @property
    def tells_ring_port(self) -> bool:
        """Whether it listens for its predecessor on any free port: others ask it for that port."""
        return self.port_in == 0

    @property
    def is_called_by_address(self) -> bool:
        """Whether others call it by the address that its name has where they are, and not by the name.

        A node without a file knows its addresses and not what it is called. TLS needs the name of the certificate.
        """
        return self.tells_ring_port and self.access.tls is None

    @property
    def hosts(self) -> tuple[str, ...]:
        """What others call its HTTP port by, besides the address that it listens on."""
        return self.known_as if self.listen is None else (with_port(self.addr, self.http_port), *self.known_as)

    @property
    def host(self) -> str:
        """The machine as identified by the address; all loopback names are one."""
        return "loopback" if self.addr.startswith(LOOPBACK) else self.addr


@dataclass(frozen=True)
class NetworkConfig:
    """The ring: the starter, then the secondaries in order, and back to the starter."""

    starter: NodeConfig
    secondaries: tuple[NodeConfig, ...] = ()

    @property
    def nodes(self) -> tuple[NodeConfig, ...]:
        return (self.starter, *self.secondaries)

    @property
    def shares(self) -> list[float]:
        return [node.share for node in self.nodes]

    def with_starter_ports(self, http_port: int, port_in: int) -> "NetworkConfig":
        """The same, with the starter's ports where it was to take any free ones."""
        starter = self.starter
        with_ports = replace(starter, http_port=starter.http_port or http_port, port_in=starter.port_in or port_in)
        return replace(self, starter=with_ports)


def node_name(index: int) -> str:
    """The name of node `index` of the network in messages: `starter`, `secondary 0`, ..."""
    return "starter" if index == 0 else f"secondary {index - 1}"


def load_network(path: Path) -> NetworkConfig:
    """Read a file that describes the whole network; one of the examples, where only they have a file of that name."""
    path = _found(path)
    root = _Reader(path, _load_json(path))
    access = _read_access(root)
    readers = root.child("nodes")
    root.finish()
    starter = readers.child("starter")
    secondaries = readers.children("secondary")
    readers.finish()
    nodes = [_read_node(reader) for reader in (starter, *secondaries)]
    _refuse_shared_ports(path, nodes)
    access = replace(access, addrs=tuple(dict.fromkeys(node.addr for node in nodes)))
    nodes = [replace(node, access=access) for node in nodes]
    return NetworkConfig(nodes[0], tuple(nodes[1:]))


def load_node(path: Path, index: int | None) -> NodeConfig:
    """Read one secondary: number `index` of a network file, or the only node of a single-node file."""
    path = _found(path)
    data = _load_json(path)
    if "nodes" not in data:
        reader = _Reader(path, data)
        access = _read_access(reader)
        node = _read_node(reader)
        _refuse_shared_ports(path, [node])
        return replace(node, access=replace(access, addrs=_addrs_of(node)))
    secondaries = load_network(path).secondaries
    if index is None:
        example = f"`{program_name('secondary')} --nodes-config {path} 0`"
        raise ConfigError(f"{path} has {_range_of(len(secondaries))}: say which one, as in {example}")
    if not 0 <= index < len(secondaries):
        raise ConfigError(f"{path} has {_range_of(len(secondaries))}, not {index}")
    return secondaries[index]


def _found(path: Path) -> Path:
    """`path`, or the example that it names: an installed package hides its examples among its files."""
    example = SETTINGS_DIR / path
    # Those of `os.path` raise nothing, whatever the path: who reads the file says what is wrong with it.
    if os.path.exists(path) or ".." in path.parts or not os.path.isfile(example):
        return path
    log.warning("%s: no such file here; this is the example %s", path, example)
    return example


def _addrs_of(node: NodeConfig) -> tuple[str, ...] | None:
    """The addresses that may connect to a node that knows no others: its starter's, or any if that is unknown too."""
    return (node.addr, node.starter_addr) if node.starter_addr else None


def _range_of(n_secondaries: int) -> str:
    return f"secondaries 0 to {n_secondaries - 1}" if n_secondaries else "no secondaries"


def _load_json(path: Path) -> dict[str, Any]:
    data = read_json(path, MAX_FILE_BYTES, ConfigError)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected an object at the top level")
    return data


class _Reader:
    """Takes the keys of one JSON object, one by one; whatever is left over is an error.

    A method raises `ConfigError` where its key is missing, or returns None if it is called `optional_...`.
    """

    def __init__(self, path: Path, data: dict[str, Any], where: str = "") -> None:
        self._path, self._data, self._where = path, dict(data), where
        self._known: list[str] = []  # what was asked for

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._path}: {one_line(self._where + key)}: {problem}")

    def take(self, key: str, kind: type | tuple[type, ...], wanted: str) -> Any:
        self._known.append(key)
        if key not in self._data:
            self._refuse_similar(key)
            raise self.error(key, "missing key")
        value = self._data.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(key, f"{quoted(value)} is not {wanted}")
        return value

    def has(self, key: str) -> bool:
        self._known.append(key)
        return key in self._data

    def child(self, key: str) -> "_Reader":
        return _Reader(self._path, self.take(key, dict, "an object"), f"{self._where}{key}.")

    def children(self, key: str) -> list["_Reader"]:
        values = self.take(key, list, "a list")
        for i, value in enumerate(values):
            if not isinstance(value, dict):
                raise self.error(f"{key}[{i}]", f"{quoted(value)} is not an object")
        return [_Reader(self._path, value, f"{self._where}{key}[{i}].") for i, value in enumerate(values)]

    def port(self, key: str) -> int:
        port = self.take(key, int, "a port number")
        if not 0 <= port <= MAX_PORT:
            raise self.error(key, f"{port} is not a port number (0 to {MAX_PORT})")
        return int(port)

    def string(self, key: str) -> str:
        value: str = self.take(key, str, "a string")
        if not value.strip():
            raise self.error(key, "is empty")
        if not value.isprintable():
            raise self.error(key, f"{quoted(value)} holds characters that cannot be printed")
        return value

    def optional_string(self, key: str) -> str | None:
        return self.string(key) if self.has(key) else None

    def address(self, key: str) -> str:
        """An IP address, or the name of a machine; nothing else of what stands in a URL."""
        value = self.string(key)
        if problem := address_problem(value):
            raise self.error(key, f"{quoted(value)} {problem}")
        return value

    def optional_address(self, key: str) -> str | None:
        return self.address(key) if self.has(key) else None

    def file(self, key: str) -> Path:
        """A path, relative to the folder of the configuration."""
        return self._path.parent / self.string(key)

    def share(self) -> float:
        share = self.take("share", (int, float), "a number")
        if not 0 < share <= MAX_SHARE:
            raise self.error("share", f"{str(share)[:40]} is not a positive number (up to {MAX_SHARE})")
        return float(share)

    def max_layers(self) -> int:
        layers = self.take("max_layers", int, "a number of layers")
        if not 1 <= layers <= MAX_LAYERS:
            raise self.error("max_layers", f"{quoted(layers)} is not a number of layers (1 to {MAX_LAYERS})")
        return int(layers)

    def optional_size(self, key: str) -> int | None:
        """Bytes, written with their unit."""
        return parse_size(self.string(key), f"{self._path}: {self._where}{key}") if self.has(key) else None

    def device(self) -> str:
        device: str = self.take("device", str, "a string")
        if not DEVICE.fullmatch(device):
            raise self.error("device", f"{quoted(device)} is not cpu, mps, cuda or cuda:N")
        return device

    def optional_key(self, name: str) -> Key | None:
        """A key of the ring, as the string `name` or in the file `<name>_file`. Errors do not quote it."""
        file_name = f"{name}_file"
        path = self.file(file_name) if self.has(file_name) else None
        if not self.has(name):
            return None if path is None else key_from_file(path, f"{self._path}: {self._where}{file_name}")
        if path is not None:
            raise self.error(name, f"{file_name} gives a key too: keep one of them")
        text = self._data.pop(name)
        if not isinstance(text, str):
            raise self.error(name, "is not a string")
        warn_if_readable_by_others(self._path)
        return key_from_text(text, f"{self._path}: {self._where}{name}")

    def optional_hosts(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list, "a list") if self.has(key) else []
        for value in values:
            if not isinstance(value, str) or not _HOST.fullmatch(value):
                raise self.error(key, f"{str(value)[:40]!r} is not an address with a port, like 192.168.1.5:8088")
        return tuple(values)

    def finish(self) -> None:
        if self._data:
            key = next(iter(self._data))
            raise self.error(key, f"unknown key{did_you_mean(key, self._known)}")

    def _refuse_similar(self, missing: str) -> None:
        """Raise the error for a misspelled `missing` key rather than for its absence."""
        for key in self._data.keys() - _NAMES:
            if meant := did_you_mean(key, [missing]):
                raise self.error(key, f"unknown key{meant}")


def _read_access(root: _Reader) -> Access:
    """The top-level keys `key`, `key_old`, both also with `_file`, and `tls`."""
    keys = keys_from(root.optional_key("key"), root.optional_key("key_old"))
    own = _read_tls(root.child("tls")) if root.has("tls") else None
    return Access(keys, tls_from_environment() or own)


def _read_tls(reader: _Reader) -> Tls:
    tls = Tls(reader.file("certificate"), reader.file("private_key"), reader.file("ca"))
    reader.finish()
    return tls


def _read_node(reader: _Reader) -> NodeConfig:
    addr, listen = reader.address("addr"), reader.optional_address("listen")
    communication = reader.child("communication")
    http_port = communication.port("port")
    starter_addr = communication.optional_address("starter_addr")
    known_as = communication.optional_hosts("known_as")
    communication.finish()
    inference = reader.child("inference")
    port_in, port_out = inference.port("port_in"), inference.port("port_out")
    inference.finish()
    device = reader.device() if reader.has("device") else None
    share = reader.share() if reader.has("share") else 1.0
    max_layers = reader.max_layers() if reader.has("max_layers") else None
    memory_limit_bytes = reader.optional_size("memory_limit")
    reader.finish()
    return NodeConfig(
        addr,
        http_port,
        port_in,
        port_out,
        device,
        share,
        starter_addr,
        known_as=known_as,
        listen=listen,
        max_layers=max_layers,
        memory_limit_bytes=memory_limit_bytes,
    )


def _refuse_shared_ports(path: Path, nodes: Iterable[NodeConfig]) -> None:
    seen: set[tuple[str, int]] = set()
    for node in nodes:
        for port in (node.http_port, node.port_in, node.port_out):
            if port and (node.addr, port) in seen:
                raise ConfigError(f"{path}: port {port} of {node.addr} is used twice")
            seen.add((node.addr, port))
