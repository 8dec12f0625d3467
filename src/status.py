#!/usr/bin/env python3
"""Show the state of every node of a network."""

from mdi.cli.commands.status import run

if __name__ == "__main__":
    run()
