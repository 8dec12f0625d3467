"""Real nodes measure themselves and the links between them."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mdi.checkpoint import disk_speed
from mdi.checkpoint.config import config_to_dict, load_config
from mdi.cluster import link_probe, node_meter, stage_times
from mdi.cluster.network_times import NetworkMeter, NetworkTimes, measure_alone
from mdi.cluster.node_meter import NodeMeter
from mdi.config.network import NetworkConfig, node_name
from mdi.control.client import ControlClient
from mdi.control.measurement import LinkRequest, LinkTimes, StageRequest, StageTimes
from mdi.control.protocol import NodeBusy, Refused
from mdi.errors import ConfigError, LinkClosed
from mdi.ids import NodeId, Rank
from mdi.inbox import Inbox
from mdi.net.access import Access
from mdi.net.keys import Key, Keys
from mdi.net.sockets import Peer, listen
from mdi.net.timeouts import Timeouts
from support.measured import times_of
from support.rings import ANY_PORT, Machine, Ring, ring_of
from support.scripts import free_ports, wait_until

ACCESS = Access(Keys(Key("correct horse battery staple", "test")))


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_times, "TIMING_S", 0.002)
    monkeypatch.setattr(link_probe, "TIMING_S", 0.002)
    monkeypatch.setattr(disk_speed, "_MAX_S", 0.0)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with ring_of(3, tmp_path_factory.mktemp("cache"), access=ACCESS) as ring:
        yield ring


def request_for(folder: Path, **fields: Any) -> StageRequest:
    config = config_to_dict(load_config(folder))
    return StageRequest(**{
        "config": config, "stored_dtype": "float32", "stored": "none", "dtype": "float32", "quantize": None,
        "kv_dtype": None, "has_head": False, "nodes_on_host": 1, **fields,
    })  # fmt: skip


def clients_of(network: NetworkConfig) -> dict[NodeId, ControlClient]:
    nodes, access = list(enumerate(network.nodes))[1:], network.starter.access
    return {NodeId(i): ControlClient(node_name(i), node.addr, node.http_port, access) for i, node in nodes}


def measure(network: NetworkConfig, request: StageRequest, folder: Path | None = None) -> NetworkTimes:
    meter = NodeMeter(torch.device("cpu"), folder=folder)
    with listen(network.starter.addr, network.starter.port_in) as listener:
        return NetworkMeter(network, clients_of(network), meter, listener, Inbox()).measure(request, "float32")


def test_all_nodes_and_all_links_are_measured(ring: Ring, tiny: Path, tmp_path: Path) -> None:
    times = measure(ring.network, request_for(tiny, again=True), tmp_path)
    assert [len(node.head) for node in times.nodes] == [4, 4, 4], "all of them load the memory of the one machine"
    for node in times.nodes:
        assert {time.rows for time in node.layers} == {1, 4, 8, 16, 128}
        assert (node.device, node.dtype, node.mode) == ("cpu", "float32", "none")
        assert node.free_memory_bytes and node.disk_read_bytes_s and node.disk_write_bytes_s
        assert node.message_s >= 0 and node.frame_s > 0
    assert times.alone is not None and times.alone.threads >= times.nodes[0].threads
    for source in range(3):
        for target in range(3):
            link = times.links[source][target]
            assert link.bytes_s > 0 and (source != target or link.latency_s == 0)
    assert all(secondary.status().state.value == "idle" for secondary in ring.secondaries)
    assert all(secondary._measuring._meter._timer is None for secondary in ring.secondaries)


def test_a_node_is_measured_alone_while_the_others_do_what_they_do(ring: Ring, tiny: Path) -> None:
    limited = replace(ring.network.secondaries[1], memory_limit_bytes=10**8)
    network = replace(ring.network, secondaries=(ring.network.secondaries[0], limited))
    client = clients_of(network)[NodeId(2)]
    times = measure_alone(network, NodeId(2), client, request_for(tiny, again=True))
    assert {time.rows for time in times.layers} == {1, 4, 8, 16, 128} and times.memory_limit_bytes == 10**8
    meter = ring.secondaries[1]._measuring._meter
    wait_until(lambda: meter._timer is None, 10, "it does not compute on for the others")


def test_a_ring_is_formed_after_it_was_measured(ring: Ring, tiny: Path) -> None:
    before = ring.generate(tiny, [[5, 6, 7]])
    measure(ring.network, request_for(tiny, again=True))
    assert ring.generate(tiny, [[5, 6, 7]]) == before


def test_what_was_measured_is_kept(ring: Ring, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, request = clients_of(ring.network)[NodeId(1)], request_for(tiny, quantize="int8")
    first = client.measure(request)
    assert isinstance(first, StageTimes) and first.mode == "int8"

    def fail(*arguments: Any, **more: Any) -> None:
        raise ConfigError("measured again")

    monkeypatch.setattr(node_meter, "StageTimer", fail)
    again = client.measure(request)
    assert again == replace(first, free_memory_bytes=again.free_memory_bytes)  # type: ignore[union-attr]
    changes: list[dict[str, Any]] = [{"again": True}, {"quantize": "int4"}, {"kv_dtype": "int8"}, {"has_head": True}]
    for other in (replace(request, **change) for change in changes):
        with pytest.raises(Refused, match=r"secondary 0 at http://.*measured again"):
            client.measure(other)


def test_one_request_is_served_at_a_time(ring: Ring, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, request = clients_of(ring.network)[NodeId(1)], request_for(tiny, again=True)
    begun, go_on = threading.Event(), threading.Event()

    def wait(folder: Path, tick: object) -> None:
        begun.set()
        assert go_on.wait(60)

    monkeypatch.setattr(node_meter, "disk_speed", wait)
    thread = threading.Thread(target=client.measure, args=(request,))
    thread.start()
    assert begun.wait(60)
    with pytest.raises(NodeBusy, match="this node is being measured"):
        client.measure(request)
    go_on.set()
    thread.join()
    monkeypatch.undo()
    assert isinstance(client.measure(replace(request, again=False)), StageTimes)


def test_a_node_that_serves_a_run_is_not_measured(ring: Ring, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring.generate(tiny, [[5]])  # it has its chunk from now on, and loads it once
    client, refusals = clients_of(ring.network)[NodeId(1)], []
    secondary = ring.secondaries[0]
    load = secondary._load

    def load_later(spec: Any) -> bool:
        answer = secondary.request_measurement(request_for(tiny))  # taken from the inbox once the node is ready
        answer.add_done_callback(lambda done: refusals.append(done.exception()))
        return load(spec)

    monkeypatch.setattr(secondary, "_load", load_later)
    ring.generate(tiny, [[5]])
    assert [str(refusal) for refusal in refusals] == ["this node serves a run: it is measured while it is idle"]
    assert isinstance(client.measure(request_for(tiny)), StageTimes)


def test_too_little_memory_is_said(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_meter, "free_memory_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"timing a layer of this model takes .* and 900 B may be used"):
        NodeMeter(torch.device("cpu")).measure(request_for(tiny))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"timing a layer of this model takes .* and 1000 B may be used"):
        NodeMeter(torch.device("cpu"), memory_limit_bytes=1000).measure(request_for(tiny))


def test_nodes_are_measured_in_another_mode_but_for_those_that_cannot(
    ring: Ring, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "mdi")
    request, meter = request_for(tiny), NodeMeter(torch.device("cpu"), folder=tmp_path)
    network, clients = ring.network, clients_of(ring.network)

    def refuse(request: StageRequest) -> StageTimes:
        raise ConfigError("no kernels for int8 here")

    with listen(network.starter.addr, network.starter.port_in) as listener:
        network_meter = NetworkMeter(network, clients, meter, listener, Inbox())
        plain = network_meter.measure(request, "float32")
        monkeypatch.setattr(ring.secondaries[1]._measuring, "_stage", refuse)
        quantized = network_meter.held_as("int8", request, plain)
    assert [node.mode for node in quantized.nodes] == ["int8", "int8", "none"]
    assert quantized.nodes[2] == plain.nodes[2] and quantized.links is plain.links
    assert any("secondary 1 keeps its weights as they are: " in line for line in caplog.messages)


class ScriptedClient(ControlClient):
    """A secondary that answers when a test lets it."""

    def __init__(self, name: str) -> None:
        self.name, self.url = name, "http://nowhere"
        self.has_times, self.released = threading.Event(), list[int]()

    def measure(self, request: object) -> StageTimes:
        assert self.has_times.wait(60)
        return times_of(2.0, free_bytes=1)

    def release(self, run: int) -> None:
        self.released.append(run)


class ScriptedMeter(NodeMeter):
    """A starter that has its times at once, and then does what a test says."""

    on_busy: Callable[[Callable[[], bool]], None]

    def measure(self, request: StageRequest) -> StageTimes:
        return times_of(1.0, free_bytes=1)

    def keep_busy(self, is_needed: Callable[[], bool]) -> None:
        self.on_busy(is_needed)


def test_the_starter_computes_until_the_others_of_its_machine_are_timed(tiny: Path) -> None:
    """Not for another machine. Then those that share a machine may rest, which computed for each other."""
    near, far = replace(ANY_PORT, http_port=1), replace(ANY_PORT, addr="10.0.0.9")
    network = NetworkConfig(ANY_PORT, (near, far, near))
    clients = {NodeId(i): ScriptedClient(node_name(i)) for i in (1, 2, 3)}
    before, waited = NetworkTimes(tuple(times_of(1.0, free_bytes=n) for n in (7, 8, 9, 10)), []), []

    def compute(is_needed: Callable[[], bool]) -> None:
        assert is_needed()
        clients[NodeId(1)].has_times.set()
        assert is_needed(), "another one has no times"
        clients[NodeId(3)].has_times.set()
        wait_until(lambda: not is_needed(), 60, "both have answered")
        assert not any(client.released for client in clients.values())
        waited.append(is_needed())
        clients[NodeId(2)].has_times.set()

    meter = ScriptedMeter(torch.device("cpu"))
    meter.on_busy = compute
    times = NetworkMeter(network, clients, meter, None, Inbox()).held_as("int8", request_for(tiny), before)
    assert waited == [False]
    assert [len(client.released) for client in clients.values()] == [1, 0, 1]
    assert [node.layers[0].seconds for node in times.nodes] == pytest.approx([1e-3, 2e-3, 2e-3, 2e-3])
    assert [node.free_memory_bytes for node in times.nodes] == [7, 8, 9, 10], "of when all of it was free"


@pytest.mark.parametrize(("round_trip_s", "latency_s"), [(9e-3, 3e-3), (2e-3, 0.0)])
def test_what_two_nodes_take_for_frames_is_not_the_time_of_their_link(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, round_trip_s: float, latency_s: float
) -> None:
    nodes = tuple(replace(times_of(1.0), frame_s=seconds) for seconds in (1e-3, 2e-3))
    monkeypatch.setattr(NetworkMeter, "_nodes", lambda self, request: nodes)
    monkeypatch.setattr(NetworkMeter, "_link", lambda self, *arguments: LinkTimes(round_trip_s, 1e6, 2e6))
    network = NetworkConfig(ANY_PORT, (replace(ANY_PORT, addr="10.0.0.9"),))
    meter = NetworkMeter(network, {}, NodeMeter(torch.device("cpu")), None, Inbox())
    times = meter.measure(request_for(tiny), "float32")
    there, back = times.links[0][1], times.links[1][0]
    assert there.latency_s == back.latency_s == pytest.approx(latency_s)
    assert (there.bytes_s, back.bytes_s, times.alone) == (1e6, 2e6, None)


def test_a_node_answers_with_the_limit_of_its_memory(
    ring: Ring, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own, else that of the starter's configuration."""
    meter = ring.secondaries[0]._measuring._meter
    monkeypatch.setattr(ring.secondaries[0]._measuring, "_meter", replace(meter, memory_limit_bytes=10**9))
    starter, *secondaries = ring.network.nodes
    limited = NetworkConfig(starter, tuple(replace(node, memory_limit_bytes=10**8) for node in secondaries))
    times = measure(limited, request_for(tiny), tmp_path)
    assert [node.memory_limit_bytes for node in times.nodes] == [None, 10**9, 10**8]
    assert all(node.free_memory_bytes for node in times.nodes)


