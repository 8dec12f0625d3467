"""Two real rings behind a real HAProxy with the configuration that is shipped: one is killed under load, one drains."""

import contextlib
import csv
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.models import make_model
from support.paths import ROOT
from support.scripts import Network, Process, Scripts, WarmPython, free_ports, wait_until, write_network

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed: apt-get install haproxy"),
]

SHIPPED = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
KEY = "a-key-for-the-tests"
PROMPTS = [f"Prompt {i}." for i in range(4)]
N_TOKENS = 60
LONG_STREAM = {"prompt": "Hi", "max_tokens": 1900, "stream": True}
N_CLIENTS = 6  # at once
N_MORE = 40  # requests that have to be answered after an event, before the next one
TIMEOUT_S = 120.0


@dataclass
class ServedRing:
    """A starter with one secondary, which outlives its starters."""

    network: Network
    port: int
    scripts: Scripts
    model: Path
    starter: Process = field(init=False)

    def start(self) -> None:
        self.starter = self.scripts.start(
            "starter.py", "--ckpt", self.model, "--nodes-config", self.network.path, "--dtype", "float32",
            "--serve", f"127.0.0.1:{self.port}", "--api-key", KEY, "--keep-nodes",
            "--drain-delay", 5, "--drain-timeout", TIMEOUT_S,
        )  # fmt: skip


@dataclass
class Balancer:
    """HAProxy, and the rings behind it by their names in its configuration."""

    port: int
    admin: Path
    rings: dict[str, ServedRing]

    def state(self, ring: str) -> str:
        """What the health check has found: `UP`, `DOWN`, or on the way to one of them."""
        return self._statistics(ring)["status"]

    def n_answered(self, ring: str) -> int:
        return int(self._statistics(ring)["hrsp_2xx"])

    def await_state(self, ring: str, state: str) -> None:
        wait_until(lambda: self.state(ring).startswith(state), TIMEOUT_S, f"{ring} is {state}")

    def _statistics(self, ring: str) -> dict[str, str]:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.admin))
            admin.sendall(b"show stat\n")
            with admin.makefile() as answer:
                rows = csv.DictReader(io.StringIO(answer.read().removeprefix("# ")))
        return next(row for row in rows if row["svname"] == ring)


@pytest.fixture(scope="module")
def balancer(tmp_path_factory: pytest.TempPathFactory, warm: WarmPython) -> Iterator[Balancer]:
    folder = tmp_path_factory.mktemp("haproxy")
    model = make_model(folder / "org" / "tiny", block_size=2048)
    with Scripts(folder / "processes", warm) as scripts:
        rings = {}
        for name in ("ring-a", "ring-b"):
            network, (port,) = write_network(folder / f"{name}.json", 2), free_ports(1)
            scripts.secondaries(network, "--dtype", "float32")
            rings[name] = ServedRing(network, port, scripts, model)
            rings[name].start()
        (port,) = free_ports(1)
        balancer = Balancer(port, folder / "admin.sock", rings)
        with running(configured(balancer, folder / "haproxy.cfg"), balancer.admin):
            for name in rings:
                balancer.await_state(name, "UP")
            yield balancer


def configured(balancer: Balancer, path: Path) -> Path:
    """The shipped configuration with the addresses of this test in it."""
    text = SHIPPED.read_text()
    changes = {r"bind :8080\n": f"bind 127.0.0.1:{balancer.port}\n", r"/run/haproxy/admin\.sock": str(balancer.admin)}
    changes |= {rf"server {name} \S+": f"server {name} 127.0.0.1:{r.port}" for name, r in balancer.rings.items()}
    if os.geteuid() != 0:
        changes |= {r" +user haproxy\n": "", r" +group haproxy\n": ""}  # only root can become another user
    for pattern, replacement in changes.items():
        text, n_changes = re.subn(pattern, replacement, text)
        assert n_changes == 1, f"{pattern} is in {SHIPPED} {n_changes} times"
    path.write_text(text)
    return path


@contextlib.contextmanager
def running(configuration: Path, admin: Path) -> Iterator[None]:
    log = configuration.with_suffix(".log")
    command = ["haproxy", "-db", "-f", configuration]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as haproxy:
        try:
            wait_until(lambda: admin.exists() or haproxy.poll() is not None, TIMEOUT_S, "it runs")
            assert haproxy.poll() is None, log.read_text()
            yield
        finally:
            haproxy.kill()


@dataclass
class Answer:
    """What became of a request."""

    prompt: str
    began_s: float
    text: str | None = None  # all of it
    problem: str = ""


