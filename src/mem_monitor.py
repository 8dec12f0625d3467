#!/usr/bin/env python3
"""Run a command and record how much memory it and its children hold over time."""

from mdi.cli.commands.mem_monitor import run

if __name__ == "__main__":
    run()
