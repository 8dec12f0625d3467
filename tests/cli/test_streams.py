"""Standard streams that are closed when a program begins."""

import subprocess
import sys

import pytest

from support.paths import SRC

# Any program of ours, which also opens a file: it must not get the number of a standard stream.
PROGRAM = """
import os, sys
sys.path.insert(0, {src!r})
from mdi.cli.script import run_script

def main(signals):
    with open(os.devnull) as file:
        assert file.fileno() > 2, file.fileno()
    print("text")
    print("log", file=sys.stderr)
    sys.stdin.read()
    raise SystemExit(7)

run_script(main)
"""


@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [(">&-", "", "log\n"), ("2>&-", "text\n", ""), ("<&-", "text\n", "log\n"), (">&- 2>&- <&-", "", "")],
)
def test_a_stream_that_is_closed_is_as_dev_null(closed: str, out: str, err: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, PROGRAM.format(src=str(SRC))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, out, err)
