#!/usr/bin/env python3
"""Generate on this machine alone: the starter as a ring of one node."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.sample import run

if __name__ == "__main__":
    run()
