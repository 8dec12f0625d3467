#!/usr/bin/env python3
"""Train a model on tokens that prepare_data.py made: from scratch, resumed, or beginning with a prepared model."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.train import run

if __name__ == "__main__":
    run()
