"""Run every node of a network that is on this machine, with one log. The options are those of the starter."""

import logging
import sys
from typing import NoReturn

from mdi.cli.commands import starter
from mdi.cli.local_ring import (
    STOP_TIMEOUT_S,
    check_ports,
    flags_of_addresses,
    flags_of_file,
    local_nodes,
    run_nodes,
    stream_as_here,
)
from mdi.cli.networks import network_of
from mdi.cli.parser import Parser, options_from
from mdi.cli.script import run_script, set_up_logging
from mdi.cli.signals import GRACE_S, Signals
from mdi.config.network import NetworkConfig
from mdi.config.options import NodeOptions, StarterOptions
from mdi.errors import ConfigError
from mdi.installation import program_name
from mdi.net.interfaces import all_addresses

log = logging.getLogger(__name__)


def build_parser() -> Parser:
    parser = starter.build_parser()
    parser.description = f"{__doc__} Those of logging, --device, --memory-limit and --compile hold for every node."
    return parser


def main(signals: Signals) -> None:
    options = options_from(StarterOptions, build_parser().parse_args())
    set_up_logging(verbose=options.verbose, quiet=options.quiet)
    if options.discover is not None:
        raise ConfigError(f"--discover finds nodes that run already: give it to {program_name('starter')}")
    network = network_of(options)
    nodes = nodes_to_run(network, options)
    check_ports(network, nodes)
    signals.grace_s = options.drain_timeout_s + GRACE_S + 2 * STOP_TIMEOUT_S
    given = sys.argv[1:]
    if options.serve is None and options.stream is None:
        given += stream_as_here()
    flags = flags_of_addresses(options.nodes, network) if options.nodes else flags_of_file(options.nodes_config)
    raise SystemExit(run_nodes(signals, flags, given, node_flags(options.node), nodes))


def nodes_to_run(network: NetworkConfig, options: StarterOptions) -> list[int]:
    """The nodes of this machine. Raises `ConfigError` where there is none."""
    nodes = local_nodes(network)
    if not nodes:
        known = ", ".join(all_addresses())
        raise ConfigError(f"{options.nodes_config}: no node has an address of this machine, which has {known}")
    if 0 not in nodes:
        log.warning("the starter is on %s: start it there, with its options", network.starter.addr)
    return nodes


def node_flags(options: NodeOptions) -> list[str]:
    """The flags that are every node's, for the secondaries."""
    switches = {"-v": options.verbose, "-q": options.quiet, "-d": options.debug, "-c": options.compile}
    values = {"--device": options.device, "--memory-limit": options.memory_limit}
    given = [word for flag, value in values.items() if value is not None for word in (flag, value)]
    return [flag for flag, is_set in switches.items() if is_set] + given


def run() -> NoReturn:
    """What `launch.py` and `mdi-launch` call."""
    run_script(main)


if __name__ == "__main__":
    run()
