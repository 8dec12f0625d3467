"""Whatever clients without the key do to the ports of a ring, it forms, runs, recovers and answers."""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mdi.control.client import ControlClient
from mdi.control.status import StarterStatus
from mdi.errors import ControlError
from mdi.net.access import Access
from mdi.net.certificates import make_certificates
from mdi.net.keys import Key, Keys
from mdi.net.refusals import BURST
from mdi.net.timeouts import Timeouts
from support.config_files import files_of
from support.floods import HOST, flooded
from support.models import make_model
from support.paths import ROOT
from support.scripts import SCRIPTS, Network, Process, Scripts, read_samples, wait_until, write_network

pytestmark = pytest.mark.slow

SECRET = "correct horse battery staple"
N_DESCRIPTORS = 256
PER_KIND = 40  # clients on each port: more together than the limits of both ports allow
N_TOKENS = 150
N_CALLS = int(os.environ.get("FLOOD_CALLS", "20"))  # of which `make floods` prints the times
PATIENCE_S = 120.0
LIMITED = ROOT / "tests" / "support" / "few_descriptors.py"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "org" / "flooded", seed=11, block_size=512)


@dataclass
class Ring:
    """Three processes with a key and few descriptors."""

    scripts: Scripts
    network: Network
    model: Path
    access: Access

    def start(self, script: str, *arguments: object) -> Process:
        command = (N_DESCRIPTORS, SCRIPTS / script, "-v", "--dtype", "float32", *arguments)
        return self.scripts.start(str(LIMITED), *command, env={"MDI_KEY": SECRET})

    def start_secondary(self, index: int) -> Process:
        cache = self.network.path.parent / "cache"
        process = self.start("secondary.py", "--cache-dir", cache, "--nodes-config", self.network.path, index)
        process.wait_for("waiting for a starter", PATIENCE_S)
        return process

    def start_starter(self, output: Path) -> Process:
        run = ("--n-samples", 3, "--n-tokens", N_TOKENS, "--ignore-eos", "--temperature", 0, "--keep-nodes")
        where = ("--ckpt", self.model, "--nodes-config", self.network.path, "--output", output)
        return self.start("starter.py", *where, "--peer-timeout", 20, *run)

    def status(self, node: int) -> object:
        """The answer to an authenticated call, which has to come whatever others do."""
        timeouts = Timeouts(connect_s=PATIENCE_S, status_s=PATIENCE_S)
        client = ControlClient(f"node {node}", HOST, self.network.http_port(node), self.access, timeouts)
        return client.status()

    def print_times(self, node: int, when: str) -> None:
        """How long authenticated calls take."""
        seconds = []
        for _ in range(N_CALLS):
            began_s = time.monotonic()
            self.status(node)
            seconds.append(time.monotonic() - began_s)
        seconds.sort()
        half, most = seconds[N_CALLS // 2], seconds[N_CALLS * 99 // 100]
        print(f"{when}: {N_CALLS} status calls, median {half * 1e3:.1f} ms, 99 % within {most * 1e3:.1f} ms")

    def wait_for_tokens(self, starter: Process, n_tokens: int) -> None:
        def have_come() -> bool:
            assert starter.alive, starter.stderr
            try:
                status = self.status(0)
            except ControlError:  # it has not opened its port yet
                return False
            return isinstance(status, StarterStatus) and status.tokens >= n_tokens

        wait_until(have_come, PATIENCE_S, f"{n_tokens} tokens")


def tokens_of(starter: Process, output: Path) -> list[list[int]]:
    result = starter.result(PATIENCE_S)
    assert result.code == 0, result.stderr
    return [sample["tokens"] for sample in read_samples(output)[0]]


def n_descriptors(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def assert_few_printable_lines(process: Process, seconds: float) -> None:
    lines = process.stderr.splitlines()
    assert all(line.isprintable() for line in lines)
    refusals = [line for line in lines if line.startswith(("refused ", "... and "))]
    assert refusals, "the flood did not reach it"
    assert len(refusals) <= BURST + seconds / 5, lines


def network_of(folder: Path, encrypted: bool) -> tuple[Network, Access]:
    network = write_network(folder / "net.json", 3)
    if not encrypted:
        return network, Access(Keys(Key(SECRET, "test")))
    tls = files_of(*make_certificates([HOST], folder / "certs"))
    files = {name: str(getattr(tls, name)) for name in ("certificate", "private_key", "ca")}
    network.path.write_text(json.dumps(json.loads(network.path.read_text()) | {"tls": files}))
    return network, Access(Keys(Key(SECRET, "test")), tls)


@needs_openssl
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_a_ring_lives_through_floods_on_all_its_ports(
    encrypted: bool, scripts: Scripts, model: Path, tmp_path: Path
) -> None:
    network, access = network_of(tmp_path, encrypted)
    ring = Ring(scripts, network, model, access)
    alone = write_network(tmp_path / "alone.json", 1)
    undisturbed = Ring(scripts, alone, model, access).start_starter(tmp_path / "undisturbed.jsonl")
    expected = tokens_of(undisturbed, tmp_path / "undisturbed.jsonl")
    secondaries = [ring.start_secondary(index) for index in (0, 1)]
    before = n_descriptors(secondaries[0])  # without any connection
    ring.print_times(1, "before")
    began_s = time.monotonic()
    with flooded(network.ports, PER_KIND, encrypted):
        for process in secondaries:
            wait_until(lambda p=process: n_descriptors(p) > N_DESCRIPTORS // 3, PATIENCE_S, "the flood is there")
        starter = ring.start_starter(tmp_path / "flooded.jsonl")
        starter.wait_for("refused ", PATIENCE_S)
        ring.wait_for_tokens(starter, 3)  # early, so that most of the run is to come
        secondaries[1].kill()
        secondaries.append(ring.start_secondary(1))
        assert tokens_of(starter, tmp_path / "flooded.jsonl") == expected
        ring.print_times(1, "in the flood")
    seconds = time.monotonic() - began_s
    for process in (starter, *secondaries):
        assert_few_printable_lines(process, seconds)
    assert "secondary 1 is back: replaying" in starter.stderr
    wait_until(lambda: n_descriptors(secondaries[0]) <= before, PATIENCE_S, "its descriptors are free")
    again = ring.start_starter(tmp_path / "again.jsonl")
    assert tokens_of(again, tmp_path / "again.jsonl") == expected
