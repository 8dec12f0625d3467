#!/usr/bin/env python3
"""Run the head of the ring: generate samples with a model spread over the nodes of a network file."""

from mdi.cli.commands.starter import run

if __name__ == "__main__":
    run()
