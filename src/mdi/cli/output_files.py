"""The files that a run is to leave behind, tried before it begins."""

from mdi.cli.run_statistics import check_run_csv
from mdi.config.options import OutputOptions
from mdi.config.paths import IMAGES_DIR, LOGS_DIR
from mdi.files import check_appendable, check_replaceable


def check_output_files(options: OutputOptions) -> None:
    """Raise now what the end of the run would raise, when its measurement would be lost with it."""
    if options.time_run is not None:
        check_run_csv(options.time_run)
    if options.output is not None:
        check_appendable(options.output)
    if options.timeline is not None:
        check_replaceable(options.timeline)
    if options.plots:
        check_replaceable(LOGS_DIR / "tokens_time")
        check_replaceable(IMAGES_DIR / "tokens_time")
