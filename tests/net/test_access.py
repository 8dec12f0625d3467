"""Who may call a node without a key: machines, by their addresses, however they are written."""

import socket

import pytest

import mdi.net.access
from mdi.net.access import AllowedHosts, is_loopback


@pytest.mark.parametrize(
    ("addrs", "caller", "local", "expected"),
    [
        (["10.0.0.1"], "10.0.0.1", "10.0.0.2", True),
        (["10.0.0.1"], "10.0.0.3", "10.0.0.2", False),
        (["10.0.0.1"], "127.0.0.1", "10.0.0.2", False),
        (["127.0.0.1"], "127.0.0.1", "127.0.0.1", True),
        (["localhost"], "127.0.0.1", "10.0.0.2", True),
        (["127.0.0.1"], "10.0.0.2", "10.0.0.2", True),  # this machine, by its other address
        (["10.0.0.2"], "127.0.0.1", "10.0.0.2", True),
        (["127.0.0.1"], "10.0.0.3", "10.0.0.2", False),
        (["10.0.0.1"], "::ffff:10.0.0.1", "::", True),
        (["::1"], "127.0.0.1", "127.0.0.1", True),
        (["2001:db8::1"], "2001:db8:0:0::1", "::", True),
        (["fe80::1"], "fe80::1%eth0", "::", True),
        (["2001:db8::1"], "2001:db8::2", "::", False),
        ([], "10.0.0.1", "10.0.0.2", False),
        (["10.7..48.46", "a" * 64], "10.0.0.1", "10.0.0.2", False),
        (["10.0.0.1"], "", "10.0.0.2", False),
    ],
)
def test_callers_are_known_by_their_address(addrs: list[str], caller: str, local: str, expected: bool) -> None:
    assert AllowedHosts(addrs, local).include(caller) is expected


def test_a_name_is_resolved_when_somebody_calls_and_again_for_a_new_address(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, asked, address = 1000.0, 0, "10.0.0.1"

    def resolve(addr: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        nonlocal asked
        asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    monkeypatch.setattr(mdi.net.access.socket, "getaddrinfo", resolve)
    callers = AllowedHosts(["box.local"], "10.0.0.2", clock=lambda: now_s)
    assert asked == 0
    assert callers.include("10.0.0.1")
    now_s += 5
    assert callers.include("10.0.0.1")
    assert asked == 1
    address = "10.0.0.9"
    assert callers.include("10.0.0.9")
    assert not callers.include("10.0.0.1")
    assert not callers.include("10.0.0.1")
    assert asked == 2  # whoever is refused does not make us ask more than once a second
    now_s += 60
    assert callers.include("10.0.0.9")
    assert asked == 3


@pytest.mark.parametrize(
    ("addr", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("10.0.0.1", False), ("::", False), ("10.7..48.46", False)],
)  # fmt: skip
def test_loopback_is_what_only_this_machine_reaches(addr: str, expected: bool) -> None:
    assert is_loopback(addr) is expected
