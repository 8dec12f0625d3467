#!/usr/bin/env python3
"""Generate on this machine alone: the starter as a ring of one node."""

from mdi.cli.commands.sample import run

if __name__ == "__main__":
    run()
