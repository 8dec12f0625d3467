"""Nodes that were never in the network join a ring that generates, and leave it: no token changes."""

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import mdi.cluster.recovery
from mdi.cluster.forecast import Costs
from mdi.cluster.measured_network import MeasuredNetwork
from mdi.cluster.node_meter import NodeMeter
from mdi.config.addresses import NodeAddress
from mdi.config.keyed_network import network_at
from mdi.config.options import StarterOptions
from mdi.control.client import ControlClient
from mdi.control.join import JoinRequest
from mdi.control.protocol import NodeBusy
from mdi.engine.sample import Outcome, Sample
from mdi.net.access import Access
from mdi.net.keys import Key, Keys
from mdi.nodes.starter import Starter
from support.bench import N_TOKENS, PROMPTS, STYLES, TIMEOUTS
from support.measured import JOB, network_with, times_of
from support.models import make_model
from support.rings import Machine, starter_for
from support.scripts import Process, Scripts, WarmPython, free_ports, read_samples, wait_until, write_network

pytestmark = pytest.mark.slow

SECRET = "correct horse battery staple"
ACCESS = Access(Keys(Key(SECRET, "test")), addrs=None)
GROWING = replace(TIMEOUTS, return_check_s=0.05)


class Party:
    """A ring of a starter and one secondary, which others join and leave."""

    def __init__(self, cache: Path, stack: contextlib.ExitStack) -> None:
        self._cache, self._stack = cache, stack
        self.machines = [self.new_machine()]
        self.starter: Starter | None = None

    def new_machine(self) -> Machine:
        machine = Machine(self._cache, GROWING, ACCESS)
        machine.node = replace(machine.node, port_in=0)
        machine.start()
        self._stack.callback(machine.kill)
        return machine

    def run(self, folder: Path, on_token: Callable[[int], None], **options: object) -> list[list[int]]:
        """The tokens of each sample; `on_token` is told how many there are."""
        network = network_at([NodeAddress("127.0.0.1", m.node.http_port) for m in self.machines], "127.0.0.1", ACCESS)
        values = {"dtype": "float32", "ignore_eos": True, "n_tokens": N_TOKENS, "node_timeout_s": 1.0, **options}
        n_tokens = 0

        def count(sample: Sample, outcome: Outcome) -> None:
            nonlocal n_tokens
            n_tokens += outcome.n_accepted
            on_token(n_tokens)

        arguments = StarterOptions(ckpt=folder, **values)  # type: ignore[arg-type]
        with starter_for(network, arguments, PROMPTS, sink=count, timeouts=GROWING) as (self.starter, samples):
            with pytest.raises(NodeBusy, match="the first ring is being formed"):
                self.ask(self.new_machine())
            self.starter.prepare()
            self.starter.run()
        return [sample.tokens for sample in samples]

    def ask(self, machine: Machine) -> str:
        assert self.starter is not None
        port = self.starter._roster.network.starter.http_port
        client = ControlClient("the starter", "127.0.0.1", port, ACCESS, GROWING)
        return client.join(JoinRequest(machine.node.http_port))

    def join(self) -> None:
        """A new machine joins; returns once it can take part."""
        assert self.starter is not None
        supervisor = self.starter._supervisor
        self.machines.append(self.new_machine())
        wait_until(lambda: self.is_taken(self.machines[-1]), 60, "a node is taken")
        wait_until(lambda: supervisor.has_next, 60, "a node can take part")

    def is_taken(self, machine: Machine) -> bool:
        """Asks once; a node that is measured first asks again."""
        try:
            return bool(self.ask(machine))
        except NodeBusy:
            return False

    def leave(self, machine: Machine) -> None:
        self.machines.remove(machine)
        machine.kill()


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Party]:
    with contextlib.ExitStack() as stack:
        yield Party(tmp_path / "cache", stack)


def test_a_new_node_takes_part_and_ends_with_the_run(
    party: Party, tiny: Path, expected: dict[str, list[list[int]]], caplog: pytest.LogCaptureFixture
) -> None:
    members = []

    def play(n_tokens: int) -> None:
        if n_tokens == 20:
            party.join()
            assert party.ask(party.machines[0]) == "secondary 0" and party.ask(party.machines[1]) == "secondary 1"
        assert party.starter is not None
        members.append(party.starter.status().members)

    assert party.run(tiny, play, **STYLES["seeded"]) == expected["seeded"]
    assert members[-1] == ["starter", "secondary 0", "secondary 1"]
    port = party.machines[1].node.http_port
    assert f"secondary 1 is new, at http://127.0.0.1:{port}: it takes part when it is ready" in caplog.messages
    assert any(line.startswith("secondary 1 can take part: layer") for line in caplog.messages)
    assert not any("is back" in line for line in caplog.messages)
    for machine in party.machines:
        machine._thread.join(60)
        assert not machine._thread.is_alive(), "it is told that the run is over"


