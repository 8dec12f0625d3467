"""Which addresses of this machine others can use."""

import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mdi.net.interfaces import all_addresses, shared_addresses

V4, V6, LINK = socket.AF_INET, socket.AF_INET6, 17
MACHINE: dict[str, list[tuple[int, str]]] = {
    "lo": [(V4, "127.0.0.1"), (V6, "::1")],
    "eth0": [(LINK, "00:11:22:33:44:55"), (V6, "fd00::5"), (V6, "fe80::5%eth0"), (V4, "192.168.1.5")],
    "wlan0": [(V4, "192.168.2.5")],
    "eth1": [(V4, "10.0.0.5")],
    "docker0": [(V4, "172.17.0.1")],
    "br-0a1b2c3d4e5f": [(V4, "172.18.0.1")],
    "br-lan": [(V4, "192.168.3.1")],
    "veth12": [(V6, "fe80::7%veth12")],
}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def addresses() -> dict[str, Any]:
        return {
            name: [SimpleNamespace(family=family, address=address) for family, address in items]
            for name, items in MACHINE.items()
        }

    def states() -> dict[str, Any]:
        return {name: SimpleNamespace(isup=name != "eth1") for name in MACHINE}

    monkeypatch.setattr(psutil, "net_if_addrs", addresses)
    monkeypatch.setattr(psutil, "net_if_stats", states)


def test_loopback_containers_and_what_is_down_are_not_shared_and_ipv4_comes_first() -> None:
    assert shared_addresses() == ["192.168.1.5", "192.168.2.5", "192.168.3.1", "fd00::5"]


def test_all_addresses_are_those_of_ip() -> None:
    assert {"127.0.0.1", "::1", "172.17.0.1", "10.0.0.5"} < set(all_addresses())
    assert "00:11:22:33:44:55" not in all_addresses()
