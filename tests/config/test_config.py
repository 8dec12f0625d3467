"""What users write: nodes-config files and options; every mistake is named with file or flag and value."""

import copy
import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.cli.commands import starter
from mdi.config.bounds import check_biased_tokens, parse_size
from mdi.config.network import NetworkConfig, NodeConfig, load_network, load_node, node_name
from mdi.config.options import (
    ModelOptions,
    NetworkOptions,
    NodeOptions,
    OutputOptions,
    PlannerOptions,
    PromptOptions,
    RingOptions,
    SamplingOptions,
    SecondaryOptions,
    ServeOptions,
    StarterOptions,
)
from mdi.config.paths import SETTINGS_DIR, SOURCE_DIR
from mdi.config.prepare_options import PrepareOptions
from mdi.config.section import check_dtype, defaults_of
from mdi.errors import ConfigError
from mdi.net.access import Access
from support.config_files import Json, error_of, network_json, node_json, written
from support.wire import few_examples

# ---- the files that are shipped


def nodes(http: list[int], ring: list[int], addrs: list[str], devices: list[str | None]) -> tuple[NodeConfig, ...]:
    """Nodes on `http` ports and ring ports (in, out); every secondary names the starter's address."""
    access = Access(addrs=tuple(dict.fromkeys(addrs)))
    return tuple(
        NodeConfig(addrs[i], http[i], ring[2 * i], ring[2 * i + 1], devices[i], 1.0, addrs[0] if i else None, access)
        for i in range(len(http))
    )