class Load:
    """Clients that ask again and again, at least once, streamed and not, until the block ends."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer, self._over = balancer, threading.Event()
        self._clients = [threading.Thread(target=self._ask, args=(number,)) for number in range(N_CLIENTS)]
        self.answers: list[Answer] = []

    def __enter__(self) -> "Load":
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for client in self._clients:
            client.join()

    def await_answers(self, n_more: int = N_MORE) -> None:
        """Wait until so many more requests have come to an end."""
        n_before = len(self.answers)
        wait_until(lambda: len(self.answers) >= n_before + n_more, TIMEOUT_S, f"{n_more} answers")

    def failed_since(self, since_s: float) -> list[Answer]:
        """Requests that were made later and have no answer."""
        return [answer for answer in self.answers if answer.began_s >= since_s and answer.text is None]

    def _ask(self, number: int) -> None:
        while True:
            answer = Answer(PROMPTS[number % len(PROMPTS)], time.monotonic())
            try:
                answer.text = complete(self._balancer.port, answer.prompt, stream=number % 2 == 0)
            except (OSError, http.client.HTTPException, AssertionError) as exc:
                answer.problem = repr(exc)
            self.answers.append(answer)
            if self._over.is_set():
                return


def complete(port: int, prompt: str, *, stream: bool) -> str:
    """The greedy continuation. Raises `AssertionError` for anything but a whole answer."""
    with asking(port, {"prompt": prompt, "max_tokens": N_TOKENS, "stream": stream}) as connection:
        answer = connection.getresponse()
        body = answer.read().decode()
    assert answer.status == 200, body
    if not stream:
        return str(json.loads(body)["choices"][0]["text"])
    *events, end = re.findall(r"^data: (.*)$", body, re.MULTILINE)
    assert end == "[DONE]", body
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


@contextlib.contextmanager
def asking(port: int, values: dict[str, Any]) -> Iterator[http.client.HTTPConnection]:
    """A connection on which a completion is asked for."""
    body = {"model": "tiny", "temperature": 0, **values}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        yield connection


def test_both_rings_serve_and_what_one_of_them_counts_is_not_shown(balancer: Balancer) -> None:
    with Load(balancer) as load:
        wait_until(lambda: all(balancer.n_answered(ring) for ring in balancer.rings), TIMEOUT_S, "both have answered")
    assert load.failed_since(0.0) == []
    assert len({(answer.prompt, answer.text) for answer in load.answers}) == len(PROMPTS)  # whichever ring it was
    for path, status in {"/v1/models": 200, "/health": 200, "/metrics": 404, "/ring": 404}.items():
        assert request(balancer.port, path)[0] == status


def test_a_client_that_goes_away_frees_its_slot_behind_the_balancer(balancer: Balancer) -> None:
    with asking(balancer.port, LONG_STREAM | {"stream": False}):
        wait_until(lambda: in_metrics(balancer, "mdi_running_samples"), TIMEOUT_S, "it has begun")
    cancelled = 'mdi_samples_total{outcome="cancelled"}'
    wait_until(lambda: in_metrics(balancer, cancelled), TIMEOUT_S, "it is cancelled")
    assert in_metrics(balancer, "mdi_running_samples") == 0


def in_metrics(balancer: Balancer, name: str) -> float:
    """The sum of one of the rings' metrics."""
    pages = "".join(request(ring.port, "/metrics")[1] for ring in balancer.rings.values())
    return sum(map(float, re.findall(rf"^{re.escape(name)} (\S+)$", pages, re.MULTILINE)))


def test_no_request_fails_when_a_ring_was_lost_or_is_drained(balancer: Balancer) -> None:
    """The last test of these rings, whose starters end here."""
    lost, drained = balancer.rings.values()
    with Load(balancer) as load:
        load.await_answers()
        lost.starter.kill()
        balancer.await_state("ring-a", "DOWN")
        noticed_s = time.monotonic()
        load.await_answers()
        assert load.failed_since(noticed_s) == []

        lost.start()  # its secondary has waited
        balancer.await_state("ring-a", "UP")
        began_s = time.monotonic()
        load.await_answers()
        with contextlib.ExitStack() as streams:  # more of them than go to one ring alone
            lasting = [streams.enter_context(asking(balancer.port, LONG_STREAM)) for _ in range(4)]
            started = [connection.getresponse() for connection in lasting]
            drained.starter.send_signal(signal.SIGTERM)  # as `systemctl stop` and Kubernetes send it
            balancer.await_state("ring-b", "DOWN")
            load.await_answers()
            assert all(stream.read().endswith(b"data: [DONE]\n\n") for stream in started)
    assert load.failed_since(began_s) == []
    assert drained.starter.result(TIMEOUT_S).code == 0

    lost.starter.kill()
    balancer.await_state("ring-a", "DOWN")
    status, body, headers = request(balancer.port, "/v1/models")
    assert (status, headers["Retry-After"]) == (503, "5")
    assert json.loads(body)["error"]["message"] == "no ring is ready"


def request(port: int, path: str) -> tuple[int, str, Any]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
