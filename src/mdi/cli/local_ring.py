"""A whole ring on this machine: the scripts as child processes."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from mdi.cli.signals import Signals
from mdi.config.network import load_network
from mdi.config.paths import LOGS_DIR, SOURCE_DIR
from mdi.files import storage_error
from mdi.installation import IS_INSTALLED
from mdi.net.sockets import listen

STOP_TIMEOUT_S = 5.0


def check_ports(nodes_config: Path) -> None:
    """Raise `ConfigError` where another program has a port of this network.

    It may be a node, which a starter would use as if it were of this ring, and end.
    """
    for node in load_network(nodes_config).nodes:
        for port in (node.http_port, node.port_in):
            listen(node.listen_addr, port).close()


@contextlib.contextmanager
def secondaries(nodes_config: Path, *options: str) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run every secondary of a network file; what they say goes to `logs/local_secondary<i>.log`.

    On exit each has a few seconds to end, as after a run it does by itself, and is killed after that.
    """
    with contextlib.ExitStack() as stack:
        processes = []
        for index in range(len(load_network(nodes_config).secondaries)):
            log = stack.enter_context(_open_log(log_path(index)))
            secondary = command("secondary", *options, "--nodes-config", str(nodes_config), str(index))
            process = subprocess.Popen(secondary, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(_end, process)
            processes.append(process)
        yield processes


def command(name: str, *options: str) -> list[str]:
    """The command line of a module of `mdi.cli.commands` under this Python."""
    # In a checkout through its script: a new Python would not find the package by `-m`.
    program = ["-m", f"mdi.cli.commands.{name}"] if IS_INSTALLED else [str(SOURCE_DIR / f"{name}.py")]
    return [sys.executable, *program, *options]


def run_to_end(program: Sequence[str], signals: Signals) -> int:
    """Run a program and return its exit status, 128 + n after signal n. A signal to this program is passed on to it."""
    untold: list[subprocess.Popen[bytes]] = []

    def pass_on(number: signal.Signals) -> None:
        while untold:  # once: this is called again and again
            untold.pop().send_signal(number)

    with signals.passed_to(pass_on):
        process = subprocess.Popen(program)
        untold.append(process)
        status = process.wait()
    return status if status >= 0 else 128 - status


def log_path(index: int) -> Path:
    """Where secondary `index` of a local ring writes its messages."""
    return LOGS_DIR / f"local_secondary{index}.log"


def _open_log(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except OSError as exc:
        raise storage_error(path, exc) from exc


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def failure_of(processes: Sequence["subprocess.Popen[bytes]"]) -> str:
    """The last line of each secondary that ended by itself with an error; empty if none did."""
    lines = []
    for index, process in enumerate(processes):
        if process.poll():
            text = log_path(index).read_text(encoding="utf-8", errors="replace").strip()
            lines.append(f"secondary {index}: {text.rpartition(chr(10))[2].removeprefix('error: ')}")
    return "\n".join(lines)
