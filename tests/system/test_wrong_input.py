"""What users and machines get wrong: one line that says what to do, the right exit code, nothing left behind."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from mdi.checkpoint.weights import open_weights
from support.hub import StubHub, serve
from support.models import make_model
from support.paths import ROOT
from support.scripts import (
    Network,
    Process,
    Scripts,
    WarmPython,
    call,
    free_ports,
    node_object,
    one_line_error,
    ports_in_use,
    read_samples,
    state_of,
    wait_until,
    write_network,
)

pytestmark = pytest.mark.slow

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
END_S = 2.0  # in which a signal ends a script


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A model to be spoilt."""
    return Path(shutil.copytree(tiny, tmp_path / "models" / "org" / "mine"))


# ---- before torch is imported


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


def _without(*path: str) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        place = data
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        return data

    return change


def _with(value: Any, *path: str) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        place = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return data

    return change


STARTER = ("nodes", "starter")
BAD_NETWORKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no nodes": (lambda data: {}, r"net\.json: nodes: missing key"),
    "no starter": (_without(*STARTER), r"nodes\.starter: missing key"),
    "no secondaries": (_without("nodes", "secondary"), r"nodes\.secondary: missing key"),
    "no address": (_without(*STARTER, "addr"), r"nodes\.starter\.addr: missing key"),
    "no HTTP port": (_without(*STARTER, "communication", "port"), r"communication\.port: missing key"),
    "no ring port": (_without(*STARTER, "inference", "port_in"), r"inference\.port_in: missing key"),
    "unknown key": (_with(1, *STARTER, "colour"), r"nodes\.starter\.colour: unknown key"),
    "unknown key deep inside": (_with(1, *STARTER, "inference", "port"), r"inference\.port: unknown key"),
    "unknown key at the top": (_with(1, "version"), r"net\.json: version: unknown key"),
    "a port beyond 65535": (_with(70_000, *STARTER, "inference", "port_in"), r"70000 is not a port"),
    "a port as text": (_with("5088", *STARTER, "inference", "port_in"), r"port_in: '5088' is not a port number"),
    "a port that is true": (_with(True, *STARTER, "inference", "port_in"), r"port_in: True is not a port number"),
    "an empty address": (_with(" ", *STARTER, "addr"), r"addr: is empty"),
    "an unknown device": (_with("tpu", *STARTER, "device"), r"device: 'tpu'"),
    "a share of nothing": (_with(0, *STARTER, "share"), r"share: 0"),
    "an endless share": (_with(float("inf"), *STARTER, "share"), r"share: inf"),
    "a share beyond all numbers": (_with(10**400, *STARTER, "share"), r"share: 1000"),
    "an object for a list": (_with({}, "nodes", "secondary"), r"secondary: \{\} is not a list"),
    "a number for a node": (_with([7], "nodes", "secondary"), r"secondary\[0\]: 7 is not an object"),
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


# ---- the model folder


def run_alone(scripts: Scripts, alone: Network, model: Path, *arguments: object) -> Any:
    return scripts.run("sample.py", "--nodes-config", alone.path, "--ckpt", model, "--n-tokens", 3, *arguments)


def test_a_model_folder_that_is_not_there_lists_those_that_are(
    scripts: Scripts, alone: Network, tiny: Path, tmp_path: Path
) -> None:
    result = run_alone(scripts, alone, tmp_path / "none")
    one_line_error(result, 2, r"none: no prepared model there; (choose one of these|prepare one)")
    # A folder of models, such as src/checkpoints itself.
    one_line_error(run_alone(scripts, alone, tiny.parents[1]), 2, rf"choose one of these with --ckpt: {tiny}$")


