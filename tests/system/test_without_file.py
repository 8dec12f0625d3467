"""Nodes without a nodes configuration: they share a key, and the starter is told their addresses."""

import contextlib
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mdi.cli.networks import network_of
from mdi.cluster.roster import clients_of
from mdi.config.addresses import NodeAddress
from mdi.config.keyed_network import network_at, secondary_without_file
from mdi.config.options import NetworkOptions, StarterOptions
from mdi.control.protocol import NotAuthorized, WrongVersion
from mdi.engine.sample import Outcome, Sample
from mdi.ids import NodeId
from mdi.net.access import Access
from mdi.net.certificates import make_certificates
from mdi.net.keys import Key, Keys
from mdi.net.validity import DAY_S
from support.bench import TIMEOUTS
from support.logs import whenever_logged
from support.paths import home_with_kernels
from support.rings import Machine, Ring, ring_of, starter_for
from support.scripts import (
    SCRIPTS,
    Network,
    Process,
    Result,
    Scripts,
    WarmPython,
    free_ports,
    one_line_error,
    samples_of,
)

pytestmark = pytest.mark.slow

SECRET = "correct horse battery staple"
KEYED = {"MDI_KEY": SECRET}
PROMPTS = [list(range(5, 25)), [9]]
GREEDY = ("--temperature", 0, "--dtype", "float32", "--n-tokens", 3, "--n-samples", 3)


@dataclass(frozen=True)
class Running:
    """Two secondaries without a file."""

    scripts: Scripts
    ports: list[int]
    processes: list[Process]

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.ports]

    def starter(self, model: Path, *options: object, env: dict[str, str] = KEYED) -> Result:
        options = ("--ckpt", model, "--keep-nodes", "--node-timeout", 1, "--n-tokens", 3, *options)
        return self.scripts.run("starter.py", *options, env=env)


