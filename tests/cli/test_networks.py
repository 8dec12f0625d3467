"""Which network a command is about, and which node a secondary is."""

import shutil
import socket
from pathlib import Path

import pytest

from mdi.cli import networks
from mdi.cli.commands import launch, secondary
from mdi.cli.networks import advice_for_starter, describe, network_of, secondary_of, starter_address, starter_of
from mdi.cli.signals import Signals
from mdi.config.addresses import NodeAddress, parse_addresses
from mdi.config.network import load_network
from mdi.config.options import NetworkOptions, SecondaryOptions
from mdi.net.certificates import make_certificates
from mdi.net.sockets import listen
from support.config_files import error_of
from support.scripts import free_ports, write_network


@pytest.fixture(autouse=True)
def keyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDI_KEY", "correct horse battery staple")
    monkeypatch.setattr(networks, "shared_addresses", lambda: ["192.168.1.5", "fd00::5"])


def test_addresses_make_a_network_whose_nodes_are_asked_for_the_rest() -> None:
    options = NetworkOptions(nodes="192.0.2.5,192.0.2.6:8090", port=0)
    network = network_of(options)
    assert [(node.addr, node.http_port, node.port_in) for node in network.secondaries] == [
        ("192.0.2.5", 8088, 0),
        ("192.0.2.6", 8090, 0),
    ]
    assert network.starter.listen in ("::", "0.0.0.0")
    assert describe(options, network) == "starter of 3 nodes, with 192.0.2.5, 192.0.2.6:8090"


def test_a_file_is_read_as_before(tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.json", 2).path
    assert network_of(NetworkOptions(nodes_config=path)) == load_network(path)
    assert describe(NetworkOptions(nodes_config=path), load_network(path)) == f"starter of 2 nodes, from {path}"


def test_a_loopback_address_is_for_a_ring_of_one_machine() -> None:
    assert len(network_of(NetworkOptions(nodes="127.0.0.1:8089,localhost:8090")).nodes) == 3
    line = error_of(lambda: network_of(NetworkOptions(nodes="192.0.2.5,127.0.0.1:8089")))
    assert line == "--nodes: 127.0.0.1:8089 means this machine alone; for the others give one of 192.168.1.5, fd00::5"


def test_the_starter_is_at_the_address_of_a_node_beside_it() -> None:
    assert starter_address(parse_addresses("127.0.0.1:8089", "--nodes")) == "127.0.0.1"
    assert starter_address(parse_addresses("no-such-machine.invalid,127.0.0.1", "--nodes")) == "127.0.0.1"
    assert starter_address(parse_addresses("no-such-machine.invalid", "--nodes")) == "127.0.0.1"


def test_a_place_that_a_network_cannot_be_saved_to_is_told_before_the_run(tmp_path: Path) -> None:
    options = NetworkOptions(nodes="192.0.2.5", save_nodes=tmp_path / "none" / "net.json")
    assert "the folder" in error_of(lambda: network_of(options))
    (tmp_path / "folder").mkdir()
    assert "this is a folder" in error_of(lambda: network_of(NetworkOptions(nodes="a", save_nodes=tmp_path / "folder")))


def test_a_port_that_is_taken_is_told_with_its_flag() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        wanted = f"port {port}: another program uses this port; stop it or choose another port in"
        assert f"{wanted} --port" in error_of(lambda: secondary_of(SecondaryOptions(port=port)))
        assert f"{wanted} --ring-port" in error_of(lambda: network_of(NetworkOptions(nodes="a", ring_port=port)))


def test_a_secondary_without_a_file_listens_everywhere_and_says_where() -> None:
    (port,) = free_ports(1)
    node = secondary_of(SecondaryOptions(port=port))
    assert (node.addr, node.http_port, node.port_in, node.access.addrs) == ("192.168.1.5", port, 0, None)
    assert advice_for_starter(8090) == (
        "at 192.168.1.5 port 8090 (also fd00::5); on the starter: starter.py --nodes 192.168.1.5:8090"
    )
    with listen(node.listen_addr, 0) as listener:
        for addr in ("127.0.0.1", "::1") if node.listen_addr == "::" else ("127.0.0.1",):
            socket.create_connection((addr, listener.getsockname()[1]), timeout=60).close()


def test_a_starter_to_join_is_one_address_and_for_a_node_without_a_file(tmp_path: Path) -> None:
    assert starter_of(secondary.parse([])) is None
    assert starter_of(secondary.parse(["--join", "pi4.local:8089"])) == NodeAddress("pi4.local", 8089)
    assert "takes part in one ring: give one" in error_of(lambda: starter_of(secondary.parse(["--join", "a,b"])))
    file = ["--nodes-config", str(tmp_path / "net.json"), "0"]
    assert "--join a: is for a node without a file" in error_of(lambda: secondary.parse(["--join", "a", *file]))


def test_an_option_without_a_file_or_a_key_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDI_KEY")
    assert "a node without --nodes-config needs a key" in error_of(lambda: secondary_of(secondary.parse([])))
    assert "--nodes needs a key" in error_of(lambda: network_of(NetworkOptions(nodes="a")))
    assert "--discover needs a key" in error_of(lambda: network_of(NetworkOptions(discover=1.0)))
    monkeypatch.setattr("sys.argv", ["launch.py", "--discover"])
    assert "finds nodes that run already: give it to starter.py" in error_of(lambda: launch.main(Signals()))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
def test_with_tls_nodes_are_called_by_what_their_certificates_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificates(["box.local", "127.0.0.1"], tmp_path)
    monkeypatch.setenv("MDI_TLS", str(tmp_path / "box.local"))
    network = network_of(NetworkOptions(nodes="127.0.0.1:8089"))
    assert network.starter.addr == "box.local" and not network.secondaries[0].is_called_by_address
    node = secondary_of(SecondaryOptions(port=free_ports(1)[0]))
    assert node.access.tls is not None and f"box.local:{node.http_port}" in node.hosts
    file = write_network(tmp_path / "net.json", 2).path
    assert load_network(file).starter.access.tls == node.access.tls
    monkeypatch.setenv("MDI_TLS", str(tmp_path / "127.0.0.1"))
    assert network_of(NetworkOptions(nodes="127.0.0.1:8089")).starter.addr == "127.0.0.1"
    for folder, told in (("", "MDI_TLS is empty"), (str(tmp_path), "node.pem cannot be read: No such file")):
        monkeypatch.setenv("MDI_TLS", folder)
        assert told in error_of(lambda: network_of(NetworkOptions(nodes="127.0.0.1:8089")))


def test_a_key_is_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = secondary.build_parser()
    for arguments in (["--make-key"], ["--make-key", str(tmp_path / "ring.key")]):
        with pytest.raises(SystemExit, match="0"):
            parser.parse_args(arguments)
    printed, said = capsys.readouterr().out.splitlines()
    assert len(printed) == 64 and int(printed, 16)
    assert said.startswith(f"{tmp_path / 'ring.key'}: a new key")