HERE = "127.0.0.1"
JETSONS = ["10.7.48.46", "10.7.48.12", "10.7.48.88"]
NETWORKS = {
    "configuration.json": nodes([8088, 8089, 8090], [*range(5088, 5094)], [HERE] * 3, [None] * 3),
    "configuration_2.json": nodes([8088, 8090], [5088, 5089, 5092, 5093], [HERE] * 2, [None] * 2),
    "configuration_4.json": nodes([8088, 8089, 8090, 8091], [*range(5088, 5096)], [HERE] * 4, [None] * 4),
    "config_2gpus.json": nodes([8088, 8090], [5088, 5089, 5092, 5093], [HERE] * 2, ["cuda:0", "cuda:1"]),
    "standalone.json": nodes([8088], [5088, 5089], [HERE], [None]),
    "jetson_config.json": nodes([8088, 8089, 8090], [*range(5088, 5094)], JETSONS, ["cuda"] * 3),
}
SINGLE_NODES = {
    "secondary/node0.json": NodeConfig(HERE, 8089, 5090, 5091, starter_addr=HERE, access=Access(addrs=(HERE, HERE))),
    "secondary/node1.json": NodeConfig(HERE, 8090, 5092, 5093, starter_addr=HERE, access=Access(addrs=(HERE, HERE))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shipped_network_is_the_published_one(name: str) -> None:
    network = load_network(SETTINGS_DIR / name)
    assert network.nodes == NETWORKS[name]
    assert network.starter == NETWORKS[name][0]
    for index, secondary in enumerate(network.secondaries):
        assert load_node(SETTINGS_DIR / name, index) == secondary == NETWORKS[name][index + 1]


@pytest.mark.parametrize("name", SINGLE_NODES)
def test_a_shipped_single_node_is_the_published_one(name: str) -> None:
    assert load_node(SETTINGS_DIR / name, None) == SINGLE_NODES[name]


@pytest.mark.parametrize(("name", "n_nodes"), [("jetson_config_4.json", 4), ("jetson_config_5.json", 5)])
def test_the_larger_jetson_networks_extend_the_smaller(name: str, n_nodes: int) -> None:
    network = load_network(SETTINGS_DIR / name)
    access = network.starter.access
    assert network.nodes[:3] == tuple(replace(node, access=access) for node in NETWORKS["jetson_config.json"])
    assert access == Access(addrs=tuple(node.addr for node in network.nodes))
    assert len(network.nodes) == n_nodes
    assert len({node.addr for node in network.nodes}) == n_nodes
    assert {node.device for node in network.nodes} == {"cuda"}
    assert {node.starter_addr for node in network.secondaries} == {"10.7.48.46"}


def test_no_shipped_file_is_forgotten() -> None:
    shipped = {path.relative_to(SETTINGS_DIR).as_posix() for path in SETTINGS_DIR.rglob("*") if path.is_file()}
    assert shipped == {*NETWORKS, *SINGLE_NODES, "jetson_config_4.json", "jetson_config_5.json"}


# ---- reading


def test_a_single_node_network_has_no_secondaries(tmp_path: Path) -> None:
    data = network_json()
    data["nodes"]["secondary"] = []
    path = written(tmp_path, data)
    assert load_network(path) == NetworkConfig(
        NodeConfig("127.0.0.1", 8088, 5088, 5089, access=Access(addrs=("127.0.0.1",)))
    )
    assert error_of(lambda: load_node(path, 0)) == f"{path} has no secondaries, not 0"
    assert "has no secondaries: say which one" in error_of(lambda: load_node(path, None))


def test_optional_keys_are_read(tmp_path: Path) -> None:
    data = network_json()
    data["nodes"]["starter"] |= {"device": "cuda:11", "share": 2}
    data["nodes"]["secondary"][0] |= {"device": "mps", "share": 0.25, "memory_limit": "1.5 GiB", "max_layers": 7}
    network = load_network(written(tmp_path, data))
    assert [node.device for node in network.nodes] == ["cuda:11", "mps", None]
    assert network.shares == [2.0, 0.25, 1.0]
    assert [node.memory_limit_bytes for node in network.nodes] == [None, 3 << 29, None]
    assert [node.max_layers for node in network.nodes] == [None, 7, None]
    assert {type(share) for share in network.shares} == {float}


@pytest.mark.parametrize(
    "addr", ["::1", "fe80::1%eth0", "my-laptop.local", "2001:db8::7", "localhost", "bücher", "pi4.", "3com.example"]
)
def test_an_address_may_be_a_name_or_ipv6(tmp_path: Path, addr: str) -> None:
    assert load_node(written(tmp_path, node_json(addr=addr)), None).addr == addr


@pytest.mark.parametrize(
    ("addr", "loopback"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("a", False)],
)
def test_loopback_addresses_are_known(addr: str, loopback: bool) -> None:
    assert (NodeConfig(addr, 1, 2, 3).host == "loopback") is loopback


def test_a_node_may_listen_on_another_address_than_others_call(tmp_path: Path) -> None:
    node = load_node(written(tmp_path, node_json(addr="10.0.0.5")), None)
    assert (node.listen, node.listen_addr, node.hosts) == (None, "10.0.0.5", ())
    node = load_node(written(tmp_path, node_json(addr="10.0.0.5") | {"listen": "0.0.0.0"}), None)
    assert (node.listen_addr, node.hosts) == ("0.0.0.0", (f"10.0.0.5:{node.http_port}",))
    node = load_node(written(tmp_path, node_json(addr="fe80::5") | {"listen": "::"}), None)
    assert (node.listen_addr, node.hosts) == ("::", (f"[fe80::5]:{node.http_port}",))


def test_a_node_may_be_known_by_other_addresses(tmp_path: Path) -> None:
    data = network_json()
    data["nodes"]["secondary"][0]["communication"]["known_as"] = ["192.168.1.5:9000", "[2001:db8::1]:9000"]
    network = load_network(written(tmp_path, data))
    assert network.secondaries[0].known_as == ("192.168.1.5:9000", "[2001:db8::1]:9000")
    assert network.starter.known_as == ()


def test_port_zero_may_be_used_many_times(tmp_path: Path) -> None:
    data = {"nodes": {"starter": node_json(0, 0, 0), "secondary": [node_json(0, 0, 0)]}}
    assert len(load_network(written(tmp_path, data)).nodes) == 2


def test_the_same_ports_on_two_machines_are_no_conflict(tmp_path: Path) -> None:
    data = {"nodes": {"starter": node_json(), "secondary": [node_json(addr="10.0.0.2")]}}
    assert len(load_network(written(tmp_path, data)).nodes) == 2


def test_nodes_are_called_by_their_role() -> None:
    assert [node_name(i) for i in range(3)] == ["starter", "secondary 0", "secondary 1"]


# ---- mistakes in a file

NODE_KEYS = ["addr", "communication", "communication.port", "inference", "inference.port_in", "inference.port_out"]
PLACES = ["nodes.starter.", "nodes.secondary[1]."]


def owner_of(data: Json, where: str) -> tuple[Json, str]:
    """The object that holds the key written as `nodes.secondary[1].inference.port_in`, and the key's last part."""
    *path, last = where.replace("[", ".").replace("]", "").split(".")
    owner: Any = data
    for part in path:
        owner = owner[int(part) if part.isdigit() else part]
    return owner, last


REQUIRED = ["nodes", "nodes.starter", "nodes.secondary", *(place + key for place in PLACES for key in NODE_KEYS)]


@pytest.mark.parametrize("where", REQUIRED)
def test_a_missing_key_is_named_with_file_and_place(tmp_path: Path, where: str) -> None:
    data = network_json()
    owner, last = owner_of(data, where)
    del owner[last]
    path = written(tmp_path, data)
    assert error_of(lambda: load_network(path)) == f"{path}: {where}: missing key"


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        ("extra", None), ("nodes.extra", None), ("nodes.starter.extra", None),
        ("nodes.starter.inference.port", "port_in"), ("nodes.secondary[1].Device", "device"),
        ("nodes.secondary[0].communication.starter_port", "starter_addr"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_named_with_file_and_place(tmp_path: Path, where: str, meant: str | None) -> None:
    data = network_json()
    owner, last = owner_of(data, where)
    owner[last] = 1
    path = written(tmp_path, data)
    problem = "unknown key" + (f"; did you mean {meant}?" if meant else "")
    assert error_of(lambda: load_network(path)) == f"{path}: {where}: {problem}"
    assert error_of(lambda: load_node(path, 0)) == f"{path}: {where}: {problem}"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("nodes.starter.adr", "addr"),
        ("nodes.starter.comunication", "communication"),
        ("nodes.secondaries", "secondary"),
    ],
)
def test_a_misspelled_key_is_named_rather_than_the_one_that_is_missing(tmp_path: Path, wrong: str, right: str) -> None:
    data = network_json()
    owner, last = owner_of(data, wrong)
    owner[last] = owner.pop(right)
    path = written(tmp_path, data)
    assert error_of(lambda: load_network(path)) == f"{path}: {wrong}: unknown key; did you mean {right}?"


PORT = "is not a port number"
WRONG_VALUES = [
    ("nodes", [], "is not an object"),
    ("nodes.starter", None, "None is not an object"),
    ("nodes.secondary", {}, "is not a list"),
    ("nodes.secondary[0]", "node0.json", "'node0.json' is not an object"),
    ("nodes.starter.addr", 7, "7 is not a string"),
    ("nodes.starter.addr", "", "is empty"),
    ("nodes.starter.addr", "  ", "is empty"),
    ("nodes.starter.addr", "http://10.0.0.5", "'http://10.0.0.5' is a URL: an address or a name alone"),
    ("nodes.starter.addr", "10.0.0.5/24", "'10.0.0.5/24' is a URL"),
    ("nodes.starter.addr", "10.0.0.5:8088", "'10.0.0.5:8088' has a port: an address alone is expected"),
    ("nodes.starter.addr", "box:8088", "'box:8088' has a port"),
    ("nodes.starter.addr", "[::1]:8088", "'[::1]:8088' has a port"),
    ("nodes.starter.addr", "[::1]", "'[::1]' stands in brackets: write ::1"),
    ("nodes.starter.addr", " 10.0.0.5", "' 10.0.0.5' holds a blank"),
    ("nodes.starter.addr", "my box", "'my box' holds a blank"),
    ("nodes.starter.addr", "10.0.0", "'10.0.0' is neither an address nor the name of a machine"),
    ("nodes.starter.addr", "10.0.0.256", "'10.0.0.256' is neither"),
    ("nodes.starter.addr", "10.7..48.46", "'10.7..48.46' is neither"),
    ("nodes.starter.addr", "::x", "'::x' is neither"),
    ("nodes.starter.addr", "-box", "'-box' is neither"),
    ("nodes.starter.listen", "0.0.0.0:1", "'0.0.0.0:1' has a port"),
    ("nodes.secondary[1].communication.starter_addr", "http://x", "'http://x' is a URL"),
    ("nodes.starter.communication", 8088, "8088 is not an object"),
    ("nodes.starter.communication.port", "8088", f"'8088' {PORT[:-7]}"),
    ("nodes.starter.communication.port", True, "True is not a port number"),
    ("nodes.starter.communication.port", 8088.0, "8088.0 is not a port number"),
    ("nodes.starter.communication.port", None, "None is not a port number"),
    ("nodes.starter.communication.port", -1, "-1 is not a port number (0 to 65535)"),
    ("nodes.secondary[1].inference.port_in", 65536, "65536 is not a port number (0 to 65535)"),
    ("nodes.secondary[1].inference.port_out", [1], "[1] is not a port number"),
    ("nodes.secondary[1].communication.starter_addr", 1, "1 is not a string"),
    ("nodes.secondary[1].communication.starter_addr", "", "is empty"),
    ("nodes.secondary[1].communication.known_as", "a:1", "'a:1' is not a list"),
    ("nodes.secondary[1].communication.known_as", ["box"], "'box' is not an address with a port"),
    ("nodes.secondary[1].communication.known_as", ["::1:8088"], "'::1:8088' is not an address with a port"),
    ("nodes.secondary[1].communication.known_as", [8088], "'8088' is not an address with a port"),
    ("nodes.secondary[1].device", "gpu", "'gpu' is not cpu, mps, cuda or cuda:N"),
    ("nodes.secondary[1].device", "cuda:", "'cuda:' is not cpu"),
    ("nodes.secondary[1].device", "cuda:0 ", "'cuda:0 ' is not cpu"),
    ("nodes.secondary[1].device", "cuda:0\n", "is not cpu"),
    ("nodes.secondary[1].device", "CPU", "'CPU' is not cpu"),
    ("nodes.secondary[1].device", 0, "0 is not a string"),
    ("nodes.starter.memory_limit", 3_000_000_000, "3000000000 is not a string"),
    ("nodes.starter.memory_limit", "3 apples", "'3 apples' is not a size, such as 3GB"),
    ("nodes.secondary[1].memory_limit", "0GB", "'0GB' is not from 1 byte to 1000TB"),
    ("nodes.starter.share", 0, "0 is not a positive number"),
    ("nodes.starter.share", -1.5, "-1.5 is not a positive number"),
    ("nodes.starter.share", 10**39, "is not a positive number"),
    ("nodes.starter.share", True, "True is not a number"),
    ("nodes.starter.share", "1", "'1' is not a number"),
    ("nodes.starter.max_layers", 0, "0 is not a number of layers (1 to 10000)"),
    ("nodes.starter.max_layers", 2.5, "2.5 is not a number of layers"),
]


@pytest.mark.parametrize(("where", "value", "problem"), WRONG_VALUES)
def test_a_wrong_value_is_named_with_file_and_place(tmp_path: Path, where: str, value: object, problem: str) -> None:
    data = network_json()
    if where == "nodes.secondary[0]":
        data["nodes"]["secondary"][0] = value
    else:
        owner, last = owner_of(data, where)
        owner[last] = value
    path = written(tmp_path, data)
    text = error_of(lambda: load_network(path))
    assert text.startswith(f"{path}: {where}: ")
    assert problem in text


@pytest.mark.parametrize(
    ("where", "port"),
    [
        ("nodes.starter.inference.port_out", 5088),
        ("nodes.starter.inference.port_in", 8088),
        ("nodes.secondary[0].communication.port", 8088),
        ("nodes.secondary[1].inference.port_in", 5089),
    ],
)
def test_a_port_used_twice_on_a_machine_is_refused(tmp_path: Path, where: str, port: int) -> None:
    data = network_json()
    owner, last = owner_of(data, where)
    owner[last] = port
    path = written(tmp_path, data)
    assert error_of(lambda: load_network(path)) == f"{path}: port {port} of 127.0.0.1 is used twice"


def test_a_port_used_twice_in_a_single_node_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, node_json(5000, 5000, 5001))
    assert "port 5000 of 127.0.0.1 is used twice" in error_of(lambda: load_node(path, None))


