"""Fixtures of all tests: the real model, and a check that nothing is left behind."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.models import make_model
from support.paths import GGUF, ROOT
from support.scripts import Scripts, WarmPython

os.environ.setdefault("OMP_NUM_THREADS", "1")  # nodes share the cores
for name in ("MDI_KEY", "MDI_KEY_FILE"):
    os.environ.pop(name, None)  # a ring of the tests has the key that its test gives it


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The default model, real weights, as `make` fetches it."""
    if not GGUF.is_file():
        subprocess.run(["make", str(GGUF.relative_to(ROOT))], cwd=ROOT, check=True)
    return GGUF


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model, prepared in a folder of its own; tests may add chunks to it."""
    from mdi.cli.prepare import prepare
    from mdi.config.options import PrepareOptions

    folder, _ = prepare(PrepareOptions(model=str(smollm2_gguf), ckpt_folder=tmp_path_factory.mktemp("checkpoints")))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model that is read; chunks may be added to it."""
    return make_model(tmp_path_factory.mktemp("models") / "org" / "tiny")


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmPython]:
    """An interpreter that has imported torch and litgpt, to fork scripts from."""
    with WarmPython() as interpreter:
        yield interpreter


@pytest.fixture
def scripts(warm: WarmPython, tmp_path: Path) -> Iterator[Scripts]:
    """Runs the scripts as processes, and ends them with the test."""
    with Scripts(tmp_path / "processes", warm) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, a child process or a socket."""
    process = psutil.Process()
    threads, sockets = set(threading.enumerate()), _sockets()
    children = {child.pid for child in process.children(recursive=True)}
    yield
    deadline = time.monotonic() + 5.0
    while True:
        left = [thread.name for thread in threading.enumerate() if thread not in threads and _matters(thread)]
        left += [str(child) for child in process.children(recursive=True) if child.pid not in children]
        left += sorted(_sockets() - sockets)
        if not left:
            return
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.01)


def _matters(thread: threading.Thread) -> bool:
    return not thread.name.startswith(("tqdm", "pymonitor"))


def _sockets() -> set[str]:
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found
