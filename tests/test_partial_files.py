"""Temporary files of programs that were killed: removed where nobody can be writing to them, and left elsewhere."""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdi.files import atomic_path, check_replaceable, write_text
from support.paths import SRC

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from mdi.files import atomic_path
with atomic_path(Path(sys.argv[2])):
    print("writes", flush=True)
    sys.stdin.read()
"""
A_DAY_S = 24 * 60 * 60


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


@pytest.fixture
def writer(target: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that has begun to write `target`, and is at it until it is killed."""
    command = [sys.executable, "-c", WRITER, str(SRC), str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writes\n"
        yield process
        process.kill()


def partials(target: Path) -> list[Path]:
    return sorted(target.parent.glob(".*.partial"))


def left_by_another_machine(target: Path, age_s: float = 0) -> Path:
    partial = target.with_name(f".{target.name}.{'5' * 16}.partial")
    partial.touch()
    then_s = time.time() - age_s
    os.utime(partial, (then_s, then_s))
    return partial


def test_what_a_killed_program_left_is_removed_and_what_a_living_one_writes_is_not(
    writer: subprocess.Popen[str], target: Path
) -> None:
    (partial,) = partials(target)
    write_text(target, "new")
    assert partials(target) == [partial]
    writer.kill()
    writer.wait()
    write_text(target.with_name("other"), "new")
    assert partials(target) == [partial]  # it is not the other file's
    write_text(target, "newer")
    assert partials(target) == []
    assert target.read_text() == "newer"


def test_two_threads_of_one_program_do_not_take_each_others_file(target: Path) -> None:
    with atomic_path(target) as first, atomic_path(target) as second:
        first.write_text("first")
        second.write_text("second")
        check_replaceable(target)
        assert partials(target) == sorted([first, second])
    assert target.read_text() == "first"
    assert partials(target) == []


@pytest.mark.parametrize("age_s", [-A_DAY_S, 0, A_DAY_S - 600])
def test_a_file_of_another_machine_is_left_for_a_day(target: Path, age_s: float) -> None:
    partial = left_by_another_machine(target, age_s)
    write_text(target, "new")
    assert partials(target) == [partial]


def test_a_file_of_another_machine_is_removed_after_a_day(target: Path) -> None:
    left_by_another_machine(target, A_DAY_S + 600)
    write_text(target, "new")
    assert partials(target) == []


def test_only_names_of_temporary_files_are_removed(target: Path) -> None:
    kept = [f".{target.name}.partial", f".{target.name}.lora.{'5' * 16}.partial", f".{target.name}.{'5' * 16}.txt"]
    for name in kept:
        file = target.with_name(name)
        file.touch()
        os.utime(file, (0, 0))
    write_text(target, "new")
    assert {path.name for path in target.parent.iterdir()} == {*kept, target.name}


def test_a_folder_that_another_program_has_locked_is_written_to_and_nothing_is_removed(target: Path) -> None:
    old = left_by_another_machine(target, A_DAY_S + 600)
    with locked(target.parent):
        write_text(target, "first")
        begun = atomic_path(target)
        partial = begun.__enter__()
    assert partials(target) == sorted([old, partial])
    write_text(target, "second")  # by the name of `partial` its writer has no lock that could be asked for
    assert partials(target) == [partial]
    begun.__exit__(None, None, None)
    assert target.read_text() == ""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)
