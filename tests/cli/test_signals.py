"""A signal ends a program in order, wherever it comes; a program that resists ends after the grace.

The programs are small, and each sends the signal to itself where an exception would be lost.
"""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support.paths import SRC

NUMBERS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
END_S = 60.0
LONG_GRACE_S = 600.0  # a program that ended with the grace would fail its test

PROGRAM = """
import os, signal, sys, threading, time
sys.path.insert(0, {src!r})
from pathlib import Path
from mdi.cli.script import run_script
from mdi.files import atomic_path
from mdi.inbox import Inbox

inbox, passed = Inbox(), []

def interrupt(number):
    inbox.interrupt(number)
    passed.append(number)

def send():
    os.kill(os.getpid(), signal.{name})

def main(signals):
    with signals.{block}:
{body}

run_script(main, grace_s={grace_s})
"""

WORK = """
with atomic_path(Path(sys.argv[1]) / "file") as partial:
{losing}
    while True:
        time.sleep(1)
"""

LOSING = {
    "a destructor": """
class Thing:
    def __del__(self):
        send()
Thing()
""",
    "a weak reference's callback": """
import weakref
class Thing: pass
thing = Thing()
watched = weakref.ref(thing, lambda dead: send())
del thing
""",
    "a callback from C": """
import ctypes
ctypes.CFUNCTYPE(None)(send)()
""",
    "code that catches everything": """
try:
    send()
except BaseException:
    pass
""",
    "the cleanup of an error": """
try:
    raise OSError
except OSError:
    try:
        send()
    except BaseException:
        pass
""",
}


RAISED, NODE, NOTHING = "raised()", "passed_to(interrupt)", "passed_to(None)"


def program(
    body: str, number: signal.Signals = signal.SIGTERM, grace_s: float = LONG_GRACE_S, block: str = RAISED
) -> list[str]:
    """A Python command line: a script of ours runs `body` in a block of `Signals`. It may `send()` itself `number`."""
    text = PROGRAM.format(
        src=str(SRC), name=number.name, body=textwrap.indent(body, " " * 8), grace_s=grace_s, block=block
    )
    return [sys.executable, "-c", text]


def run(body: str, *arguments: object, **how: object) -> "subprocess.CompletedProcess[str]":
    command = [*program(body, **how), *map(str, arguments)]  # type: ignore[arg-type]
    return subprocess.run(command, capture_output=True, text=True, timeout=END_S, check=False)


@pytest.mark.parametrize("where", LOSING)
def test_a_signal_whose_exception_is_lost_ends_the_program_in_order_all_the_same(where: str, tmp_path: Path) -> None:
    done = run(WORK.format(losing=textwrap.indent(LOSING[where], "    ")), tmp_path)
    assert (done.returncode, done.stderr) == (143, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), NUMBERS)
def test_each_signal_has_its_exit_code(number: signal.Signals, code: int) -> None:
    done = run("send()\ntime.sleep(600)", number=number)
    assert done.returncode == code
    assert done.stderr == ("interrupted\n" if number == signal.SIGINT else "")


def test_further_signals_do_not_disturb_the_end() -> None:
    body = """
try:
    send()
    time.sleep(600)
finally:
    for _ in range(100):
        send()
        time.sleep(0.01)  # all in all longer than until a lost exception is raised again
    print("in order")
"""
    done = run(body)
    assert (done.returncode, done.stdout, done.stderr) == (143, "in order\n", "")


AT_A_NODE = """
class Thing:
    def __del__(self):
        send()
        while len(passed) < 2:  # an exception would come here
            time.sleep(0.01)
        print("whole")
Thing()
try:
    inbox.get()
finally:
    print("in order")
"""


@pytest.mark.parametrize(("number", "code"), NUMBERS)
def test_while_a_node_is_at_work_nothing_is_raised_but_what_its_inbox_raises(number: signal.Signals, code: int) -> None:
    done = run(AT_A_NODE, number=number, block=NODE)
    assert (done.returncode, done.stdout) == (code, "whole\nin order\n")
    assert "Traceback" not in done.stderr


def test_a_signal_that_was_lost_before_the_node_reaches_the_node() -> None:
    body = """
try:
    send()
except BaseException:
    pass
with signals.passed_to(inbox.interrupt):
    inbox.get()
"""
    done = run(body)
    assert (done.returncode, done.stderr) == (143, "")


def test_at_first_a_signal_exits_at_once_and_interrupts_no_instruction() -> None:
    body = """
try:
    send()
    time.sleep(600)
finally:  # within an import, for one
    print("raised", flush=True)
"""
    done = run(body, block=NOTHING)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


def test_signals_that_come_later_are_counted() -> None:
    body = """
send()
while signals.n_came < 2:
    if signals.came:
        send()
    time.sleep(0.01)
print("counted", flush=True)
"""
    done = run(body, block="passed_to(lambda number: None)")
    assert (done.returncode, done.stdout) == (0, "counted\n")


INTERRUPTED = """
interrupts = []
with signals.interrupts_passed_to(lambda: interrupts.append(threading.current_thread().name)):
    for n in (1, 2):
        os.kill(os.getpid(), signal.SIGINT)
        while len(interrupts) < n:
            time.sleep(0.01)
    print(*interrupts, flush=True)
    {last}
"""


@pytest.mark.parametrize(
    ("last", "code"), [("send(); inbox.get()", 143), ("", 130)], ids=["another signal", "behind the block"]
)
def test_ctrl_c_is_passed_on_as_often_as_it_comes_where_it_is_to_end_nothing(last: str, code: int) -> None:
    behind = "os.kill(os.getpid(), signal.SIGINT)\ninbox.get()\n"
    done = run(INTERRUPTED.format(last=last) + behind, block=NODE)
    assert (done.returncode, done.stdout) == (code, "signals signals\n")


STUBBORN = """
print("ready", flush=True)
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
"""


@pytest.mark.parametrize(("number", "code"), NUMBERS)
def test_a_program_that_resists_ends_after_the_grace(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(program(STUBBORN, grace_s=0.2), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(END_S) == code


def test_a_hangup_that_is_ignored_at_the_start_stays_ignored() -> None:
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    # The first signal that counts makes the exit code.
    body = "send()\nprint('goes on', flush=True)\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(600)"
    command = [*ignoring, *program(body, signal.SIGHUP)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=END_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "goes on\n", "")


CHILD = """
import os, signal, sys, time
def end(number, frame):
    time.sleep(1)
    os.write(1, b"in order\\n")  # print cannot be entered again, and may be at work
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""

WAITING_FOR_A_CHILD = f"""
from mdi.cli.local_ring import run_to_end
print(run_to_end([sys.executable, "-c", {CHILD!r}], signals), flush=True)
signals.check()
"""


def test_a_program_that_waits_for_another_passes_the_signal_on_and_lets_it_end_in_order() -> None:
    with subprocess.Popen(program(WAITING_FOR_A_CHILD), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().splitlines() == ["in order", "7"]
        assert process.wait(END_S) == 143