def test_a_folder_without_models_says_how_to_make_one(scripts: Scripts, alone: Network, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lit_model.pth").touch()
    for name in ("empty", "other"):
        one_line_error(run_alone(scripts, alone, tmp_path / name), 2, rf"{name}: no prepared model.*prepare_model\.py")


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "weights cut off": ("lit_model.pth", _truncate, r"lit_model\.pth: damaged"),
    "weights empty": ("lit_model.pth", lambda path: path.write_bytes(b""), r"lit_model\.pth: damaged"),
    "weights of text": ("lit_model.pth", lambda path: path.write_text("hello\n" * 99), r"lit_model\.pth: damaged"),
    "weights missing": ("lit_model.pth", Path.unlink, r"neither lit_model\.pth nor chunks"),
    "configuration cut off": ("model_config.yaml", _truncate, r"model_config\.yaml"),
    "configuration empty": ("model_config.yaml", lambda path: path.write_bytes(b""), r"model_config\.yaml: not a"),
    "configuration binary": ("model_config.yaml", lambda path: path.write_bytes(b"\0\xff"), r"model_config\.yaml"),
    "configuration not YAML": (
        "model_config.yaml",
        lambda path: path.write_text("name: tiny\n\tn_layer: [3\nx: : y\n"),
        r"model_config\.yaml",
    ),
    "configuration with an unknown key": (
        "model_config.yaml",
        lambda path: path.write_text(path.read_text() + "colour: red\n"),
        r"model_config\.yaml: .*colour",
    ),
    "configuration of another model": (
        "model_config.yaml",
        lambda path: path.write_text(path.read_text().replace("n_embd: 32", "n_embd: 64")),
        r"has the shape .* another model's file",
    ),
    "vocabulary cut off": ("tokenizer.json", _truncate, r"tokenizer\.json"),
    "vocabulary missing": ("tokenizer.json", Path.unlink, r"tokenizer"),
    "tokenizer configuration cut off": ("tokenizer_config.json", _truncate, r"tokenizer_config\.json: not valid JSON"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_model_folder_names_the_file(case: str, scripts: Scripts, alone: Network, model: Path) -> None:
    name, damage, pattern = DAMAGES[case]
    damage(model / name)
    one_line_error(run_alone(scripts, alone, model), 1, pattern)


def _manifest(change: Callable[[Any], Any]) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(change(json.loads(path.read_text()))))


MANIFEST_DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": _truncate,
    "a list": lambda path: path.write_text("[]"),
    "another format": _manifest(_with(99, "format_version")),
    "no spans": _manifest(_without("spans")),
    "an unknown key": _manifest(_with(1, "colour")),
    "spans too few": _manifest(lambda data: data | {"spans": data["spans"][:2]}),
    "spans with a gap": _manifest(lambda data: data | {"spans": [[0, 1], [2, 3], [3, 6]]}),
    "spans that end early": _manifest(lambda data: data | {"spans": [[0, 1], [1, 3], [3, 5]]}),
    "spans of text": _manifest(lambda data: data | {"spans": [["a", "b"]] * 3}),
    "spans that are numbers": _manifest(lambda data: data | {"spans": [1, 2, 3]}),
    "files too few": _manifest(lambda data: data | {"files": data["files"][:1]}),
    "files that are numbers": _manifest(lambda data: data | {"files": [1, 2, 3]}),
    "a digest that is a number": _manifest(
        lambda data: data | {"files": [file | {"digest": 7} for file in data["files"]]}
    ),
}


