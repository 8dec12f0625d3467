"""The fuzzer, in its quick form; and that it notices what it is there to notice."""

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuzz import watch
from fuzz.engine import TARGETS, keep, run_blind
from fuzz.target import Target
from fuzz.watch import Guard, Watch
from support.paths import ROOT

pytestmark = pytest.mark.slow

PATHS = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}


class Toy(Target):
    """Does whatever its test gives it to do, with inputs that begin with a letter of the second half."""

    name = "toy"

    def seeds(self) -> list[bytes]:
        return [b"zzzz"]

    def check(self, data: bytes) -> int:
        if data > b"n":
            self.misbehave()
        return 1

    def misbehave(self) -> None:
        raise KeyError("nobody was told of this")


class Unarmed(Guard):
    """A guard without its hook, which would stay in the process of the tests."""

    def __init__(self) -> None:
        self._armed, self._seen = False, []


def fuzz(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | PATHS, capture_output=True, text=True, check=False)


def test_some_hundred_inputs_for_every_target(tmp_path: Path) -> None:
    result = fuzz("--quick", "--crashes", tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == list(TARGETS)
    assert not list(tmp_path.iterdir())


def test_an_input_that_raises_is_kept_and_can_be_replayed(tmp_path: Path) -> None:
    toy, crashes = Toy(tmp_path), tmp_path / "crashes"
    with pytest.raises(KeyError):
        run_blind(toy, Watch(toy, Unarmed(), 60.0), toy.seeds(), crashes, 1)
    (path,) = crashes.iterdir()
    assert path.read_bytes() > b"n"
    with pytest.raises(KeyError):
        toy.check(path.read_bytes())


def test_a_kept_input_is_replayed_by_the_command(tmp_path: Path) -> None:
    result = fuzz("ledger", "--replay", keep(tmp_path, "ledger", b"harmless"))
    assert (result.returncode, result.stdout) == (0, "nothing wrong\n")


def test_an_input_that_takes_long_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "INPUT_LIMIT_S", 0.01)
    toy = Toy(tmp_path)

    def spin() -> None:
        began = time.process_time()
        while time.process_time() < began + 0.02:
            pass

    monkeypatch.setattr(toy, "misbehave", spin)
    with pytest.raises(AssertionError, match=r"one input took 0\.0"):
        Watch(toy, Unarmed(), 1.0)(b"z")


def test_memory_that_grows_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, hoard = Toy(tmp_path), list[mmap.mmap]()
    toy.growth_limit_bytes = 8 << 20

    def misbehave() -> None:
        hoard.append(mmap.mmap(-1, 1 << 20))  # not from the heap, which may have room left
        hoard[-1].write(os.urandom(1 << 20))

    monkeypatch.setattr(toy, "misbehave", misbehave)
    watching = Watch(toy, Unarmed(), 0.0)
    for _ in range(16):
        watching(b"z")
    with pytest.raises(AssertionError, match="memory grew by 1"):
        watching.finish()


@pytest.mark.parametrize(
    "code",
    [
        "open('elsewhere', 'w')",
        "os.system('true')",
        "subprocess.run(['true'])",
        "exec('1')",
        "os.remove('elsewhere')",
        "socket.create_connection(('127.0.0.1', 9))",
    ],
)
def test_what_no_input_may_do_is_refused_and_told(code: str, tmp_path: Path) -> None:
    """In a process of its own: an audit hook cannot be taken back."""
    program = (
        "import contextlib, os, socket, subprocess, sys\nfrom pathlib import Path\nfrom fuzz.watch import Guard\n"
        "scratch = Path('scratch'); scratch.mkdir(); guard = Guard(scratch)\n"
        "with guard.armed(): open('scratch/x', 'w').close(); os.remove('scratch/x'); open('/proc/self/stat').close()\n"
        f"with guard.armed(), contextlib.suppress(OSError): {code}\n"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path, env=os.environ | PATHS, capture_output=True, text=True, check=False)
    assert "AssertionError: forbidden: [" in result.stderr
    assert not (tmp_path / "elsewhere").exists()
