"""Generate on this machine alone: the starter as a ring of one node."""

from typing import NoReturn

from mdi.cli.commands.starter import main
from mdi.cli.script import run_script
from mdi.config.options import SampleOptions


def run() -> NoReturn:
    """What `sample.py` and `mdi-sample` call."""
    run_script(lambda signals: main(signals, SampleOptions))


if __name__ == "__main__":
    run()
