"""Fixtures of all tests: the real model, and a check that nothing is left behind."""

import fcntl
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdi.terminal import screen
from support.leftovers import Inventory
from support.models import make_model
from support.paths import GGUF, ROOT
from support.scripts import Scripts, WarmPython

# A background shell ignores SIGINT for what it starts, and children inherit that: in `nohup make test &` no script
# would end at Ctrl-C. A handler of Python, unlike SIG_IGN, becomes the default again in every program that is started.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # as `nohup` wants it for this process, not for others
for name in ("MDI_KEY", "MDI_KEY_FILE", "MDI_KEY_OLD", "MDI_KEY_OLD_FILE", "MDI_TLS"):
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
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # the run's folder, of all its workers
    prepared = _prepare_once(smollm2_gguf, shared / "prepared")
    folder = tmp_path_factory.mktemp("checkpoints") / "local" / prepared.name
    return Path(shutil.copytree(prepared, folder, copy_function=os.link))


def _prepare_once(gguf: Path, ckpt_folder: Path) -> Path:
    """Prepare a model, unless another worker of this run has done so."""
    from mdi.cli.prepare import prepare
    from mdi.config.prepare_options import PrepareOptions

    ckpt_folder.mkdir(exist_ok=True)
    with (ckpt_folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder, _ = prepare(PrepareOptions(model=str(gguf), ckpt_folder=ckpt_folder, dtype="float32"))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model that is read; chunks may be added to it."""
    return make_model(tmp_path_factory.mktemp("models") / "org" / "tiny")


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmPython]:
    """An interpreter that has imported torch and litgpt, to fork scripts from."""
    with WarmPython() as interpreter:
        yield interpreter


@pytest.fixture
def scripts(warm: WarmPython, tmp_path: Path) -> Iterator[Scripts]:
    """Runs the scripts as processes, and ends them with the test."""
    with Scripts(tmp_path / "processes", warm) as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def cuda_is_at_work() -> None:
    """Where there is a GPU, rings of the tests compute on it, and its driver keeps the socket of its first use open."""
    if shutil.which("nvidia-smi"):
        import torch

        if torch.cuda.is_available():
            torch.zeros(1, device="cuda")


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A test may call what a script does, which sets up the log of its process."""
    root, is_quiet = logging.getLogger("mdi"), screen.is_quiet
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    screen.is_quiet = is_quiet


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, a child process or a socket; and end those, so that no later test pays."""
    before = Inventory()
    yield
    if left := before.leftovers():
        before.end_leftovers()
        pytest.fail(f"left behind: {left}")
