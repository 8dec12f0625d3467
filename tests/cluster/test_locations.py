"""Where the members of a ring meet, as the configuration says or as they tell themselves."""

import threading
from dataclasses import replace

import pytest

from mdi import __version__
from mdi.cluster.locations import Location, Locations, location_in
from mdi.config.addresses import NodeAddress
from mdi.config.keyed_network import network_at
from mdi.config.network import NetworkConfig, NodeConfig
from mdi.control.client import ControlClient
from mdi.control.protocol import NotANode, Refused, Unreachable, WrongVersion
from mdi.control.status import NodeStatus
from mdi.errors import ControlError
from mdi.ids import NodeId
from mdi.net.access import Access
from mdi.net.sockets import Peer
from support.statuses import IDLE, STARTING

STARTER, FIRST, SECOND = map(NodeId, range(3))
FILE = NetworkConfig(
    NodeConfig("10.0.0.4", 1, 2, 0), (NodeConfig("10.0.0.5", 3, 4, 0), NodeConfig("10.0.0.6", 5, 6, 0))
)
TYPED = network_at([NodeAddress("pi5"), NodeAddress("pi6")], "10.0.0.4", Access(), port=1, ring_port=2)
CLIENT = ControlClient("secondary 0", "pi5", 8088)
PRESENT = replace(IDLE, version=__version__, ring_port=4, called="10.0.0.5", caller="10.0.0.4")


def test_what_the_configuration_says_is_known_at_once() -> None:
    locations = Locations(FILE)
    locations.locate(FIRST, lambda: pytest.fail("it was asked"))
    assert locations.ring_peer(SECOND, seen_from=FIRST) == Peer("secondary 1", "10.0.0.6", 6)
    assert locations.ring_peer(STARTER, seen_from=SECOND) == Peer("starter", "10.0.0.4", 2)
    assert locations.starter(seen_from=FIRST) == Peer("starter", "10.0.0.4", 1)


def test_each_node_is_told_the_address_that_it_sees_the_starter_at() -> None:
    locations = Locations(TYPED)
    locations.locate(FIRST, lambda: Location("10.0.0.5", 4, "10.0.0.4"))
    locations.locate(SECOND, lambda: Location("10.9.0.6", 6, "10.9.0.4"))
    assert locations.ring_peer(FIRST, seen_from=STARTER) == Peer("secondary 0", "10.0.0.5", 4)
    assert locations.ring_peer(STARTER, seen_from=SECOND) == Peer("starter", "10.9.0.4", 2)
    assert locations.starter(seen_from=FIRST) == Peer("starter", "10.0.0.4", 1)
    assert locations.starter(seen_from=SECOND) == Peer("starter", "10.9.0.4", 1)


def test_who_needs_a_place_waits_for_it() -> None:
    locations, found = Locations(TYPED), []
    waiting = threading.Thread(target=lambda: found.append(locations.ring_peer(SECOND, seen_from=FIRST)))
    waiting.start()
    locations.locate(SECOND, lambda: Location("10.0.0.6", 6, "10.0.0.4"))
    waiting.join()
    assert found == [Peer("secondary 1", "10.0.0.6", 6)]


def test_who_needs_the_place_of_a_node_that_is_missing_fails_as_it_does() -> None:
    locations = Locations(TYPED)

    def ask() -> Location:
        raise Unreachable("secondary 1 cannot be reached")

    with pytest.raises(Unreachable):
        locations.locate(SECOND, ask)
    with pytest.raises(Unreachable, match="secondary 1"):
        locations.ring_peer(SECOND, seen_from=FIRST)


def test_a_node_is_called_by_the_address_that_its_name_has() -> None:
    typed, tells = TYPED.secondaries[0], NodeConfig("pi5", 8088, 0, 0)
    assert location_in(PRESENT, CLIENT, typed, "10.0.0.9") == Location("10.0.0.5", 4, "10.0.0.4")
    silent = replace(PRESENT, called=None, caller=None)
    assert location_in(silent, CLIENT, tells, "10.0.0.9") == Location("pi5", 4, "10.0.0.9")


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (STARTING, Refused, "is a starter"),
        (replace(PRESENT, version="0.0.1"), WrongVersion, f"runs version 0.0.1, this node {__version__}"),
        (replace(PRESENT, ring_port=None), NotANode, "does not tell its ring port"),
    ],
)
def test_who_cannot_be_a_secondary_of_this_ring_is_one_line(
    status: NodeStatus, error: type[ControlError], told: str
) -> None:
    with pytest.raises(error, match=rf"secondary 0 at http://pi5:8088 .*{told}"):
        location_in(status, CLIENT, TYPED.secondaries[0], "10.0.0.4")
