"""Run a command and record how much memory it and its children hold over time."""

import signal
from pathlib import Path
from typing import NoReturn

from mdi.cli.script import Parser, options_from, run_script
from mdi.config.options import MonitorOptions

GRACE_S = 60.0  # ending the command takes 5 s, the plot as long as the machine needs to import matplotlib


def build_parser() -> Parser:
    parser = Parser(__doc__ or "", MonitorOptions)
    parser.option("command", metavar="CMD", help="command line, in quotes, as a shell would take it")
    parser.option("-o", "--output", type=Path, metavar="FILE", help="CSV file with lines `seconds,rss_bytes`")
    parser.option("-i", "--interval", dest="interval_s", type=float, metavar="SECONDS", help="time between two samples")
    parser.option("--img", type=Path, metavar="FILE", help="PNG plot of the same (default: none)")
    return parser


def main() -> None:
    options = options_from(MonitorOptions, build_parser().parse_args())
    status = _watch(options)
    if options.img is not None:
        from mdi.cli.memory_monitor import plot_memory

        plot_memory(options.output, options.img)
    raise SystemExit(status)


def _watch(options: MonitorOptions) -> int:
    """The command's exit status, or 130 or 143 where we were interrupted: what was recorded stays, and is drawn."""
    from mdi.cli.memory_monitor import watch_command

    try:
        return watch_command(options.command, options.output, options.interval_s)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as exc:
        return int(exc.code or 0)


def run() -> NoReturn:
    """What `mem_monitor.py` and `mdi-mem-monitor` call."""
    run_script(main, grace_s=GRACE_S)


if __name__ == "__main__":
    run()
