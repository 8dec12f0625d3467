#!/usr/bin/env python3
"""Run a ring of processes on this machine: three samples on three nodes, or a comparison of 1, 2 and 3 nodes."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.demo import run

if __name__ == "__main__":
    run()
