"""Make a private certificate authority, and a certificate for every machine of a network file."""

from pathlib import Path
from typing import NoReturn

from mdi.cli.parser import Parser
from mdi.cli.script import run_script
from mdi.cli.signals import Signals
from mdi.config.network import load_network
from mdi.config.paths import CERTIFICATES_DIR, SETTINGS_DIR
from mdi.net.certificates import make_certificates


def build_parser() -> Parser:
    parser = Parser(__doc__ or "")
    configuration = SETTINGS_DIR / "configuration.json"
    parser.add_argument("--nodes-config", type=Path, default=configuration, metavar="FILE", help="the network")
    parser.add_argument("--out", type=Path, default=CERTIFICATES_DIR, metavar="DIR", help="where the certificates go")
    return parser


def main(signals: Signals) -> None:
    arguments = build_parser().parse_args()
    nodes = load_network(arguments.nodes_config).nodes
    with signals.raised():
        folders = make_certificates([node.addr for node in nodes], arguments.out)
    for folder in folders:
        print(folder)


def run() -> NoReturn:
    """What `make_certs.py` and `mdi-certs` call."""
    run_script(main)


if __name__ == "__main__":
    run()
