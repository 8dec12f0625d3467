#!/usr/bin/env python3
"""Run a command and record how much memory it and its children hold over time."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.mem_monitor import run

if __name__ == "__main__":
    run()
