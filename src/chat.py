#!/usr/bin/env python3
"""Chat in the terminal, with a server or with a model that is served for this chat alone."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python leaves it out where PYTHONSAFEPATH is set

from mdi.cli.commands.chat import run

if __name__ == "__main__":
    run()
