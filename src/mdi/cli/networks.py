"""Which nodes a command is about: those of a nodes configuration, or those at addresses that were typed."""

import logging
from collections.abc import Sequence

from mdi.cli.output_files import check_place
from mdi.config.addresses import NodeAddress, parse_addresses
from mdi.config.keyed_network import keyed_access, network_at, save_network, secondary_without_file
from mdi.config.network import NetworkConfig, NodeConfig, load_network, load_node
from mdi.config.options import NetworkOptions, SecondaryOptions
from mdi.errors import ConfigError
from mdi.files import check_replaceable
from mdi.installation import program_name
from mdi.net.access import is_loopback, parse_ip
from mdi.net.interfaces import shared_addresses
from mdi.net.sockets import listen, own_address_towards
from mdi.net.tls import Tls
from mdi.strings import count

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


def network_of(options: NetworkOptions) -> NetworkConfig:
    """The network that the options name. Raises `ConfigError`, also where its file of `--save-nodes` has no place."""
    if options.is_of_file:
        return load_network(options.nodes_config)
    addresses = () if options.nodes is None else parse_addresses(options.nodes, "--nodes")
    access = keyed_access("--discover" if options.nodes is None else "--nodes")
    if options.save_nodes is not None:
        check_place("--save-nodes", options.save_nodes)
        check_replaceable(options.save_nodes)
    if options.discover is not None:
        from mdi.cluster.discovered import usable_nodes  # it calls nodes, which --help can do without

        addresses = usable_nodes(options.discover, access)
    _refuse_own_machine_alone(addresses)
    own = starter_address(addresses)
    if access.tls is not None:
        own = _certified(own, access.tls)
    network = network_at(addresses, own, access, port=options.port, ring_port=options.ring_port)
    _try_ports(network.starter)
    return network


def _refuse_own_machine_alone(addresses: Sequence[NodeAddress]) -> None:
    """Raise `ConfigError` for a loopback address beside others: there the neighbours of that node would look for it."""
    here = [is_loopback(address.addr) for address in addresses]
    if any(here) and not all(here):
        address = addresses[here.index(True)]
        own = ", ".join(shared_addresses()) or "its own in your network"
        raise ConfigError(f"--nodes: {address} means this machine alone; for the others give one of {own}")


def describe(options: NetworkOptions, network: NetworkConfig) -> str:
    """What a starter is of, and where that is from."""
    nodes = count(len(network.nodes), "node")
    if options.is_of_file:
        return f"starter of {nodes}, from {options.nodes_config}"
    where = ", ".join(str(NodeAddress(node.addr, node.http_port)) for node in network.secondaries)
    return f"starter of {nodes}, with {where}"


def starter_address(addresses: Sequence[NodeAddress]) -> str:
    """This machine's address for the user: that of a secondary beside the starter, else the one towards the first."""
    own = [own_address_towards(address.addr) for address in addresses]
    beside = [mine for mine, address in zip(own, addresses, strict=True) if mine and _same(mine, address.addr)]
    return next((mine for mine in (*beside, *own) if mine), LOOPBACK)


def _certified(addr: str, tls: Tls) -> str:
    """The starter's address as its certificate has it: whoever calls the starter compares the two."""
    return addr if addr in tls.names else next(iter(tls.names), addr)


def _same(one: str, other: str) -> bool:
    return parse_ip(one) == parse_ip(other) is not None


def save_nodes(options: NetworkOptions, network: NetworkConfig) -> None:
    """Write the network to the file of `--save-nodes`, if there is to be one."""
    if options.save_nodes is not None:
        save_network(options.save_nodes, network)
        log.warning("%s: the network, for --nodes-config; the key is not in it", options.save_nodes)


def secondary_of(options: SecondaryOptions) -> NodeConfig:
    """The node that the options name. Raises `ConfigError`."""
    if options.nodes_config is not None:
        return load_node(options.nodes_config, options.index)
    addr = next(iter(shared_addresses()), LOOPBACK)
    node = secondary_without_file(addr, options.port, options.ring_port)
    _try_ports(node)
    return node


def starter_of(options: SecondaryOptions) -> NodeAddress | None:
    """The starter that --join names. Raises `ConfigError`."""
    if options.join is None:
        return None
    addresses = parse_addresses(options.join, "--join")
    if len(addresses) > 1:
        raise ConfigError(f"--join {options.join}: a node takes part in one ring: give one starter")
    return addresses[0]


def _try_ports(node: NodeConfig) -> None:
    """Raise `ConfigError` where a port of this node is taken, which names the flag that it came from."""
    for port, flag in ((node.http_port, "--port"), (node.port_in, "--ring-port")):
        listen(node.listen_addr, port, flag).close()


def advice_for_starter(port: int) -> str:
    """What a secondary without a file says: where it is, and what to type on the starter."""
    addresses = shared_addresses() or [LOOPBACK]
    typed = NodeAddress(addresses[0], port)
    others = f" (also {', '.join(addresses[1:])})" if addresses[1:] else ""
    return f"at {addresses[0]} port {port}{others}; on the starter: {program_name('starter')} --nodes {typed}"
