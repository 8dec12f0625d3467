#!/usr/bin/env python3
"""Fetch or convert a model, and split it into one chunk per node."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.prepare_model import run

if __name__ == "__main__":
    run()
