"""The files that a run is to leave behind, tried before it begins."""

import os
from pathlib import Path

from mdi.cli.run_statistics import check_run_csv
from mdi.config.options import OutputOptions
from mdi.config.paths import IMAGES_DIR, LOGS_DIR
from mdi.errors import ConfigError
from mdi.files import check_appendable, check_replaceable


def check_output_files(options: OutputOptions) -> None:
    """Raise now what the end of the run would raise, when its measurement would be lost with it."""
    if options.time_run is not None:
        check_place("--time-run", options.time_run)
        check_run_csv(options.time_run)
    if options.output is not None:
        check_place("--output", options.output)
        check_appendable(options.output)
    if options.timeline is not None:
        check_place("--timeline", options.timeline)
        check_replaceable(options.timeline)
    if options.plots:
        check_replaceable(LOGS_DIR / "tokens_time")
        check_replaceable(IMAGES_DIR / "tokens_time")


def check_place(flag: str, path: Path) -> None:
    """Raise `ConfigError` unless `path` is that of a file in a folder that is there: a new one would hide a typo."""
    if os.path.isdir(path):
        raise ConfigError(f"{flag} {path}: this is a folder; name a file in it")
    if not os.path.isdir(path.parent):
        raise ConfigError(f"{flag} {path}: the folder {path.parent} does not exist")
