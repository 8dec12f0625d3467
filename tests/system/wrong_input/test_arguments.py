"""Wrong arguments and nodes files: one line, before anything slow is imported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.config_files import with_key, without_key
from support.scripts import (
    Network,
    Scripts,
    one_line_error,
    write_network,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which importing what is slow is a crash."""
    folder = tmp_path_factory.mktemp("blocked")
    for name in ("torch", "litgpt", "matplotlib", "huggingface_hub"):
        (folder / f"{name}.py").write_text("raise RuntimeError('imported too early')\n")
    return {"PYTHONPATH": str(folder)}


BAD_ARGUMENTS = [
    ("starter.py --n-samples 0", r"--n-samples 0: must be"),
    ("starter.py --n-samples -3", r"--n-samples -3"),
    ("starter.py --n-samples many", r"--n-samples: invalid int value: 'many'"),
    ("starter.py --n-tokens 0", r"--n-tokens 0: must be"),
    ("starter.py --block-size 0", r"--sequence-length 0"),
    ("starter.py --temperature -1", r"--temperature -1"),
    ("starter.py --temperature nan", r"--temperature nan"),
    ("starter.py --top-p 0", r"--top-p 0"),
    ("starter.py --top-k -1", r"--top-k -1"),
    ("starter.py --frequency-penalty -2.5", r"--frequency-penalty -2\.5: must be a number from -2 to 2"),
    ("starter.py --logit-bias 5", r"argument --logit-bias: '5' is not ID=VALUE, such as 2=-100"),
    ("starter.py --logit-bias 5=1 --logit-bias 5=2", r"--logit-bias 5=2: token 5 is given twice"),
    ("starter.py --logprobs 3", r"--logprobs 3: needs --output"),
    ("starter.py --seed 1e3", r"--seed"),
    ("starter.py --seed 99999999999999999999", r"--seed 99999999999999999999"),
    ("starter.py --peer-timeout 0", r"--peer-timeout 0"),
    ("starter.py --node-timeout nan", r"--node-timeout nan"),
    ("starter.py --dtype int3", r"--dtype int3: .*float32, float16, bfloat16"),
    ("starter.py --device tpu", r"--device tpu: .*cuda"),
    ("starter.py --n-sample-size 3", r"unrecognized arguments: --n-sample-size"),
    ("starter.py hello", r"unrecognized arguments: hello"),
    ("starter.py --prompt", r"--prompt: expected one argument"),
    ("starter.py --chunk {tmp}/no.pth", r"--chunk .*no\.pth: no such file"),
    ("starter.py --nodes-config {tmp}/no.json", r"no\.json: no such file"),
    ("starter.py --nodes-config {tmp}", r"cannot be read"),
    ("sample.py --n-samples 0", r"--n-samples 0"),
    ("sample.py --nodes-config {tmp}/no.json", r"no\.json: no such file"),
    ("secondary.py --nodes-config {net} 2", r"secondaries 0 to 1, not 2"),
    ("secondary.py --nodes-config {net}", r"secondaries 0 to 1: say which one"),
    ("secondary.py --nodes-config {net} one", r"--nodes-config takes a file, and the index"),
    ("secondary.py --nodes-config {net} -1", r"--nodes-config"),
    ("secondary.py --nodes-config {net} 0 1", r"--nodes-config takes a file, and the index"),
    ("secondary.py --nodes-config {alone} 0", r"no secondaries"),
    ("secondary.py --nodes-config {tmp}/no.json 0", r"no\.json: no such file"),
    ("secondary.py --nodes-config {net} 0 --dtype half", r"--dtype half"),
    ("secondary.py --nodes-config {net} 0 --device gpu", r"--device gpu"),
    ("secondary.py --nodes-config {net} 0 --chunk {tmp}/no.pth", r"--chunk .*no\.pth: no such file"),
    ("secondary.py --nodes-config {net} 0 --prompt hello", r"unrecognized arguments: --prompt"),
    ("prepare_model.py", r"say which model"),
    ("prepare_model.py org/name --random pythia-14m", r"say which model"),
    ("prepare_model.py org/name --n-nodes 0", r"--n-nodes 0"),
    ("prepare_model.py org/name --n-nodes two", r"--n-nodes: invalid int value"),
    ("prepare_model.py org/name --n-nodes 3 --nodes-config {net}", r"--n-nodes and --nodes-config"),
    ("prepare_model.py org/name --dtype int8", r"--dtype int8"),
    ("prepare_model.py org/name --device tpu", r"--device tpu"),
    ("plot_tok_time.py a-model-nobody-ran", r"no runs of a-model-nobody-ran"),
]


