"""Make a private certificate authority, and a certificate for every machine of a network file."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mdi.cli.parser import Parser
from mdi.cli.script import run_script, set_up_logging
from mdi.cli.signals import Signals
from mdi.config.addresses import parse_addresses
from mdi.config.network import load_network
from mdi.config.paths import CERTIFICATES_DIR, SETTINGS_DIR
from mdi.net.certificates import RENEWED_DAYS, Renewal, ends_soon, make_certificates, renew_certificates
from mdi.net.validity import utc

log = logging.getLogger(__name__)


def build_parser() -> Parser:
    parser = Parser(__doc__ or "")
    configuration = SETTINGS_DIR / "configuration.json"
    parser.add_argument("--nodes-config", type=Path, default=configuration, metavar="FILE", help="the network")
    parser.add_argument(
        "--nodes", metavar="A,B", help="without a file: the addresses of all machines, also the starter's"
    )
    parser.add_argument("--out", type=Path, default=CERTIFICATES_DIR, metavar="DIR", help="where the certificates go")
    renewed = f"renew what ends within {RENEWED_DAYS} days or has ended, with the same keys"
    parser.add_argument("--renew", action="store_true", help=renewed)
    return parser


def _addresses(nodes: str | None, nodes_config: Path) -> list[str]:
    if nodes is None:
        return [node.addr for node in load_network(nodes_config).nodes]
    return [address.addr for address in parse_addresses(nodes, "--nodes")]


def main(signals: Signals) -> None:
    arguments = build_parser().parse_args()
    set_up_logging(verbose=False, quiet=False)
    addrs = _addresses(arguments.nodes, arguments.nodes_config)
    with signals.raised():
        if arguments.renew:
            _show(renew_certificates(addrs, arguments.out))
        else:
            folders = make_certificates(addrs, arguments.out)
            for folder in folders:
                print(f"{folder}: copy node.pem, node.key and ca.pem to that machine")
            _warn_of_ends([folder / "node.pem" for folder in folders])


def _warn_of_ends(certificates: Sequence[Path]) -> None:
    ending = [path for path in certificates if path.is_file() and ends_soon(path, time.time())]
    if ending:
        log.warning(
            "left as they are, and end soon or have ended: %s; --renew renews them", ", ".join(map(str, ending))
        )


def _show(renewals: Sequence[Renewal]) -> None:
    """What is to be copied where."""
    for renewal in renewals:
        what = f"copy {', '.join(renewal.files)} to that machine" if renewal.files else "nothing new"
        print(f"{renewal.folder}: valid until {utc(renewal.validity.ends_s)}: {what}")
    if any(renewal.files for renewal in renewals):
        print("Restart each node when it has its files, which it reads at its start; the order does not matter.")


def run() -> NoReturn:
    """What `make_certs.py` and `mdi-certs` call."""
    run_script(main)


if __name__ == "__main__":
    run()
