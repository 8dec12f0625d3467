#!/usr/bin/env python3
"""Draw the tokens over time of runs with 1, 2, ... nodes into one plot, from what `starter.py -p` wrote."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.plot_tok_time import run

if __name__ == "__main__":
    run()