@pytest.mark.parametrize(("command", "pattern"), BAD_ARGUMENTS)
def test_a_bad_argument_is_told_before_anything_slow_is_imported(
    command: str, pattern: str, tmp_path: Path, alone: Network, no_torch: dict[str, str]
) -> None:
    network = write_network(tmp_path / "net.json", 3)
    script, *arguments = command.format(tmp=tmp_path, net=network.path, alone=alone.path).split()
    with Scripts(tmp_path / "processes") as scripts:
        one_line_error(scripts.run(script, *arguments, env=no_torch), 2, pattern)


STARTER = ("nodes", "starter")
BAD_NETWORKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no nodes": (lambda data: {}, r"net\.json: nodes: missing key"),
    "no starter": (without_key(*STARTER), r"nodes\.starter: missing key"),
    "no secondaries": (without_key("nodes", "secondary"), r"nodes\.secondary: missing key"),
    "no address": (without_key(*STARTER, "addr"), r"nodes\.starter\.addr: missing key"),
    "no HTTP port": (without_key(*STARTER, "communication", "port"), r"communication\.port: missing key"),
    "no ring port": (without_key(*STARTER, "inference", "port_in"), r"inference\.port_in: missing key"),
    "unknown key": (with_key(1, *STARTER, "colour"), r"nodes\.starter\.colour: unknown key"),
    "unknown key deep inside": (with_key(1, *STARTER, "inference", "port"), r"inference\.port: unknown key"),
    "unknown key at the top": (with_key(1, "version"), r"net\.json: version: unknown key"),
    "a port beyond 65535": (with_key(70_000, *STARTER, "inference", "port_in"), r"70000 is not a port"),
    "a port as text": (with_key("5088", *STARTER, "inference", "port_in"), r"port_in: '5088' is not a port number"),
    "a port that is true": (with_key(True, *STARTER, "inference", "port_in"), r"port_in: True is not a port number"),
    "an empty address": (with_key(" ", *STARTER, "addr"), r"addr: is empty"),
    "an unknown device": (with_key("tpu", *STARTER, "device"), r"device: 'tpu'"),
    "a share of nothing": (with_key(0, *STARTER, "share"), r"share: 0"),
    "an endless share": (with_key(float("inf"), *STARTER, "share"), r"Infinity is not JSON"),
    "a share beyond all numbers": (with_key(10**400, *STARTER, "share"), r"a number of 401 digits"),
    "an object for a list": (with_key({}, "nodes", "secondary"), r"secondary: \{\} is not a list"),
    "a number for a node": (with_key([7], "nodes", "secondary"), r"secondary\[0\]: 7 is not an object"),
    "a list at the top": (lambda data: [data], r"net\.json: expected an object"),
}


@pytest.mark.parametrize("case", BAD_NETWORKS)
def test_a_nodes_file_with_a_mistake_is_named_with_its_key(case: str, tmp_path: Path, no_torch: dict[str, str]) -> None:
    change, pattern = BAD_NETWORKS[case]
    network = write_network(tmp_path / "net.json", 3)
    network.path.write_text(json.dumps(change(json.loads(network.path.read_text()))))
    with Scripts(tmp_path / "processes") as scripts:
        one_line_error(scripts.run("starter.py", "--nodes-config", network.path, env=no_torch), 2, pattern)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"nodes": NaN', b"[" * 100_000, b"1" * 5000])
def test_a_nodes_file_that_is_not_json_is_named(content: bytes, tmp_path: Path, no_torch: dict[str, str]) -> None:
    path = tmp_path / "net.json"
    path.write_bytes(content)
    with Scripts(tmp_path / "processes") as scripts:
        one_line_error(scripts.run("starter.py", "--nodes-config", path, env=no_torch), 2, r"net\.json: ")
        one_line_error(scripts.run("secondary.py", "--nodes-config", path, 0, env=no_torch), 2, r"net\.json: ")


def test_two_nodes_on_one_port_are_refused(tmp_path: Path, no_torch: dict[str, str]) -> None:
    network = write_network(tmp_path / "net.json", 3)
    data = json.loads(network.path.read_text())
    data["nodes"]["secondary"][1]["inference"]["port_in"] = network.ring_port(0)
    network.path.write_text(json.dumps(data))
    with Scripts(tmp_path / "processes") as scripts:
        result = scripts.run("secondary.py", "--nodes-config", network.path, 0, env=no_torch)
    one_line_error(result, 2, rf"port {network.ring_port(0)} of 127\.0\.0\.1 is used twice")