@pytest.fixture(scope="module")
def split(warm: WarmPython, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with chunks for three nodes; read, never written to."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("models") / "org" / "split")
    with Scripts(tmp_path_factory.mktemp("split"), warm) as scripts:
        result = scripts.run("prepare_model.py", folder, "--n-nodes", 3)
    assert result.code == 0, result.stderr
    return Path(folder)


@pytest.fixture
def chunks(split: Path, tmp_path: Path) -> Path:
    """A model with chunks to be spoilt."""
    return Path(shutil.copytree(split, tmp_path / "models" / "org" / "split"))


NO_WAITING = ("--node-timeout", 1, "--n-tokens", 3)


@pytest.mark.parametrize("case", MANIFEST_DAMAGES)
def test_a_damaged_manifest_is_named(case: str, scripts: Scripts, chunks: Path, tmp_path: Path) -> None:
    MANIFEST_DAMAGES[case](chunks / "chunks" / "3nodes" / "manifest.json")
    network = write_network(tmp_path / "net.json", 3)
    result = scripts.run("starter.py", "--ckpt", chunks, "--nodes-config", network.path, *NO_WAITING)
    one_line_error(result, 1, r"manifest\.json: ")


def test_a_damaged_chunk_of_the_starter_is_named(scripts: Scripts, chunks: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 3)
    _truncate(chunks / "chunks" / "3nodes" / "model_starter.pth")
    result = scripts.run("starter.py", "--ckpt", chunks, "--nodes-config", network.path, *NO_WAITING)
    one_line_error(result, 1, r"model_starter\.pth: damaged", after="waiting for secondary")


def test_a_chunk_that_lies_outside_any_model_folder_is_told(scripts: Scripts, alone: Network) -> None:
    result = scripts.run("starter.py", "--nodes-config", alone.path, "--chunk", "/etc/passwd")
    one_line_error(result, 2, r"no model given; |no prepared model")


# ---- the run


@pytest.mark.parametrize(
    ("arguments", "code", "pattern"),
    [
        (["--prompt", "x" * 128], 2, r"longest prompt takes 128 tokens; the context of 128"),
        (["--prompt", "x" * 500], 2, r"longest prompt takes 500 tokens; the context of 128"),
        (["--prompt", "x" * 9, "--block-size", "9"], 2, r"takes 9 tokens; the context of 9"),
        (["--block-size", "129"], 2, r"--sequence-length 129: this model's context is 128"),
        (["--prompt", "FILE:{tmp}/no.txt"], 2, r"no\.txt: the prompt file cannot be read"),
        (["--prompt", "FILE:{tmp}/empty.txt"], 2, r"empty\.txt: the prompt file holds no text"),
        (["--prompt", "FILE:{tmp}/binary.txt"], 2, r"binary\.txt: .*not UTF-8"),
        (["--prompt", "FILE:{tmp}/prompts.json"], 2, r"prompts\.json: a prompt file must end in"),
        (["--prompt-style", "victorian"], 2, r"--prompt-style victorian: unknown; choose one of none, "),
        (["--prompt-style", "chat-template"], 2, r"--prompt-style chat-template: .*no chat template"),
        (["--split", "2,2,2"], 2, r"--split 2,2,2: 3 counts"),
        (["--split", "evenly"], 2, r"--split 'evenly'"),
        (["--device", "cuda"], 2, r"device cuda: torch finds 0 CUDA devices"),
        (["--device", "cuda:7"], 2, r"device cuda:7: torch finds \d CUDA devices"),
        (["--device", "cuda:07"], 2, r"device cuda:07"),
        (["--device", "cuda:4096"], 2, r"device cuda:4096"),
        (["--device", "mps"], 2, r"device mps"),
        (["--time-run", "{tmp}/other.csv"], 2, r"other\.csv: begins with 'a,b"),
        (["--time-run", "{tmp}"], 1, r"directory"),
        (["--time-run", "{tmp}/empty.txt/runs.csv"], 1, r"runs\.csv"),
        (["--time-run", "/proc/none/runs.csv"], 1, r"/proc/none"),
        (["--output", "{tmp}"], 1, r"directory"),
        (["--output", "{tmp}/empty.txt/out.jsonl"], 1, r"out\.jsonl"),
        (["--output", "/proc/none/out.jsonl"], 1, r"/proc/none"),
    ],
    ids=str,
)
def test_a_run_that_cannot_work_is_refused_before_it_begins(
    arguments: list[str], code: int, pattern: str, scripts: Scripts, alone: Network, tiny: Path, tmp_path: Path
) -> None:
    if "cuda" in arguments[1] and shutil.which("nvidia-smi"):
        pytest.skip("this machine has what the test takes away")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"abc\xff\xfe")
    (tmp_path / "prompts.json").write_text("[]")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    filled = [str(argument).format(tmp=tmp_path) for argument in arguments]
    result = run_alone(scripts, alone, tiny, *filled)
    one_line_error(result, code, pattern)
    assert result.stdout == ""


