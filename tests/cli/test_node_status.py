"""The table of what every node of a network says of itself."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mdi.cli.commands import status
from mdi.cli.node_status import are_all_there, ask_all, table
from mdi.cli.signals import Signals
from mdi.config.network import NetworkConfig, NodeConfig
from mdi.control.protocol import NotAuthorized, Unreachable
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.certificates import make_certificates
from mdi.net.keys import Key, Keys
from support.config_files import files_of
from support.rings import ring_of
from support.scripts import write_network
from support.statuses import IDLE, READY, STARTING

NODE = NodeConfig("127.0.0.1", 8088, 5088, 5089)
NETWORK = NetworkConfig(NODE, (replace(NODE, http_port=8089), replace(NODE, addr="10.0.0.2", http_port=8090)))


def test_every_node_is_a_line_and_its_trouble_another() -> None:
    starter = replace(STARTING, weights="none", weights_bytes=4_000_000, tokens=1, recoveries=2)
    shown = table(NETWORK, [starter, READY.status, replace(IDLE, last_error="secondary 0 is lost")])
    heading, *nodes, problem = shown.splitlines()
    assert heading.split() == ["node", "address", "state", "computes", "memory", "work"]
    assert [node[: heading.index("computes")].split("  ")[0] for node in nodes] == [
        "starter", "secondary 0", "secondary 1"
    ]  # fmt: skip
    assert "layers 0 to 1, float32 on cpu, weights of 4.00 MB" in nodes[0]
    assert nodes[0].endswith("org/tiny: 3 samples, 1 token, 2 failures")
    assert "127.0.0.1:8089  ready" in nodes[1] and nodes[1].endswith("org/tiny: 5 messages")
    assert nodes[2].split("  ")[-1].strip() == "0 messages"
    assert problem == "secondary 1: its last session ended: secondary 0 is lost"


def test_a_starter_that_does_not_run_is_no_trouble_and_a_secondary_is() -> None:
    nobody = Unreachable("secondary 1 at http://10.0.0.2:8090 cannot be reached")
    answers = [Unreachable("starter at ..."), IDLE, nobody]
    assert not are_all_there(answers)
    assert are_all_there(answers[:2])
    lines = table(NETWORK, answers).splitlines()
    assert [line.split("  ")[0] for line in lines if "not running" in line] == ["starter", "secondary 1"]
    assert lines[-1] == str(nobody)
    other = NotAuthorized("secondary 0 at http://127.0.0.1:8089: this ring has a key")
    shown = table(NETWORK, [STARTING, other, IDLE])
    assert "no answer" in shown and str(other) in shown


@pytest.mark.parametrize("how", ["open", "key", "TLS"])
def test_nodes_are_asked_as_their_network_file_says(how: str, tmp_path: Path) -> None:
    if how == "TLS" and shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine")
    keys = Keys(Key("correct horse battery staple", "test")) if how != "open" else None
    tls = files_of(*make_certificates(["127.0.0.1"], tmp_path / "certs")) if how == "TLS" else None
    access = Access(keys, tls) if keys else THIS_MACHINE
    with ring_of(3, tmp_path / "cache", access=access) as ring:
        nodes = [replace(node, access=access) for node in ring.network.nodes]
        answers = ask_all(NetworkConfig(nodes[0], tuple(nodes[1:])))
    starter, *secondaries = answers
    assert isinstance(starter, Unreachable)
    assert are_all_there(answers), answers
    assert table(ring.network, answers).count(" idle ") == len(secondaries) == 2


def test_the_command_shows_the_table_and_tells_by_its_exit_code_whether_all_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = write_network(tmp_path / "net.json", 2)
    monkeypatch.setattr("sys.argv", ["status.py", "--nodes-config", str(network.path)])
    with pytest.raises(SystemExit, match="1"):
        status.main(Signals())
    assert capsys.readouterr().out.count("not running") == 2
