#!/usr/bin/env python3
"""Generate on this machine alone: the starter as a ring of one node."""

from mdi.cli.script import run_script
from mdi.config.options import SampleOptions
from starter import main

if __name__ == "__main__":
    run_script(lambda: main(SampleOptions))