@pytest.mark.parametrize("index", [-1, 2, 99])
def test_an_index_out_of_range_is_refused_with_the_range(tmp_path: Path, index: int) -> None:
    path = written(tmp_path, network_json())
    assert error_of(lambda: load_node(path, index)) == f"{path} has secondaries 0 to 1, not {index}"


def test_a_network_without_an_index_says_how_to_give_one(tmp_path: Path) -> None:
    path = written(tmp_path, network_json())
    assert error_of(lambda: load_node(path, None)) == (
        f"{path} has secondaries 0 to 1: say which one, as in `secondary.py --nodes-config {path} 0`"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{'nodes': 1}", "not valid JSON"),
        ("{}".encode("utf-16"), "is UTF-16 text"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"nodes": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b"[]", "expected an object at the top level"),
        (b"null", "expected an object at the top level"),
        (b'{"nodes": "caf\xe9"}', "is not UTF-8 text (byte 14)"),
        (b'{"nodes": NaN}', "not valid JSON: NaN"),
        (b'{"nodes": 1e999}', "not valid JSON: 1e999"),
    ],
    ids=["empty", "cut", "quotes", "utf-16", "deep", "huge number", "list", "null", "latin-1", "nan", "infinite"],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "nodes.json"
    path.write_bytes(content)
    for load in (lambda: load_network(path), lambda: load_node(path, 0)):
        assert error_of(load).startswith(f"{path}: {problem}")


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.json"
    assert error_of(lambda: load_network(missing)) == f"{missing}: no such file"
    assert f"{tmp_path}: cannot be read" in error_of(lambda: load_network(tmp_path))


