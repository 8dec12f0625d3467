"""Networks without a nodes configuration: addresses as users type them, the options, and the file that is saved."""

from dataclasses import replace
from pathlib import Path

import pytest

from mdi.config.addresses import DEFAULT_HTTP_PORT, NodeAddress, parse_addresses
from mdi.config.keyed_network import keyed_access, network_at, save_network, secondary_without_file
from mdi.config.network import load_network
from mdi.config.options import ChatOptions, NetworkOptions, SecondaryOptions
from mdi.errors import ConfigError
from mdi.net.access import Access
from support.config_files import error_of

SECRET = "correct horse battery staple"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.168.1.11", [("192.168.1.11", DEFAULT_HTTP_PORT)]),
        ("192.168.1.11,pi4.local:8089", [("192.168.1.11", DEFAULT_HTTP_PORT), ("pi4.local", 8089)]),
        (" a , b:1 ", [("a", DEFAULT_HTTP_PORT), ("b", 1)]),
        ("fd00::5,[fd00::6],[fd00::7]:8090", [("fd00::5", 8088), ("fd00::6", 8088), ("fd00::7", 8090)]),
        ("pi:8088,pi:8089", [("pi", 8088), ("pi", 8089)]),
    ],
)
def test_addresses_are_read_as_they_are_typed(text: str, expected: list[tuple[str, int]]) -> None:
    assert parse_addresses(text, "--nodes") == tuple(NodeAddress(*each) for each in expected)


@pytest.mark.parametrize("text", ["192.168.1.11", "pi4.local:8089", "[fd00::7]:8090", "[fd00::7]"])
def test_an_address_is_shown_as_it_can_be_typed(text: str) -> None:
    (address,) = parse_addresses(text, "--nodes")
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "an empty entry"),
        ("a,,b", "an empty entry"),
        ("a,b,a:8088", "a is there twice"),
        ("http://pi4.local:8088", "is a URL"),
        ("pi4:http", "is neither an address nor a name"),
        ("pi4:0", "0 is not a port number"),
        ("pi4:65536", "65536 is not a port number"),
        ("300.1.1.1", "is neither an address nor the name of a machine"),
        ("fd00::5:8088:9:9:9:9:9", "is neither an address nor a name"),
        ("0.0.0.0", "means any address"),
        ("fe80::1%eth0", "one cable only"),
        ("p i", "holds a blank"),
    ],
)
def test_what_is_no_address_is_one_line(text: str, told: str) -> None:
    line = error_of(lambda: parse_addresses(text, "--nodes"))
    assert line.startswith("--nodes: ") and told in line


def test_without_a_key_it_is_said_how_to_make_one() -> None:
    line = error_of(lambda: keyed_access("--nodes"))
    assert line.startswith("--nodes needs a key: `secondary.py --make-key` prints one; set it as MDI_KEY")
    assert "a node without --nodes-config needs a key" in error_of(lambda: secondary_without_file("10.0.0.5", 8088, 0))


def test_a_saved_network_is_the_one_that_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDI_KEY", SECRET)
    network = network_at(parse_addresses("10.0.0.5,pi:8089,fd00::6", "--nodes"), "10.0.0.4", keyed_access("--nodes"))
    save_network(tmp_path / "saved.json", network)
    loaded = load_network(tmp_path / "saved.json")
    without_access = [replace(node, access=Access()) for node in loaded.nodes]
    assert without_access == [replace(node, access=Access()) for node in network.nodes]
    assert loaded.starter.access.keys == network.starter.access.keys is not None
    assert all(node.tells_ring_port and node.is_called_by_address for node in loaded.secondaries)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"nodes": "a", "nodes_config": Path("net.json")}, "give one of them"),
        ({"nodes": "a", "discover": 3.0}, "give one of them"),
        ({"discover": 0.0}, "--discover 0.0: must be"),
        ({"save_nodes": Path("net.json")}, "--save-nodes net.json: is for --nodes and --discover"),
        ({"port": 8088}, "--port 8088: is for --nodes and --discover"),
        ({"nodes": "a", "port": 65536}, "--port 65536: must be"),
        ({"nodes": "a", "ring_port": -1}, "--ring-port -1: must be"),
    ],
)
def test_options_that_contradict_each_other_are_one_line(options: dict[str, object], told: str) -> None:
    assert told in error_of(lambda: NetworkOptions(**options))  # type: ignore[arg-type]


def test_a_file_has_the_ports_of_its_secondaries() -> None:
    with pytest.raises(ConfigError, match=r"--port 8090: net\.json has the ports of this node"):
        SecondaryOptions(nodes_config=Path("net.json"), port=8090)
    with pytest.raises(ConfigError, match="--ring-port 70000: must be from 0 to 65535"):
        SecondaryOptions(ring_port=70000)


def test_a_chat_is_with_one_server() -> None:
    assert ChatOptions(nodes="a").starts_server and ChatOptions(discover=3.0).starts_server
    assert "give one of them" in error_of(lambda: ChatOptions(nodes="a", discover=3.0))
    assert "--discover 0.0: must be" in error_of(lambda: ChatOptions(discover=0.0))
    assert "give one of them" in error_of(lambda: ChatOptions(nodes="a", nodes_config=Path("net.json")))
    assert "--nodes is for one that is started here" in error_of(lambda: ChatOptions(nodes="a", url="http://x"))
