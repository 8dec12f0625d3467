#!/usr/bin/env python3
"""Measure nodes and links, and say which split is the best and what it will do."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.plan import run

if __name__ == "__main__":
    run()