def test_in_a_ring_that_was_measured_a_new_node_is_too_and_a_loss_splits_the_others_as_measured(
    party: Party,
    tmp_path: Path,
    expected: dict[str, list[list[int]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The starter and the first node are alike, and the new one, by what it answers, ten times as fast."""
    monkeypatch.setattr(mdi.cluster.recovery, "MAX_FAILURES", 1)  # a node that is lost is not waited for

    def measure(network: MeasuredNetwork, *arguments: object, **more: object) -> Costs:
        return Costs(network.network, network_with(1, 1)[1], replace(JOB, config=network.model.config))

    monkeypatch.setattr(MeasuredNetwork, "measure", measure)
    monkeypatch.setattr(NodeMeter, "measure", lambda meter, request: times_of(0.1))
    splits = list[dict[str, int]]()

    def play(n_tokens: int) -> None:
        assert party.starter is not None
        if n_tokens == 16:
            party.join()
        if n_tokens == 32:
            party.leave(party.machines[0])
        plan = party.starter._supervisor.plan
        splits.append(dict(zip(plan.names, map(len, plan.spans), strict=True)))

    model = make_model(tmp_path / "org" / "tiny")  # its chunks are no others' affair
    assert party.run(model, play, **STYLES["greedy"], split="measured") == expected["greedy"]
    assert set(splits[0]) == {"starter", "secondary 0"}
    assert {"starter": 1, "secondary 0": 1, "secondary 1": 4} in splits
    assert splits[-1] == {"starter": 1, "secondary 1": 5}
    lines = [line for line in caplog.messages if "can take part: " in line or "going on without" in line]
    assert len(lines) == 2 and all("; predicted " in line for line in lines)


def test_ten_nodes_join_and_leave_at_random(
    party: Party, tiny: Path, expected: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdi.cluster.recovery, "MAX_FAILURES", 1)  # a node that is lost is not waited for
    chance = random.Random(3)

    def play(n_tokens: int) -> None:
        if n_tokens not in range(4, 64, 6):
            return
        if len(party.machines) < 2 or (len(party.machines) < 4 and chance.random() < 0.5):
            party.join()
        else:
            party.leave(chance.choice(party.machines))

    assert party.run(tiny, play, **STYLES["greedy"]) == expected["greedy"]
    assert party.starter is not None and party.starter.n_recoveries >= 8


# ---- real processes, by `make chaos`

N_TURNS, RUN_TIMEOUT_S = 10, 600.0
# As many tokens as are generated while that many processes start and are noticed, on a fast machine.
N_SAMPLES, N_TOKENS_EACH = int(os.environ.get("JOIN_SAMPLES", "200")), 300


@pytest.mark.chaos
def test_processes_join_and_leave_at_random(warm: WarmPython, tmp_path: Path) -> None:
    model = make_model(tmp_path / "org" / "chaos", seed=11, block_size=1024)
    chance = random.Random(7)
    run = (
        "--ckpt", model, "--n-samples", N_SAMPLES, "--n-tokens", N_TOKENS_EACH, "--ignore-eos", "--dtype", "float32",
        "--seed", 3, "--max-slots", 3, "--peer-timeout", 1.5, "--node-timeout", 1,
    )  # fmt: skip
    with Scripts(tmp_path / "processes", warm) as scripts:
        alone = ("--nodes-config", write_network(tmp_path / "alone.json", 1).path, "--output", tmp_path / "alone.jsonl")
        assert scripts.run("starter.py", *run, *alone, timeout_s=RUN_TIMEOUT_S).code == 0
        (port,) = free_ports(1)

        def start_node(*options: object) -> tuple[Process, int]:
            (own,) = free_ports(1)
            flags = ("--cache-dir", tmp_path / "cache", "--no-announce", "--dtype", "float32", "--port", own)
            return scripts.start("secondary.py", *flags, *options, env={"MDI_KEY": SECRET}), own

        first, own = start_node()
        first.wait_for("waiting for a starter")
        nodes, output = [first], tmp_path / "ring.jsonl"
        where = ("--nodes", f"127.0.0.1:{own}", "--port", port, "--output", output)
        starter = scripts.start("starter.py", *run, *where, env={"MDI_KEY": SECRET})
        n_changes = 0
        for _ in range(N_TURNS):
            n_before = starter.stderr.count("can take part")
            if len(nodes) < 2 or (len(nodes) < 4 and chance.random() < 0.6):
                nodes.append(start_node("--join", f"127.0.0.1:{port}")[0])
                wait_until(
                    lambda n=n_before: starter.stderr.count("can take part") > n or not starter.alive, 60, "it joins"
                )
            else:
                nodes.pop(chance.randrange(len(nodes))).kill()
            n_changes += starter.alive
        result = starter.result(RUN_TIMEOUT_S)
    assert result.code == 0 and "Traceback" not in result.stderr, result.stderr
    assert n_changes == N_TURNS, "the run was too short: JOIN_SAMPLES makes it longer"
    found, wanted = ([s["tokens"] for s in read_samples(path)[0]] for path in (output, tmp_path / "alone.jsonl"))
    assert found == wanted
