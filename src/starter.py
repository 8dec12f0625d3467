#!/usr/bin/env python3
"""Run the head of the ring: generate samples with a model spread over the nodes of a network file."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.starter import run

if __name__ == "__main__":
    run()
