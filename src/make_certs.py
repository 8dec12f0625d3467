#!/usr/bin/env python3
"""Make a private certificate authority, and a certificate for every machine of a network file."""

from mdi.cli.commands.make_certs import run

if __name__ == "__main__":
    run()
