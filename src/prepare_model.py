#!/usr/bin/env python3
"""Fetch or convert a model, and split it into one chunk per node."""

from mdi.cli.commands.prepare_model import run

if __name__ == "__main__":
    run()