def test_an_empty_prompt_becomes_bos_or_an_error(scripts: Scripts, alone: Network, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run_alone(scripts, alone, model, "--prompt", "", "--output", output).code == 0
    samples, _ = read_samples(output)
    assert [sample["prompt_tokens"] for sample in samples] == [1]
    (model / "tokenizer_config.json").write_text("{}")
    (model / "generation_config.json").write_text("{}")
    one_line_error(run_alone(scripts, alone, model, "--prompt", ""), 2, r"the prompt is empty, and this model has no")


@pytest.mark.parametrize(
    ("n_nodes", "arguments", "pattern"),
    [
        (7, [], r"6 layers can be split over 1 to 6 nodes, not 7"),
        (3, ["--split", "table"], r"no split of 6 layers over 3 nodes; use --split auto"),
        (3, ["--split", "3,3"], r"--split 3,3: 2 counts with the sum 6; this run needs 3 counts"),
        (3, ["--split", "0,3,3"], r"--split 0,3,3"),
        (3, ["--split", "2,2,x"], r"--split '2,2,x'"),
    ],
)
def test_a_split_that_does_not_exist_is_refused(
    n_nodes: int, arguments: list[str], pattern: str, scripts: Scripts, tiny: Path, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", n_nodes)
    result = scripts.run("starter.py", "--ckpt", tiny, "--nodes-config", network.path, *NO_WAITING, *arguments)
    one_line_error(result, 2, pattern)


# ---- ports and addresses


@pytest.mark.parametrize("kind", ["communication", "inference"])
@pytest.mark.parametrize("script", ["starter.py", "secondary.py"])
def test_a_port_in_use_is_named(script: str, kind: str, scripts: Scripts, split: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 3)
    node, more = (0, NO_WAITING) if script == "starter.py" else (1, (0,))
    port = network.http_port(node) if kind == "communication" else network.ring_port(node)
    with socket.create_server(("127.0.0.1", port)):
        result = scripts.run(script, "--ckpt", split, "--nodes-config", network.path, *more)
    one_line_error(result, 2, rf"cannot listen on 127\.0\.0\.1 port {port}: .*(stop it|[Aa]ddress already in use)")


@pytest.mark.parametrize("addr", ["203.0.113.7", "no-such-host.invalid"])
@pytest.mark.parametrize("script", ["starter.py", "secondary.py"])
def test_an_address_of_another_machine_is_named(
    script: str, addr: str, scripts: Scripts, split: Path, tmp_path: Path
) -> None:
    nodes = {"starter": node_object(addr=addr), "secondary": [node_object(addr=addr)]}
    (tmp_path / "net.json").write_text(json.dumps({"nodes": nodes}))
    more = NO_WAITING if script == "starter.py" else (0,)
    result = scripts.run(script, "--ckpt", split, "--nodes-config", tmp_path / "net.json", *more)
    one_line_error(result, 2, rf"cannot listen on {addr} port \d+: this is not an address of this machine")


def test_an_unreachable_secondary_is_named(scripts: Scripts, split: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 2)
    result = scripts.run("starter.py", "--ckpt", split, "--nodes-config", network.path, *NO_WAITING)
    url = rf"secondary 0 at http://127\.0\.0\.1:{network.http_port(1)}"
    one_line_error(result, 1, rf"{url} cannot be reached: is secondary\.py running", after=rf"waiting for {url}")
    assert result.seconds < 6


class _Hanging(BaseHTTPRequestHandler):
    """A secondary that loads for ever: it answers /init with signs of life and nothing else."""

    protocol_version = "HTTP/1.1"
    loading = threading.Event()
    released = threading.Event()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.loading.set()
        try:
            while not self.released.wait(0.2):
                self.wfile.write(b"1\r\n \r\n")
        except OSError:
            self.close_connection = True

    def do_PUT(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.fixture
def loading_secondary(tmp_path: Path) -> Iterator[tuple[Network, threading.Event]]:
    """A network of two nodes whose secondary loads for ever, and the event that it has begun to."""
    network = write_network(tmp_path / "net.json", 2)
    handler = type("Handler", (_Hanging,), {"loading": threading.Event(), "released": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", network.http_port(1)), handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield network, handler.loading
    finally:
        handler.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def web_page(tmp_path: Path) -> Iterator[Network]:
    """A network of two nodes where something else answers HTTP in place of the secondary."""
    network = write_network(tmp_path / "net.json", 2)

    class Page(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

    server = ThreadingHTTPServer(("127.0.0.1", network.http_port(1)), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield network
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_something_else_at_the_address_of_a_secondary_is_named(
    scripts: Scripts, split: Path, web_page: Network
) -> None:
    result = scripts.run("starter.py", "--ckpt", split, "--nodes-config", web_page.path, *NO_WAITING)
    one_line_error(result, 1, rf"secondary 0 at http://127\.0\.0\.1:{web_page.http_port(1)} .*not JSON")


# ---- prepare_model.py


def test_what_is_not_a_model_is_told(scripts: Scripts, tmp_path: Path, smollm2_gguf: Path) -> None:
    def prepare(*arguments: object) -> Any:
        return scripts.run("prepare_model.py", *arguments, "--ckpt-folder", tmp_path / "checkpoints")

    (tmp_path / "text.gguf").write_text("hello " * 99)
    (tmp_path / "short.gguf").write_bytes(smollm2_gguf.read_bytes()[: 1 << 21])
    (tmp_path / "empty").mkdir()
    one_line_error(prepare(tmp_path / "text.gguf"), 1, r"text\.gguf: not a GGUF file")
    one_line_error(prepare(tmp_path / "short.gguf"), 1, r"short\.gguf: damaged or cut-off GGUF file")
    one_line_error(prepare(tmp_path / "none.gguf"), 2, r"none\.gguf: no such file")
    one_line_error(prepare(tmp_path / "none"), 2, r"none: no such file or folder")
    one_line_error(prepare(tmp_path / "empty"), 1, r"empty.*config\.json")
    one_line_error(prepare("--random", "no-such-shape"), 2, r"no-such-shape")
    assert not list((tmp_path / "checkpoints").rglob("*.pth"))


def test_more_nodes_than_layers_are_refused(scripts: Scripts, tiny: Path) -> None:
    one_line_error(scripts.run("prepare_model.py", tiny, "--n-nodes", 7), 2, r"split over 1 to 6 nodes, not 7")
    one_line_error(scripts.run("prepare_model.py", tiny, "--n-nodes", 2, "--split", "x"), 2, r"--split 'x'")


def test_a_gated_model_without_a_token_says_what_to_do(scripts: Scripts, tmp_path: Path) -> None:
    files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"x" * 100}
    with serve(StubHub("org/gated", files, gated=True)) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "", "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
        arguments = ("prepare_model.py", "org/gated", "--n-nodes", 3, "--ckpt-folder", tmp_path / "checkpoints")
        one_line_error(
            scripts.run(*arguments, env=env), 1, rf"org/gated is gated: .*{hub.url}/org/gated and pass --hf-token"
        )
        secret = "hf_SecretSecretSecret"
        result = scripts.run(*arguments, "--hf-token", secret, env=env)
        line = one_line_error(result, 1, r"your token has no access yet")
        assert secret not in line
    env["HF_ENDPOINT"] = f"http://127.0.0.1:{free_ports(1)[0]}"
    one_line_error(scripts.run(*arguments, env=env), 1, r"refuses connections: check HF_ENDPOINT")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing_behind(scripts: Scripts, split: Path, small_disk: Path) -> None:
    result = scripts.run("prepare_model.py", "--random", "pythia-14m", "--ckpt-folder", small_disk)
    one_line_error(result, 1, rf"{small_disk}/.*(disk|space)")
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    filler = small_disk / "filler"
    filler.write_bytes(bytes((1 << 20) - (64 << 10)))
    model = shutil.copytree(split, small_disk.parent / "model")
    shutil.rmtree(model / "chunks")
    (model / "chunks").symlink_to(small_disk)
    one_line_error(scripts.run("prepare_model.py", model, "--n-nodes", 2), 1, r"2nodes: the chunks take .* are free")


def test_a_file_that_cannot_grow_is_told(tmp_path: Path) -> None:
    """The disk fills while the file is written: a limit on the size of files fails the same way."""
    arguments = ["prepare_model.py", "--random", "pythia-14m", "--ckpt-folder", str(tmp_path / "checkpoints")]
    command = f"ulimit -f 1024; exec {sys.executable} src/{' '.join(arguments)}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not list((tmp_path / "checkpoints").rglob("*.pth"))


# ---- secondaries that refuse


def start_run(scripts: Scripts, network: Network, model: Path, *arguments: object) -> Process:
    return scripts.start("starter.py", "--ckpt", model, "--nodes-config", network.path, *arguments)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory, warm: WarmPython) -> Path:
    """A model with a context that takes minutes to fill, and chunks for three nodes."""
    folder = make_model(tmp_path_factory.mktemp("models") / "org" / "long", seed=3, block_size=30_000)
    with Scripts(tmp_path_factory.mktemp("split"), warm) as scripts:
        assert scripts.run("prepare_model.py", folder, "--n-nodes", 3).code == 0
    return folder


@pytest.fixture(scope="module")
def kept(warm: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Network, list[Process]]]:
    """A network of three nodes whose secondaries stay for all tests that leave them alive."""
    network = write_network(tmp_path_factory.mktemp("kept") / "net.json", 3)
    with Scripts(tmp_path_factory.mktemp("kept"), warm) as scripts:
        yield network, scripts.secondaries(network)


ENDLESS = ("--n-tokens", 29_000, "--keep-nodes")


def wait_until_generating(network: Network, starter: Process) -> None:
    def generating() -> bool:
        assert starter.alive, starter.stderr
        return int(call(network.http_port(0)).get("tokens") or 0) > 5

    wait_until(generating, 60, f"no tokens: {starter.stderr}")


def assert_serves_again(scripts: Scripts, network: Network, model: Path) -> None:
    """The next run on the same secondaries works."""
    for node in range(1, len(network.nodes)):
        wait_until(lambda node=node: state_of(network.http_port(node)) == "idle", 15, f"node {node} is not idle")
    result = start_run(scripts, network, model, "--n-tokens", 3, "--keep-nodes").result()
    assert result.code == 0, result.stderr
    assert "Generated 9 tokens" in result.stdout


def test_a_second_starter_is_told_whom_the_node_serves(
    kept: tuple[Network, list[Process]], scripts: Scripts, long_model: Path, tmp_path: Path
) -> None:
    network, _ = kept
    other = write_network(tmp_path / "net.json", 3)
    data = json.loads(other.path.read_text())
    data["nodes"]["secondary"] = network.nodes[1:]
    other.path.write_text(json.dumps(data))
    first = start_run(scripts, network, long_model, *ENDLESS)
    wait_until_generating(network, first)
    second = start_run(scripts, other, long_model, *NO_WAITING)
    address = rf"127\.0\.0\.1:{network.http_port(0)}"
    refusal = rf"secondary \d at .* refused: already serves the starter at {address} with"
    one_line_error(second.result(), 1, refusal, after="waiting for secondary")
    n_tokens = call(network.http_port(0))["tokens"]
    wait_until(lambda: call(network.http_port(0))["tokens"] > n_tokens + 5, 20, "the first run goes on")
    first.send_signal(signal.SIGINT)
    assert first.result().code == 130
    assert_serves_again(scripts, network, long_model)


def test_a_chunk_damaged_on_the_way_is_refused(
    kept: tuple[Network, list[Process]], scripts: Scripts, chunks: Path
) -> None:
    network, _ = kept
    chunk = chunks / "chunks" / "3nodes" / "model_secondary1.pth"
    data = bytearray(chunk.read_bytes())
    tensor = open_weights(chunk)["transformer.h.4.mlp.proj.weight"]
    data[data.index(tensor.numpy().tobytes())] ^= 1
    chunk.write_bytes(data)
    result = start_run(scripts, network, chunks, *NO_WAITING, "--keep-nodes").result()
    one_line_error(result, 1, r"secondary 1 at .*(has the digest .* discarded|damaged)")


def test_a_chunk_of_another_model_is_refused_on_both_sides(scripts: Scripts, split: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "org" / "other", seed=1)
    assert scripts.run("prepare_model.py", other, "--n-nodes", 2).code == 0
    assert scripts.run("prepare_model.py", split, "--n-nodes", 2).code == 0
    network = write_network(tmp_path / "net.json", 2)
    chunk = other / "chunks" / "2nodes" / "model_secondary0.pth"
    secondary = scripts.start("secondary.py", "--chunk", chunk, "--nodes-config", network.path, 0)
    secondary.wait_for("waiting for a starter")
    result = start_run(scripts, network, split, *NO_WAITING).result()
    one_line_error(result, 1, rf"secondary 0 at http.*: --chunk {chunk}: not the chunk \w+ that the starter's manifest")
    secondary.wait_for(f"--chunk {chunk}: not the chunk")
    assert state_of(network.http_port(1)) == "idle"
    assert "Traceback" not in secondary.stderr
    # A chunk of another shape, told by the first tensor that does not fit.
    wide = make_model(tmp_path / "org" / "wide", n_embd=64)
    assert scripts.run("prepare_model.py", wide, "--n-nodes", 2).code == 0
    result = start_run(scripts, network, wide, *NO_WAITING).result()
    one_line_error(result, 1, rf"secondary 0 at http.*: --chunk {chunk}: .* has the shape .* another model's file")


# ---- nodes that vanish

FINISHED_FIRST = "x" * 2000
UNEVEN = f"{FINISHED_FIRST}\n\nshort\n\nbrief\n"  # with a context of 2010 the first sample ends after 10 tokens


@pytest.fixture
def uneven(tmp_path: Path) -> list[object]:
    """Options of a run whose first sample ends early and whose others take long."""
    (tmp_path / "uneven.txt").write_text(UNEVEN)
    return ["--prompt", f"FILE:{tmp_path / 'uneven.txt'}", "--block-size", 2010, "--n-tokens", 2000, "--no-stream"]


without_model = shutil.ignore_patterns("lit_model.pth", "2nodes", "1nodes")


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_node_lost_for_good_ends_the_run_with_its_name_where_nobody_can_take_over(
    lost: int, number: signal.Signals, scripts: Scripts, long_model: Path, tmp_path: Path, uneven: list[object]
) -> None:
    """The starter has its chunks and not the whole model."""
    chunks_alone = Path(shutil.copytree(long_model, tmp_path / "org" / "long", ignore=without_model))
    network = write_network(tmp_path / "net.json", 3)
    secondaries = scripts.secondaries(network)
    output = tmp_path / "out.jsonl"
    timeouts = ("--peer-timeout", 2, "--node-timeout", 1)
    starter = start_run(scripts, network, chunks_alone, *uneven, "--output", output, *timeouts)
    wait_until(lambda: output.exists() and output.read_text().count("\n") == 1, 60, f"a sample ends: {starter.stderr}")
    secondaries[lost].send_signal(number)
    result = starter.result(12)
    notes = rf"exceed the context|waiting for secondary|no other can take|the ring broke|secondary {lost} .*is lost: "
    one_line_error(result, 1, rf"secondary {lost} did not come back within 1 s", after=notes)
    assert FINISHED_FIRST in result.stdout
    assert result.stdout.count("[interrupted]") == 2
    samples, summary = read_samples(output)
    assert [sample["finish_reason"] for sample in samples] == ["length", "error", "error"]
    assert summary["n_tokens"] >= 10
    if number == signal.SIGTERM:
        assert secondaries[lost].result(5).code == 143
        assert "Traceback" not in secondaries[lost].stderr
    # The other one survives, and serves the next run beside a new process.
    survivor = secondaries[1 - lost]
    assert survivor.alive, survivor.stderr
    assert "Traceback" not in survivor.stderr
    secondaries[lost].kill()
    cache = tmp_path / "processes" / "cache"
    again = scripts.start("secondary.py", "--cache-dir", cache, "--nodes-config", network.path, lost)
    assert_serves_again(scripts, network, long_model)
    assert again.alive and survivor.alive


def test_a_killed_starter_leaves_secondaries_that_serve_the_next_one(
    kept: tuple[Network, list[Process]], scripts: Scripts, long_model: Path
) -> None:
    network, secondaries = kept
    starter = start_run(scripts, network, long_model, *ENDLESS)
    wait_until_generating(network, starter)
    starter.kill()
    assert_serves_again(scripts, network, long_model)
    assert all(secondary.alive and "Traceback" not in secondary.stderr for secondary in secondaries)


# ---- signals


def end_with(process: Process, number: signal.Signals, code: int) -> None:
    """Send a signal, again and again as a held key does, and check that the process ends in time and in order."""
    deadline = time.monotonic() + END_S
    while process.alive and time.monotonic() < deadline:
        process.send_signal(number)
        time.sleep(0.002)
    assert not process.alive, f"it does not end: {process.stderr}"
    result = process.result(0)
    assert result.code == code, result.stderr
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr, result.stderr


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_starter_that_waits(
    number: signal.Signals, code: int, scripts: Scripts, split: Path, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", 3)
    starter = start_run(scripts, network, split)
    starter.wait_for("waiting for secondary 0")
    end_with(starter, number, code)
    assert ports_in_use(network.ports) == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_starter_that_imports(
    number: signal.Signals, code: int, scripts: Scripts, split: Path, tmp_path: Path
) -> None:
    starter = start_cold(scripts, split, write_network(tmp_path / "net.json", 3))
    maps = Path(f"/proc/{starter.pid}/maps")
    wait_until(lambda: "libtorch_cpu" in maps.read_text(), 30, "torch is imported")
    end_with(starter, number, code)


def start_cold(scripts: Scripts, model: Path, network: Network) -> Process:
    return scripts.start("starter.py", "--ckpt", model, "--nodes-config", network.path, cold=True)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_starter_whose_nodes_load(
    number: signal.Signals,
    code: int,
    scripts: Scripts,
    tiny: Path,
    tmp_path: Path,
    loading_secondary: tuple[Network, threading.Event],
) -> None:
    network, loading = loading_secondary
    starter = start_run(scripts, network, Path(shutil.copytree(tiny, tmp_path / "org" / "copy")))
    assert loading.wait(30), starter.stderr
    end_with(starter, number, code)
    assert ports_in_use(network.ports[:2]) == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_starter_that_generates(
    number: signal.Signals,
    code: int,
    kept: tuple[Network, list[Process]],
    scripts: Scripts,
    long_model: Path,
) -> None:
    network, secondaries = kept
    starter = start_run(scripts, network, long_model, *ENDLESS)
    wait_until_generating(network, starter)
    end_with(starter, number, code)
    assert ports_in_use(network.ports[:2]) == []
    assert starter.stdout.count("--- sample") == 3  # what there is of each sample is shown
    assert "Generated" in starter.stdout
    assert_serves_again(scripts, network, long_model)
    assert all(secondary.alive for secondary in secondaries)


def test_an_interrupted_run_ends_its_secondaries(scripts: Scripts, long_model: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 3)
    secondaries = scripts.secondaries(network)
    starter = start_run(scripts, network, long_model, "--n-tokens", 29_000)
    wait_until_generating(network, starter)
    starter.send_signal(signal.SIGINT)
    assert starter.result(END_S).code == 130
    for secondary in secondaries:
        result = secondary.result(END_S)
        assert result.code == 0
        assert "Traceback" not in result.stderr
    assert ports_in_use(network.ports) == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_secondary_that_waits(
    number: signal.Signals, code: int, scripts: Scripts, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", 2)
    (secondary,) = scripts.secondaries(network)
    secondary.wait_for("waiting for a starter")
    end_with(secondary, number, code)
    assert ports_in_use(network.ports) == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_secondary_that_imports(
    number: signal.Signals, code: int, scripts: Scripts, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", 2)
    (secondary,) = scripts.secondaries(network, cold=True)
    maps = Path(f"/proc/{secondary.pid}/maps")
    wait_until(lambda: "libtorch_cpu" in maps.read_text(), 30, "torch is imported")
    end_with(secondary, number, code)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_secondary_in_a_session(
    number: signal.Signals, code: int, scripts: Scripts, long_model: Path, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", 3)
    secondaries = scripts.secondaries(network)
    starter = start_run(scripts, network, long_model, *ENDLESS)
    wait_until_generating(network, starter)
    end_with(secondaries[0], number, code)
    starter.wait_for("waiting up to 60 s for it")
    assert "it was stopped" in starter.stderr or "connection lost" in starter.stderr
    assert ports_in_use([network.http_port(1), network.ring_port(1)]) == []
    end_with(starter, signal.SIGTERM, 143)  # while it waits for that node
    assert starter.stdout.count("--- sample") == 3


def is_at_rest(process: Process) -> bool:
    """Whether the main thread has used no CPU in the last tenths of a second."""
    used = [main_thread_s(process)]
    for _ in range(3):
        time.sleep(0.1)
        used.append(main_thread_s(process))
    return used[0] == used[-1]


def main_thread_s(process: Process) -> float:
    main = next(thread for thread in psutil.Process(process.pid).threads() if thread.id == process.pid)
    return float(main.user_time + main.system_time)


def test_a_starter_is_stopped_over_http_too(scripts: Scripts, split: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 3)
    starter = start_run(scripts, network, split)
    starter.wait_for("waiting for secondary 1")
    wait_until(lambda: is_at_rest(starter), 10, "its main thread waits")
    call(network.http_port(0), "PUT", "/stop")
    assert starter.result(END_S).code == 143


def test_a_secondary_is_stopped_over_http(scripts: Scripts, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 2)
    (secondary,) = scripts.secondaries(network)
    secondary.wait_for("waiting for a starter")
    assert call(network.http_port(1), "PUT", "/stop") == {"stopping": True}
    assert secondary.result(END_S).code == 0