def test_an_example_is_found_by_its_name_where_no_such_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(load_network(Path("configuration_2.json")).nodes) == 2
    assert f"this is the example {SETTINGS_DIR / 'configuration_2.json'}" in caplog.text
    assert load_node(Path("secondary/node1.json"), None).http_port
    Path("configuration_2.json").write_text("{}")
    assert error_of(lambda: load_network(Path("configuration_2.json"))).startswith("configuration_2.json: nodes")
    for name in ("my-network.json", "n" * 999, "\0", "../settings_distr/standalone.json"):
        assert "example" not in error_of(lambda name=name: load_network(Path(name)))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-1, 70_000), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["addr", "x"]), inner)),
    max_leaves=4,
)
ALL_PLACES = [place + key for place in PLACES for key in [*NODE_KEYS, "device", "share", "max_layers", "memory_limit"]]


@few_examples
@given(st.dictionaries(st.sampled_from(ALL_PLACES), json_values, min_size=1, max_size=3))
def test_arbitrary_values_raise_nothing_but_config_errors(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    data = network_json()
    for where, value in sorted(changes.items(), reverse=True):  # inner keys first
        owner, last = owner_of(data, where)
        owner[last] = copy.deepcopy(value)
    path = written(tmp_path_factory.mktemp("config"), data)
    try:
        network = load_network(path)
    except ConfigError:
        return
    for node in network.nodes:
        assert type(node.http_port) is int
        assert 0 < node.share < float("inf")


# ---- options


def test_the_defaults_are_the_published_ones() -> None:
    options = StarterOptions()
    assert (options.prompt, options.n_samples, options.n_tokens, options.seed) == ("Who are you?", 3, 300, 10137)
    assert (options.temperature, options.top_k, options.top_p) == (0.8, 200, 1.0)
    assert options.nodes_config == SOURCE_DIR / "settings_distr" / "configuration.json"
    assert options.split == "auto"


def test_a_section_is_the_part_of_the_options_that_it_names() -> None:
    options = StarterOptions(n_tokens=7, seed=3, max_slots=2, dtype="float32", quantize="int8", plots=True)
    assert options.sampling == SamplingOptions(n_tokens=7, seed=3)
    assert options.ring == RingOptions(max_slots=2, dtype="float32", quantize="int8")
    assert options.outputs == OutputOptions(plots=True)
    assert (options.node, options.model, options.prompts) == (NodeOptions(), ModelOptions(), PromptOptions())


def test_every_starter_option_belongs_to_one_section() -> None:
    sections = (
        NodeOptions, NetworkOptions, ModelOptions, PromptOptions, SamplingOptions, RingOptions, OutputOptions,
        ServeOptions,
    )  # fmt: skip
    names = [item.name for section in sections for item in dataclasses.fields(section)]
    assert sorted(names) == sorted(item.name for item in dataclasses.fields(StarterOptions))


@pytest.mark.parametrize("flag", ["--max-batch-tokens", "--prefill-rows"])
def test_the_older_name_of_a_flag_is_an_alias(flag: str) -> None:
    assert starter.build_parser().parse_args([flag, "5"]).max_batch_tokens == 5


def test_the_parsers_see_every_field_and_its_default() -> None:
    for kind in (NodeOptions, SecondaryOptions, StarterOptions):
        assert defaults_of(kind) == dataclasses.asdict(kind())


BAD_OPTIONS: list[tuple[str, str, object]] = [
    ("--n-samples", "n_samples", 0),
    ("--n-samples", "n_samples", -3),
    ("--n-tokens", "n_tokens", 0),
    ("--n-tokens", "n_tokens", -1),
    ("--sequence-length", "sequence_length", 0),
    ("--temperature", "temperature", -0.1),
    ("--temperature", "temperature", float("nan")),
    ("--temperature", "temperature", float("inf")),
    ("--top-k", "top_k", -1),
    ("--top-p", "top_p", 0.0),
    ("--top-p", "top_p", 1.1),
    ("--top-p", "top_p", float("nan")),
    ("--min-p", "min_p", -0.1),
    ("--min-p", "min_p", 1.1),
    ("--frequency-penalty", "frequency_penalty", 2.5),
    ("--presence-penalty", "presence_penalty", -3),
    ("--repetition-penalty", "repetition_penalty", 0.0),
    ("--repetition-penalty", "repetition_penalty", float("nan")),
    ("--logprobs", "logprobs", 21),
    ("--logprobs", "logprobs", -1),
    ("--peer-timeout", "peer_timeout_s", 0.0),
    ("--peer-timeout", "peer_timeout_s", float("inf")),
    ("--node-timeout", "node_timeout_s", 0.5),
    ("--max-batch-tokens", "max_batch_tokens", 0),
    ("--max-batch-tokens", "max_batch_tokens", 65537),
    ("--n-samples", "n_samples", 100_001),
    ("--max-slots", "max_slots", 100_001),
    ("--max-queue", "max_queue", 1025),
]
BAD_NODE_OPTIONS: list[tuple[str, str, object]] = [
    ("--device", "device", "gpu"),
    ("--device", "device", ""),
    ("--device", "device", "cuda:x"),
    ("--dtype", "dtype", "int8"),
    ("--dtype", "dtype", ""),
    ("--kv-dtype", "kv_dtype", "bfloat16"),
    ("--kv-dtype", "kv_dtype", ""),
    ("--seed", "seed", 2**63),
    ("--seed", "seed", -(2**63) - 1),
    ("--chunk", "chunk", Path("no/such/chunk.pth")),
    ("--chunk", "chunk", Path(__file__).parent),
]


@pytest.mark.parametrize(("flag", "field", "value"), BAD_OPTIONS + BAD_NODE_OPTIONS)
def test_a_bad_starter_option_is_refused_with_flag_and_value(flag: str, field: str, value: object) -> None:
    text = error_of(lambda: StarterOptions(**{field: value}))  # type: ignore[arg-type]
    assert text.startswith(f"{flag} ")
    assert str(value) in text or f"{value:g}" in text


@pytest.mark.parametrize(("flag", "field", "value"), BAD_NODE_OPTIONS)
def test_a_bad_secondary_option_is_refused_with_flag_and_value(flag: str, field: str, value: object) -> None:
    text = error_of(lambda: SecondaryOptions(**{field: value}))  # type: ignore[arg-type]
    assert text.startswith(f"{flag} {value}")


@pytest.mark.parametrize(
    ("bias", "text"),
    [
        ([(-1, 2.0)], "--logit-bias -1=2: a token id is 0 or more"),
        ([(5, 1.0), (6, 1.0), (5, 2.0)], "--logit-bias 5=2: token 5 is given twice"),
        ([(5, 100.5)], "--logit-bias 5: 100.5: must be a number from -100 to 100"),
        ([(5, float("nan"))], "--logit-bias 5: nan: must be a number from -100 to 100"),
    ],
)
def test_a_bad_bias_is_refused(bias: list[tuple[int, float]], text: str) -> None:
    assert error_of(lambda: StarterOptions(logit_bias=tuple(bias))) == text


def test_a_bias_on_a_token_that_the_model_does_not_have_is_refused() -> None:
    check_biased_tokens((), 10)
    check_biased_tokens(((9, 1.0), (0, 1.0)), 10)
    text = error_of(lambda: check_biased_tokens(((3, 1.0), (10, 1.0)), 10, "--logit-bias"))
    assert text == "--logit-bias 10: this model's token ids are 0 to 9"


def test_log_probabilities_need_a_file_to_be_written_to() -> None:
    StarterOptions(logprobs=0, output=Path("out.jsonl"))
    text = error_of(lambda: StarterOptions(logprobs=0))
    assert text == "--logprobs 0: needs --output, the file that they are written to"


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("3GB", 3 * 10**9), ("512 mb", 512 * 10**6), ("1.5GiB", 3 << 29), ("0.000001MB", 1), ("1000TB", 10**15)],
)
def test_a_size_has_a_unit(text: str, n_bytes: int) -> None:
    assert parse_size(text, "x") == n_bytes
    for options in (StarterOptions, SecondaryOptions, PlannerOptions):
        assert options(memory_limit=text).memory_limit_bytes == n_bytes
        assert options().memory_limit_bytes is None


