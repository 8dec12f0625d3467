"""Entries of nodes on the local network; here it is loopback."""

import pytest

from mdi.net import discovery
from mdi.net.discovery import SERVICE, Announcement, Entry, browse


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "shared_addresses", lambda: ["127.0.0.1"])


@pytest.mark.slow
def test_two_machines_of_one_name_that_start_at_once_are_both_found() -> None:
    with (
        Announcement("raspberrypi.lan", "0123456789abcdef", 4001, "1.0", "00aa"),
        Announcement("raspberrypi.lan", "fedcba9876543210", 4002, "1.0", "00aa"),
    ):
        found = [entry for entry in browse(2.0) if entry.port in (4001, 4002)]
    assert sorted(found, key=lambda entry: entry.port) == [
        Entry("raspberrypi", ("127.0.0.1",), 4001, "1.0", "00aa"),
        Entry("raspberrypi", ("127.0.0.1",), 4002, "1.0", "00aa"),
    ]


@pytest.mark.parametrize(
    ("machine", "instance"),
    [("", "node [ab12]"), ("päi.example.org", "päi [ab12]"), ("ä" * 40, "ä" * 28 + " [ab12]")],
)
def test_an_entry_has_a_name_of_at_most_one_label(machine: str, instance: str) -> None:
    announced = discovery._instance(machine, "ab12")
    assert announced == instance
    assert len(f"{announced}.{SERVICE}".encode()) <= 63 + 1 + len(SERVICE)