def test_what_was_kept_and_is_damaged_is_measured_again(tiny: Path, tmp_path: Path) -> None:
    meter = NodeMeter(torch.device("cpu"), folder=tmp_path)
    meter.measure(request_for(tiny))
    (kept,) = tmp_path.glob("*.json")
    kept.write_text('{"device": 7}')
    assert meter.measure(request_for(tiny)).device == "cpu"
    assert kept.read_text() != '{"device": 7}'


def test_a_node_that_cannot_be_reached_over_the_ring_is_named(tiny: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        machine = Machine(tmp_path, Timeouts(handshake_s=0.3), ACCESS)
        machine.start()
        stack.callback(machine.kill)
        http_port, port_in, nobody = free_ports(3)
        starter = replace(ANY_PORT, http_port=http_port, port_in=port_in, access=ACCESS)
        network = NetworkConfig(starter, (replace(machine.node, port_in=nobody),))
        with pytest.raises(LinkClosed, match=rf"secondary 0 \(127.0.0.1:{nobody}\) cannot be reached"):
            measure(network, request_for(tiny))


def test_a_link_that_breaks_while_it_is_timed_is_an_error(ring: Ring) -> None:
    """The other end is nobody: whoever timed it says so, and is idle again."""
    client, (nobody,) = clients_of(ring.network)[NodeId(1)], free_ports(1)
    request = LinkRequest(1, Rank(0), Peer("secondary 1", "127.0.0.1", nobody), 32, "float32")
    with pytest.raises(Refused, match=r"secondary 1 \(127.0.0.1:\d+\) cannot be reached"):
        client.measure(request)
    assert client.status().state.value == "idle"
