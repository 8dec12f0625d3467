"""A script that was told to end ends, whatever becomes of what the signal raised."""

import signal
import subprocess
import sys

import pytest

from support.paths import SRC

STUBBORN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from mdi.cli import script
def main():
    print("ready", flush=True)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
script.run_script(main, grace_s=0.2)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_whose_exception_is_lost_ends_the_script_all_the_same(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", STUBBORN, str(SRC)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(60) == code
