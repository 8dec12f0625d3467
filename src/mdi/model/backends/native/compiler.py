"""Compiles the kernels for an instruction set into the user's cache, once for each source, compiler and flags."""

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mdi.config.paths import native_cache_dir
from mdi.errors import StorageError
from mdi.files import atomic_path, storage_error
from mdi.model.backends.native.instruction_sets import InstructionSet
from mdi.strings import one_line

log = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("kernels")
ENTRY = SOURCES / "entry.cpp"
PREBUILT = Path(__file__).with_name("prebuilt")  # libraries that came with the installation
# -ffp-contract=off: a product and a sum are rounded once only where the source says so, on every CPU alike.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden")
LIBRARY_FLAGS = ("-fPIC", "-shared", "-pthread")
COMPILE_TIMEOUT_S = 600.0  # ziglang takes 47 s on a loaded machine
_NAMES = ("c++", "g++", "clang++")
_ZIGLANG = (sys.executable, "-m", "ziglang", "c++")
# It would compile for the very CPU that it runs on, and leave 4 MB of names in a library.
_ZIG_FLAGS = ("-mcpu=baseline", "-s")
_ZIG_SPELLING = ("-march=armv8.2-a", "-mcpu=generic+v8_2a")  # it has names of its own for AArch64


class NoCompilerError(Exception):
    """There is no compiler, or it cannot compile the kernels."""


def find_compiler() -> list[str]:
    """The command of a C++ compiler: of $CXX, of the system, or of PyPI's `ziglang`. Raises `NoCompilerError`."""
    command = os.environ.get("CXX", "").split()  # it may be `ccache g++`
    if command and shutil.which(command[0]):
        return command
    for name in _NAMES:
        if path := shutil.which(name):
            return [path]
    if (ziglang := find_ziglang()) is not None:
        return ziglang
    raise NoCompilerError("no C++ compiler is installed (g++, clang or PyPI's ziglang)")


def find_ziglang(target: str | None = None) -> list[str] | None:
    """The command of PyPI's `ziglang`, if it is installed, for another machine if one is named."""
    if importlib.util.find_spec("ziglang") is None:
        return None
    return [*_ZIGLANG, *([] if target is None else ["-target", target])]


def prebuilt_library(instruction_set: InstructionSet) -> Path | None:
    """The library that came with the installation, if one did."""
    path = PREBUILT / prebuilt_name(instruction_set)
    return path if path.is_file() else None


def prebuilt_name(instruction_set: InstructionSet) -> str:
    """A library of other sources has another name, so one that an earlier build left behind is never loaded."""
    return f"{instruction_set.name}-{_digest(_sources())}.so"


def library_for(instruction_set: InstructionSet, folder: Path | None = None) -> Path:
    """The library in the user's cache, compiled now unless it is there.

    Args:
        folder: instead of the user's cache.

    Raises `NoCompilerError`, and `StorageError` or `ConfigError` where the folder cannot be used.
    """
    folder = folder or native_cache_dir()
    compiler = find_compiler()
    flags = flags_for(instruction_set, compiler)
    library = folder / f"{instruction_set.name}-{_key(compiler, flags)}.so"
    with _locked(library):
        if not library.is_file():
            log.warning("compiling the kernels for %s, once for this machine", instruction_set.name)
            with atomic_path(library) as partial:
                compile_to(partial, compiler, flags)
    return library


def flags_for(instruction_set: InstructionSet, compiler: Sequence[str]) -> list[str]:
    """What the compiler is told of the arithmetic and of the CPU."""
    if not any("zig" in Path(part).name for part in compiler):
        return [*FLAGS, *instruction_set.flags]
    return [*FLAGS, *_ZIG_FLAGS, *(flag.replace(*_ZIG_SPELLING) for flag in instruction_set.flags)]


def compile_to(target: Path, compiler: Sequence[str], flags: Sequence[str]) -> None:
    """Raises `NoCompilerError` with the compiler's first error."""
    try:
        with tempfile.TemporaryDirectory(prefix="mdi-kernels-") as cache:
            done = subprocess.run(
                [*compiler, *flags, *LIBRARY_FLAGS, "-o", str(target), str(ENTRY)],
                # ziglang would keep 90 MB in the user's cache for another time, which hardly comes.
                env={"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache, **os.environ},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMPILE_TIMEOUT_S,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NoCompilerError(f"{compiler[0]}: {one_line(exc)}") from exc
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise NoCompilerError(f"{compiler[0]}: {one_line(errors[0])}")


def _key(compiler: Sequence[str], flags: Sequence[str]) -> str:
    """Equal for equal libraries: of the sources, the flags and what the compiler says of itself."""
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NoCompilerError(f"{compiler[0]}: {one_line(exc)}") from exc
    return _digest([version, " ".join([*flags, *LIBRARY_FLAGS]).encode(), *_sources()])


def _sources() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SOURCES.iterdir())]


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(library: Path) -> Iterator[None]:
    """Keeps two processes from compiling the same. Raises `StorageError` for a folder that others may write to."""
    folder = library.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise StorageError(f"{folder}: others may write to it, so no library is loaded from there")
        lock = os.open(library.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise storage_error(folder, exc) from exc
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("waiting for another program that compiles the same kernels")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
