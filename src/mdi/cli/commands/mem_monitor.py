"""Run a command and record how much memory it and its children hold over time."""

from pathlib import Path
from typing import NoReturn

from mdi.cli.output_files import check_place
from mdi.cli.parser import Parser, options_from
from mdi.cli.script import run_script
from mdi.cli.signals import Signals
from mdi.config.options import MonitorOptions
from mdi.files import check_replaceable
from mdi.inbox import Inbox, Stopped
from mdi.terminal import screen

GRACE_S = 60.0  # ending the command takes 5 s, the plot as long as the machine needs to import matplotlib


def build_parser() -> Parser:
    parser = Parser(__doc__ or "", MonitorOptions)
    parser.option("command", metavar="CMD", help="command line, in quotes, as a shell would take it")
    parser.option("-o", "--output", type=Path, metavar="FILE", help="CSV file with lines `seconds,rss_bytes`")
    parser.option("-i", "--interval", dest="interval_s", type=float, metavar="SECONDS", help="time between two samples")
    parser.option("--img", type=Path, metavar="FILE", help="PNG plot of the same (default: none)")
    return parser


def main(signals: Signals) -> None:
    options = options_from(MonitorOptions, build_parser().parse_args())
    check_place("-o", options.output)
    if options.img is not None:
        check_place("--img", options.img)
        check_replaceable(options.img)
    from mdi.cli.memory_monitor import watch_command

    inbox = Inbox()
    try:
        with signals.passed_to(inbox.interrupt):
            status = watch_command(options.command, options.output, options.interval_s, inbox=inbox)
    except Stopped:  # what was recorded stays, and is told and drawn
        _report(options)
        raise
    with signals.raised():
        _report(options)
    raise SystemExit(status)


def _report(options: MonitorOptions) -> None:
    from mdi.cli.memory_monitor import find_peak, plot_memory

    if (peak := find_peak(options.output)) is not None:
        screen.write_line(f"memory: {peak}")
    if options.img is not None:
        plot_memory(options.output, options.img, options.command)


def run() -> NoReturn:
    """What `mem_monitor.py` and `mdi-mem-monitor` call."""
    run_script(main, grace_s=GRACE_S)


if __name__ == "__main__":
    run()
