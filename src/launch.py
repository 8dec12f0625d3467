#!/usr/bin/env python3
"""Run every node of a network that is on this machine, with one log."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.launch import run

if __name__ == "__main__":
    run()
