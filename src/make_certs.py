#!/usr/bin/env python3
"""Make a private certificate authority, and a certificate for every machine of a network file."""

from pathlib import Path

from mdi.cli.script import Parser, run_script
from mdi.config.network import load_network
from mdi.config.paths import SETTINGS_DIR, SOURCE_DIR
from mdi.net.certificates import make_certificates


def build_parser() -> Parser:
    parser = Parser(__doc__ or "")
    configuration, folder = SETTINGS_DIR / "configuration.json", SOURCE_DIR / "certs"
    parser.add_argument("--nodes-config", type=Path, default=configuration, metavar="FILE", help="the network")
    parser.add_argument("--out", type=Path, default=folder, metavar="DIR", help="where the certificates go")
    return parser


def main() -> None:
    arguments = build_parser().parse_args()
    nodes = load_network(arguments.nodes_config).nodes
    for folder in make_certificates([node.addr for node in nodes], arguments.out):
        print(folder)


if __name__ == "__main__":
    run_script(main)
