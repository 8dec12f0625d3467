#!/usr/bin/env python3
"""Run one secondary node: wait for a starter, hold a part of its model, serve until told to stop."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.secondary import run

if __name__ == "__main__":
    run()
