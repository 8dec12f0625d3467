#!/usr/bin/env python3
"""Run one secondary node: wait for a starter, hold a part of its model, serve until told to stop."""

from mdi.cli.commands.secondary import run

if __name__ == "__main__":
    run()