@pytest.fixture(scope="module")
def running(warm: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("nodes")
    with Scripts(folder / "processes", warm) as scripts:
        ports = free_ports(2)
        flags = ("--cache-dir", folder / "cache", "--no-announce", "--port")
        processes = [scripts.start("secondary.py", *flags, port, env=KEYED) for port in ports]
        for process in processes:
            process.wait_for("waiting for a starter")
        yield Running(scripts, ports, processes)


def test_a_ring_of_addresses_says_what_one_node_does_and_its_saved_file_too(
    running: Running, alone: Network, tiny: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved.json"
    one = running.scripts.start("sample.py", "--nodes-config", alone.path, "--ckpt", tiny, *GREEDY)
    nodes = running.starter(tiny, "--nodes", ",".join(running.addresses), "--save-nodes", saved, *GREEDY)
    assert nodes.code == 0, nodes.stderr
    assert SECRET not in saved.read_text()
    file = running.starter(tiny, "--nodes-config", saved, *GREEDY)
    assert file.code == 0, file.stderr
    assert samples_of(nodes.stdout) == samples_of(file.stdout) == samples_of(one.result().stdout) != ""


def test_a_node_says_what_to_type_on_the_starter(running: Running) -> None:
    said = running.processes[0].stderr
    assert re.search(rf"waiting for a starter, at \S+ port {running.ports[0]}", said), said
    assert re.search(rf"on the starter: starter\.py --nodes \S+:{running.ports[0]} --ckpt MODEL", said), said


def test_the_nodes_are_listed_and_reach_each_other(running: Running) -> None:
    result = running.scripts.run("nodes.py", "--nodes", ",".join(running.addresses), env=KEYED)
    assert result.code == 0, result.stdout + result.stderr
    heading, *lines = result.stdout.splitlines()
    assert heading.split() == ["node", "address", "device", "memory", "version", "state", "model"]
    assert [line.split()[:2] for line in lines] == [[socket.gethostname(), where] for where in running.addresses]


def test_what_is_wrong_with_a_node_is_one_line(running: Running, tiny: Path) -> None:
    """All starters at once: each waits for its deadline."""
    (nobody,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as silent, web_server() as web_port:
        silent_port = silent.getsockname()[1]
        cases = {
            "no-such-machine.invalid": r"no-such-machine\.invalid:8088 cannot be reached: no machine is known by",
            f"127.0.0.1:{nobody}": rf"127\.0\.0\.1:{nobody} cannot be reached: is secondary\.py running there\?",
            f"127.0.0.1:{silent_port}": rf"127\.0\.0\.1:{silent_port} did not answer: silent for",
            f"127.0.0.1:{web_port}": rf"127\.0\.0\.1:{web_port} is not a node of this version: HTTP \d+",
            f"{running.addresses[0]},localhost:{running.ports[0]}": r"are one node: give each node once",
        }
        options = ("--ckpt", tiny, "--node-timeout", 1, "--n-tokens", 3, "--nodes")
        started = [running.scripts.start("starter.py", *options, nodes, env=KEYED) for nodes in cases]
        for process, pattern in zip(started, cases.values(), strict=True):
            result = process.result()
            one_line_error(result, result.code, pattern, after="waiting for secondary|no other can take")
            assert result.code in (1, 2)
    other = {"MDI_KEY": "another horse, another staple"}
    refused = running.starter(tiny, "--nodes", running.addresses[0], env=other)
    one_line_error(refused, 1, "secondary 0 at .* did not show that it has this ring's key: .* different keys")


@contextlib.contextmanager
def web_server() -> Iterator[int]:
    """The port of a server that is no node."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_node_that_dies_while_it_is_measured_is_named(running: Running, tiny: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    flags = ("-v", "--cache-dir", tmp_path / "cache", "--no-announce", "--port", port)
    node = running.scripts.start("secondary.py", *flags, env=KEYED)
    node.wait_for("waiting for a starter")
    addresses = f"{running.addresses[0]},127.0.0.1:{port}"
    planner = running.scripts.start("plan.py", "--ckpt", tiny, "--nodes", addresses, env=KEYED)
    node.wait_for("timing the layers of")
    node.kill()
    pattern = rf"secondary 1 at http://127\.0\.0\.1:{port} did not answer"
    one_line_error(planner.result(), 1, pattern, after="measuring 3 nodes")


def test_a_chat_is_served_by_nodes_that_go_on_afterwards(running: Running, tiny: Path, tmp_path: Path) -> None:
    arguments = ["--nodes", ",".join(running.addresses), "--ckpt", str(tiny), "--dtype", "float32", "--n-tokens", "4"]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "chat.py"), "--temperature", "0", *arguments],
        input="Once upon a time\n",
        capture_output=True,
        encoding="utf-8",
        env=os.environ | KEYED | {"MDI_HOME": str(home_with_kernels(tmp_path))},
        timeout=180,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    listed = running.scripts.run("nodes.py", "--nodes", ",".join(running.addresses), env=KEYED)
    assert listed.stdout.count("  idle  ") == 2, listed.stdout


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
def test_nodes_without_a_file_encrypt_what_they_send(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named by an address and by a name, both of which their certificate has. Others are told what is wrong."""
    make_certificates(["localhost", "box.local"], tmp_path / "certs")
    make_certificates(["127.0.0.1"], tmp_path / "certs", now_s=time.time() - 1000 * DAY_S)
    monkeypatch.setenv("MDI_KEY", SECRET)
    ports, machines = free_ports(4), []
    for port, certificate in zip(ports, ("localhost", "localhost", "box.local", "127.0.0.1"), strict=True):
        monkeypatch.setenv("MDI_TLS", str(tmp_path / "certs" / certificate))
        machine = Machine(tmp_path / "cache", TIMEOUTS)
        machine.node = secondary_without_file("127.0.0.1", port, 0)
        machine.start()
        machines.append(machine)
    monkeypatch.setenv("MDI_TLS", str(tmp_path / "certs" / "localhost"))
    try:
        network = network_of(NetworkOptions(nodes=f"localhost:{ports[0]},127.0.0.1:{ports[1]}"))
        tokens = Ring(network, []).generate(tiny, PROMPTS)
        wrong = {2: r"does not agree on TLS: .*IP address mismatch", 3: "its certificate is .*ended"}
        for number, told in wrong.items():
            other = network_of(NetworkOptions(nodes=f"127.0.0.1:{ports[number]}"))
            with pytest.raises(NotAuthorized, match=told):
                clients_of(other)[NodeId(1)].status()
    finally:
        for machine in machines:
            machine.kill()
    with ring_of(1, tmp_path / "none") as one:
        assert tokens == one.generate(tiny, PROMPTS)


def test_a_node_of_another_version_is_named(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdi.nodes.secondary.__version__", "0.0.1")
    access = Access(Keys(Key(SECRET, "test")), addrs=None)
    machine = Machine(tmp_path / "cache", TIMEOUTS, access)
    machine.node = replace(machine.node, port_in=0)
    machine.start()
    try:
        network = network_at([NodeAddress("127.0.0.1", machine.node.http_port)], "127.0.0.1", access)
        with pytest.raises(
            WrongVersion, match=r"secondary 0 at http://127\.0\.0\.1:\d+ runs version 0\.0\.1, this node "
        ):
            Ring(network, []).generate(tiny, PROMPTS)
    finally:
        machine.kill()


def test_a_node_that_comes_back_on_another_ring_port_is_asked_for_it(tiny: Path, tmp_path: Path) -> None:
    access, n_tokens, prompts = Access(Keys(Key(SECRET, "test")), addrs=None), 12, [list(range(5, 25)), [9]]
    machines = [Machine(tmp_path / "cache", TIMEOUTS, access) for _ in range(2)]
    ring_ports: list[int] = []
    for machine in machines:
        machine.node = replace(machine.node, port_in=0)
        machine.start()
        ring_ports.append(machine.secondary.port_in)

    def lose(sample: Sample, outcome: Outcome) -> None:
        if sample.number == 0 and len(sample.tokens) == n_tokens // 2:
            machines[0].kill()

    def restart() -> None:
        with socket.create_server(("127.0.0.1", ring_ports[0])):  # so that it cannot be the same
            machines[0].start()

    options: dict[str, Any] = {"dtype": "float32", "temperature": 0.0, "ignore_eos": True, "n_tokens": n_tokens}
    network = network_at([NodeAddress("127.0.0.1", m.node.http_port) for m in machines], "127.0.0.1", access)
    arguments = StarterOptions(ckpt=tiny, node_timeout_s=60.0, **options)
    run = starter_for(network, arguments, prompts, sink=lose, timeouts=TIMEOUTS)
    try:
        with whenever_logged("mdi.cluster.supervisor", "is lost: ", restart), run as (starter, samples):
            starter.prepare()
            starter.run()
    finally:
        for machine in machines:
            machine.kill()
    assert starter.n_recoveries == 1
    with ring_of(1, tmp_path / "none") as one:
        assert [sample.tokens for sample in samples] == one.generate(tiny, prompts, n_tokens=n_tokens)