@pytest.mark.parametrize(
    "text", ["", "3", "GB", "3KB", "-3GB", "3e9GB", "3GBs", "3  GB", "٣GB", "3,5GB", "1001TB", "0MB", "9" * 400 + "GB"]
)
def test_what_is_not_a_size_is_refused_in_one_line(text: str) -> None:
    for options in (StarterOptions, SecondaryOptions, PlannerOptions):
        problem = error_of(lambda options=options: options(memory_limit=text))  # type: ignore[misc]
        assert problem.startswith("--memory-limit: ") and " is not " in problem and "\n" not in problem


def test_a_number_beyond_every_float_is_refused_too() -> None:
    assert error_of(lambda: StarterOptions(n_tokens=10**400)).startswith("--n-tokens ")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"allow_quantize": "int2", "split": "measured"}, "--allow-quantize int2: expected one of int8, int4"),
        ({"allow_quantize": "none", "split": "measured"}, "--allow-quantize none: expected one of int8, int4"),
        ({"allow_quantize": "int8"}, "--allow-quantize int8: needs --split measured"),
        ({"rebalance": True}, "--rebalance: needs --split measured"),
        ({"allow_quantize": "int8", "quantize": "int4", "split": "measured"}, "--quantize int4 is for all nodes"),
    ],
)
def test_a_plan_that_may_quantize_is_asked_for_in_one_way(options: dict[str, Any], told: str) -> None:
    assert error_of(lambda: StarterOptions(**options)).startswith(told)
    RingOptions(allow_quantize="int4", split="measured")
    PlannerOptions(allow_quantize="int8")


