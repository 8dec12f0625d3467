#!/usr/bin/env python3
"""Turn texts into the tokens that a model is trained on."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.prepare_data import run

if __name__ == "__main__":
    run()
