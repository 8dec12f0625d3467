"""Listening sockets, and advice where a port cannot be had."""

import pytest

from mdi.errors import ConfigError
from mdi.net.sockets import listen
from support.links import HOST


def test_a_listener_takes_any_free_port() -> None:
    with listen(HOST, 0) as one, listen("localhost", 0) as other:
        assert one.getsockname()[1] != other.getsockname()[1]


def test_a_port_in_use_is_refused_with_advice() -> None:
    with listen(HOST, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            listen(HOST, port)
    assert str(caught.value) == (
        f"cannot listen on {HOST} port {port}: another program uses this port; stop it or choose another port in the"
        " nodes configuration"
    )
    listen(HOST, port).close()


@pytest.mark.parametrize("addr", ["10.7..48.46", "a" * 64, "no-such-host.invalid"])
def test_a_name_that_nobody_knows_is_refused_with_advice(addr: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {addr} port 0: no machine is known by this name"):
        listen(addr, 0)


@pytest.mark.parametrize("addr", ["192.0.2.1"])
def test_an_address_of_another_machine_is_refused_with_advice(addr: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {addr} port 0: this is not an address of this machine"):
        listen(addr, 0)
