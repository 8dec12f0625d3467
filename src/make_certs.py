#!/usr/bin/env python3
"""Make a private certificate authority, and a certificate for every machine of a network file."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.make_certs import run

if __name__ == "__main__":
    run()
