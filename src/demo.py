#!/usr/bin/env python3
"""Run a ring of processes on this machine: three samples on three nodes, or a comparison of 1, 2 and 3 nodes."""

from mdi.cli.commands.demo import run

if __name__ == "__main__":
    run()
