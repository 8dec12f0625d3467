"""List the nodes that there are, and which of them do not reach each other."""

from pathlib import Path
from typing import NoReturn

from mdi.cli.parser import Parser, add_discover, options_from
from mdi.cli.script import run_script, set_up_logging
from mdi.cli.signals import Signals
from mdi.config.options import NetworkOptions


def build_parser() -> Parser:
    parser = Parser(f"{__doc__} The exit code is 0 if nothing is in the way of a ring of them, else 1.", NetworkOptions)
    option = parser.option
    option("--nodes-config", type=Path, metavar="FILE", help="the network")
    option("--nodes", metavar="A,B:PORT", help="addresses of secondaries that run without a file; needs a key")
    add_discover(parser)
    option("--port", type=int, metavar="N", help="the starter's, for the nodes to try; 0: any free port")
    option("--ring-port", type=int, metavar="N", help="the same for its predecessor; 0: any free port")
    return parser


def main(signals: Signals) -> None:
    options = options_from(NetworkOptions, build_parser().parse_args())
    set_up_logging(verbose=False, quiet=False)
    from mdi.cli.node_list import list_nodes  # after the arguments are known to be good

    text, is_well = list_nodes(options)
    print(text)
    raise SystemExit(0 if is_well else 1)


def run() -> NoReturn:
    """What `nodes.py` and `mdi-nodes` call."""
    run_script(main)


if __name__ == "__main__":
    run()