def test_options_at_their_limits_are_taken() -> None:
    StarterOptions(n_samples=1, n_tokens=1, sequence_length=1, temperature=0, top_k=0, top_p=1e-9)
    StarterOptions(min_p=1, frequency_penalty=-2, presence_penalty=2, logit_bias=((0, -100), (1, 100)))
    StarterOptions(seed=-(2**63), device="cuda:3", dtype="float16", chunk=Path(__file__))
    SecondaryOptions(seed=2**63 - 1, device="mps", dtype="bfloat16", index=0)


def test_dtypes_are_refused_with_the_allowed_ones() -> None:
    check_dtype(None)
    assert error_of(lambda: check_dtype("half")) == "--dtype half: expected one of float32, float16, bfloat16"
    assert error_of(lambda: PrepareOptions(model="x", dtype="half")).startswith("--dtype half: expected")


@pytest.mark.parametrize("addr", ["127.0.0.1\n", "a\0b", "\x1b[2J", "10.0.0.1\u200b"])
def test_a_text_that_cannot_be_shown_is_refused(tmp_path: Path, addr: str) -> None:
    text = error_of(lambda: load_node(written(tmp_path, node_json(addr=addr)), None))
    assert "addr" in text and "characters that cannot be printed" in text


def test_an_unknown_key_is_shown_in_one_line(tmp_path: Path) -> None:
    text = error_of(lambda: load_node(written(tmp_path, node_json() | {"\x1b[2J\n": 1}), None))
    assert text.endswith(r"\x1b[2J: unknown key")


def test_a_key_that_is_written_twice_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, node_json())
    path.write_text(path.read_text().replace('"addr"', '"addr": "10.0.0.1", "addr"', 1))
    assert "the key 'addr' occurs twice" in error_of(lambda: load_node(path, None))
