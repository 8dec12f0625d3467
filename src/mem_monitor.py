#!/usr/bin/env python3
"""Run a command and record how much memory it and its children hold over time."""

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mdi.errors import ConfigError, MdiError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", metavar="CMD", help="command line, in quotes, as a shell would take it")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("memory.csv"),
        metavar="FILE",
        help="CSV file with lines `seconds,rss_bytes` (default: %(default)s)",
    )
    parser.add_argument(
        "-i",
        "--interval",
        type=_positive_seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between two samples (default: %(default)s)",
    )
    parser.add_argument("--img", type=Path, metavar="FILE", help="PNG plot of the same (default: none)")
    return parser


def _positive_seconds(text: str) -> float:
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        status = _watch(options)
        if options.img is not None:
            _plot(options)
    except MdiError as exc:
        print(f"mem_monitor.py: {exc}", file=sys.stderr)
        return 2 if isinstance(exc, ConfigError) else 1
    return status


def _watch(options: argparse.Namespace) -> int:
    """The command's exit status, or 130 or 143 where we were interrupted: what was recorded stays."""
    from mdi.cli.memory_monitor import watch_command

    try:
        return watch_command(options.command, options.output, options.interval)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as exc:
        return int(exc.code or 0)


def _plot(options: argparse.Namespace) -> None:
    from mdi.cli.memory_monitor import plot_memory

    plot_memory(options.output, options.img)


if __name__ == "__main__":
    sys.exit(main())
