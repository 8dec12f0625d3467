#!/usr/bin/env python3
"""Show the state of every node of a network."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.status import run

if __name__ == "__main__":
    run()
