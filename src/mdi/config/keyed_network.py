"""Nodes without a nodes configuration: they share a key, listen on all interfaces, and are known by their addresses."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mdi.config.addresses import NodeAddress, with_port
from mdi.config.network import NetworkConfig, NodeConfig
from mdi.errors import ConfigError
from mdi.files import write_text
from mdi.installation import program_name
from mdi.net.access import Access
from mdi.net.key_sources import KEY_FILE_VARIABLE, KEY_VARIABLE, keys_from
from mdi.net.sockets import any_address
from mdi.net.tls import tls_from_environment


def keyed_access(why: str) -> Access:
    """Whoever has the key of the environment, by TLS where that names certificates too.

    Raises `ConfigError` where there is no key, which begins with `why`.
    """
    keys = keys_from(None, None)
    if keys is None:
        raise ConfigError(
            f"{why} needs a key: `{program_name('secondary')} --make-key` prints one; set it as {KEY_VARIABLE} on all"
            f" machines, or its file as {KEY_FILE_VARIABLE}"
        )
    return Access(keys, tls_from_environment(), addrs=None)


def secondary_without_file(addr: str, port: int, ring_port: int) -> NodeConfig:
    """A secondary on all interfaces; `addr` is an address of its machine, and a ring port of 0 any free one."""
    access = keyed_access("a node without --nodes-config")
    # With TLS it is called by what its certificate is for, which may be a name that it does not know otherwise.
    names = tuple(with_port(name, port) for name in access.tls.names) if access.tls else ()
    return NodeConfig(addr, port, ring_port, 0, access=access, listen=any_address(), known_as=names)


def network_at(
    addresses: Iterable[NodeAddress], starter_addr: str, access: Access, *, port: int = 0, ring_port: int = 0
) -> NetworkConfig:
    """The network of a starter on this machine, and of secondaries that are asked for their ring ports.

    `starter_addr` is for the user to see: each node is told the address that it sees the starter at.
    """
    starter = NodeConfig(starter_addr, port, ring_port, 0, access=access, listen=any_address())
    secondaries = (NodeConfig(address.addr, address.port, 0, 0, access=access) for address in addresses)
    return NetworkConfig(starter, tuple(secondaries))


def save_network(path: Path, network: NetworkConfig) -> None:
    """Write a network as a nodes configuration, without its key. Raises `StorageError`."""
    nodes = {"starter": _node_json(network.starter), "secondary": [_node_json(node) for node in network.secondaries]}
    write_text(path, json.dumps({"nodes": nodes}, indent=4) + "\n")


def _node_json(node: NodeConfig) -> dict[str, Any]:
    listen = {} if node.listen is None else {"listen": node.listen}
    return {
        "addr": node.addr,
        **listen,
        "communication": {"port": node.http_port},
        "inference": {"port_in": node.port_in, "port_out": node.port_out},
    }
