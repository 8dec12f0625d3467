#!/usr/bin/env python3
"""List the nodes that there are, and which of them do not reach each other."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.nodes import run

if __name__ == "__main__":
    run()
