"""Run one secondary node: wait for a starter, hold a part of its model, serve until told to stop."""

from argparse import BooleanOptionalAction
from pathlib import Path
from typing import NoReturn

from mdi.cli.environment import cache_folder, forget_foreign_variables, sleep_at_barriers, warn_of_loopback_name
from mdi.cli.networks import secondary_of, starter_of
from mdi.cli.parser import Parser, add_node_options, options_from
from mdi.cli.script import announce, run_script, set_up_logging
from mdi.cli.signals import Signals
from mdi.config.options import SecondaryOptions


def build_parser() -> Parser:
    parser = Parser("Serve a part of a model to a starter.", SecondaryOptions)
    add_node_options(parser)
    parser.option(
        "--nodes-config",
        nargs="+",
        metavar=("FILE", "INDEX"),
        help="the network and which of its secondaries this is, from 0; or a file with this node alone"
        " (default: none, where MDI_KEY is set: the starter finds this node by --nodes)",
    )
    parser.option("--port", type=int, metavar="N", help="where to answer HTTP, without --nodes-config")
    parser.option(
        "--announce",
        action=BooleanOptionalAction,
        help="let a starter find this node by --discover, without --nodes-config (default: yes)",
    )
    parser.option(
        "--join",
        metavar="STARTER:PORT",
        help="ask this starter, at its HTTP port, for a place in the ring that it has, without --nodes-config",
    )
    parser.option("--ring-port", type=int, metavar="N", help="where the predecessor connects to; 0: any free port")
    parser.stray_advice = "; the index of a secondary follows the file: --nodes-config FILE INDEX"
    return parser


def parse(arguments: list[str] | None = None) -> SecondaryOptions:
    """Raises `ConfigError` for a value that is not allowed."""
    parser = build_parser()
    values = parser.parse_args(arguments)
    given = getattr(values, "nodes_config", None)
    if isinstance(given, list):
        if len(given) > 2 or (len(given) == 2 and not given[1].isdecimal()):
            parser.error("--nodes-config takes a file, and the index of a secondary where it describes several")
        values.nodes_config = Path(given[0])
        values.index = int(given[1]) if len(given) == 2 else None
    return options_from(SecondaryOptions, values)


def main(signals: Signals) -> None:
    options = parse()
    name = "" if options.index is None else options.index
    debug_log = f"logs_secondary{name}.log" if options.debug else None
    as_json = options.log_format == "json"
    set_up_logging(verbose=options.verbose, quiet=options.quiet, as_json=as_json, debug_log=debug_log)
    node, starter = secondary_of(options), starter_of(options)
    node.access.check(waits=True)
    folder = cache_folder(options)
    origin = f", from {options.nodes_config}" if options.nodes_config else " without a file"
    announce(f"secondary {name}".rstrip() + origin)
    warn_of_loopback_name(node)
    forget_foreign_variables()
    sleep_at_barriers()
    from mdi.cli.run import run_secondary  # after the arguments are known to be good: torch and litgpt take seconds

    with signals.raised():
        run_secondary(options, node, starter, folder, signals)


def run() -> NoReturn:
    """What `secondary.py` and `mdi-secondary` call."""
    run_script(main)


if __name__ == "__main__":
    run()
