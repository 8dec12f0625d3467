"""Each place in a network is a node of its own."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mdi.cluster import identities
from mdi.cluster.identities import refuse_shared_names, refuse_twins
from mdi.config.addresses import NodeAddress
from mdi.config.keyed_network import network_at
from mdi.config.network import NetworkConfig
from mdi.control.client import ControlClient
from mdi.ids import NodeId
from mdi.net.access import Access
from mdi.net.keys import Key, Keys
from support.config_files import error_of
from support.rings import Machine
from support.statuses import IDLE

ACCESS = Access(Keys(Key("correct horse battery staple", "test")), addrs=None)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="another loopback address than 127.0.0.1 is Linux's")


@contextlib.contextmanager
def named_node(folder: Path, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> Iterator[NetworkConfig]:
    """A network of one name, with a node at each of these addresses but the last one."""
    monkeypatch.setattr(identities, "resolved", lambda name: set(addresses))
    port = None
    with contextlib.ExitStack() as stack:
        for address in addresses[:-1]:
            machine = Machine(folder, access=ACCESS)
            port = port or machine.node.http_port
            machine.node = replace(machine.node, addr=address, http_port=port, port_in=0)
            machine.start()
            stack.callback(machine.kill)
        yield network_at([NodeAddress("pis.local", port or 0)], "127.0.0.1", ACCESS)


def test_a_name_of_several_nodes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with named_node(tmp_path, monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.3") as network:
        line = error_of(lambda: refuse_shared_names(network))
        assert line == "pis.local is the name of several nodes, at 127.0.0.1 and 127.0.0.2: give these"


def test_a_node_may_have_several_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with named_node(tmp_path, monkeypatch, "127.0.0.1", "127.0.0.2") as network:
        refuse_shared_names(network)


def test_one_node_at_two_addresses_is_refused() -> None:
    clients = {NodeId(i): ControlClient(f"secondary {i - 1}", f"10.0.0.{i}", 8088) for i in (1, 2, 3)}
    alone, twin = replace(IDLE, process="a"), replace(IDLE, process="b")
    refuse_twins(clients, {NodeId(1): alone, NodeId(2): twin, NodeId(3): None})
    line = error_of(lambda: refuse_twins(clients, {NodeId(1): twin, NodeId(2): alone, NodeId(3): twin}))
    assert line == "http://10.0.0.1:8088 and http://10.0.0.3:8088 are one node: give each node once"
