"""Show the state of every node of a network."""

import contextlib
import queue
import sys
from pathlib import Path
from typing import NoReturn

from mdi.cli.parser import Parser
from mdi.cli.script import run_script
from mdi.cli.signals import Signals
from mdi.config.network import load_network
from mdi.config.paths import SETTINGS_DIR
from mdi.errors import ConfigError
from mdi.inbox import Inbox

CLEAR = "\x1b[H\x1b[2J"


def build_parser() -> Parser:
    parser = Parser(f"{__doc__} The exit code is 0 if all secondaries answer, else 1.")
    configuration = SETTINGS_DIR / "configuration.json"
    parser.add_argument("--nodes-config", type=Path, default=configuration, metavar="FILE", help="the network")
    parser.add_argument(
        "--watch", type=float, nargs="?", const=2.0, metavar="S", help="show it again every S seconds, 2 if not given"
    )
    return parser


def main(signals: Signals) -> None:
    arguments = build_parser().parse_args()
    interval_s = arguments.watch
    if interval_s is not None and not 0.1 <= interval_s <= 86400:
        raise ConfigError(f"--watch {interval_s}: must be from 0.1 to 86400 seconds")
    network = load_network(arguments.nodes_config)
    network.starter.access.check()
    from mdi.cli.node_status import are_all_there, ask_all, table

    inbox = Inbox()
    with signals.passed_to(inbox.interrupt):
        while True:
            answers = ask_all(network)
            shown = table(network, answers)
            print(f"{CLEAR if interval_s and sys.stdout.isatty() else ''}{shown}", flush=True)
            if interval_s is None:
                raise SystemExit(0 if are_all_there(answers) else 1)
            with contextlib.suppress(queue.Empty):
                inbox.wait_for(timeout_s=interval_s)


def run() -> NoReturn:
    """What `status.py` and `mdi-status` call."""
    run_script(main)


if __name__ == "__main__":
    run()
