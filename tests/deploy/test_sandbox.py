"""A ring does all of its work under the filter of system calls that the units have."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import seccomp
from support.models import make_model
from support.paths import ROOT, SRC
from support.scripts import free_ports, wait_until, write_network

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(seccomp.LIBRARY is None, reason="libseccomp is not installed: apt-get install libseccomp2"),
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"),
]

SANDBOX = (ROOT / "deploy" / "systemd" / "mdi-.service.d" / "sandbox.conf").read_text()
TIMEOUT_S = 120.0


def settings(name: str) -> list[list[str]]:
    return [value.split() for value in re.findall(rf"^{name}=(.*)$", SANDBOX, re.MULTILINE)]


def members(name: str) -> set[str]:
    """The system calls of a set such as `@system-service`, those of the sets in it included; or the call itself."""
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    names = [line.strip() for line in listed.stdout.splitlines()[1:] if line.strip() and "#" not in line]
    return {call for each in names for call in members(each)}


def allowed_calls() -> set[str]:
    """The first list allows, and `~` takes away again; see systemd.exec(5)."""
    allowed: set[str] = set()
    for first, *more in settings("SystemCallFilter"):
        listed = {call for name in (first.removeprefix("~"), *more) for call in members(name)}
        allowed = allowed - listed if first.startswith("~") else allowed | listed
    return allowed | members("@default")


@contextlib.contextmanager
def confined(log: Path, script: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A script under the filter; it is killed behind the block if it has not ended by then."""
    rules = {"calls": sorted(allowed_calls()), "families": settings("RestrictAddressFamilies")[0]}
    command = [sys.executable, seccomp.__file__, json.dumps(rules), sys.executable, SRC / script, *arguments]
    with log.open("wb") as out, subprocess.Popen(list(map(str, command)), stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_filter_is_at_work(tmp_path: Path) -> None:
    code = "import os, socket; os.setpriority(0, 0, 0); socket.socket(); {}"
    rules = json.dumps({"calls": sorted(allowed_calls()), "families": settings("RestrictAddressFamilies")[0]})
    for action, is_allowed in {"pass": True, "os.chroot('/')": False, "socket.socket(socket.AF_PACKET)": False}.items():
        command = [sys.executable, seccomp.__file__, rules, sys.executable, "-c", code.format(action)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode == 0) is is_allowed, done.stderr
        assert is_allowed or "PermissionError" in done.stderr


def test_a_ring_serves_and_ends_in_order(tmp_path: Path) -> None:
    model, network = make_model(tmp_path / "org" / "tiny"), write_network(tmp_path / "nodes.json", 2)
    (port,) = free_ports(1)
    logs = [tmp_path / "secondary.log", tmp_path / "starter.log"]
    secondary = ("secondary.py", "--verb", "--cache-dir", tmp_path / "cache", "--nodes-config", network.path, 0)
    starter = ("starter.py", "--verb", "--ckpt", model, "--nodes-config", network.path, "--serve", f"127.0.0.1:{port}")
    with confined(logs[0], *secondary) as one, confined(logs[1], *starter) as other:
        wait_until(lambda: "serving " in logs[1].read_text() or other.poll() is not None, TIMEOUT_S, "it serves")
        assert other.poll() is None, "".join(log.read_text() for log in logs)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
            body = json.dumps({"model": "tiny", "prompt": "Hi", "max_tokens": 8})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = json.load(connection.getresponse())
        assert answer["usage"]["completion_tokens"] > 0
        other.send_signal(signal.SIGTERM)
        assert other.wait(TIMEOUT_S) == 0 and one.wait(TIMEOUT_S) == 0
    said = "".join(log.read_text() for log in logs)
    assert "not permitted" not in said and "denied" not in said and "Traceback" not in said
