"""The nodes of this machine as child processes: which they are, their log, their end and that of the launcher.

The nodes here are small scripts, run as the launcher runs nodes, with the signals and the lifeline of every script.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mdi.cli import local_ring
from mdi.cli.chat import own_server
from mdi.cli.commands import launch
from mdi.cli.local_ring import check_ports, local_nodes
from mdi.cli.node_log import MergedLog
from mdi.cli.signals import Signals
from mdi.config.network import NetworkConfig, NodeConfig, load_network
from mdi.config.options import ChatOptions, NodeOptions
from mdi.errors import ConfigError
from mdi.net.sockets import listen
from support.paths import SRC
from support.scripts import free_ports, wait_until, write_network

END_S = 60.0
ELSEWHERE = "192.0.2.1"  # of a network that is in documents alone (RFC 5737)

LAUNCHER = """
import sys
sys.path.insert(0, {src!r})
from pathlib import Path
from mdi.cli import local_ring
from mdi.cli.chat import own_server
from mdi.cli.script import run_script

local_ring.command = lambda name, *options: [sys.executable, "-c", Path({node!r}).read_text(), name, *options]

def main(signals):
    flags = local_ring.flags_of_file(Path("net.json"))
    raise SystemExit(local_ring.run_nodes(signals, flags, ["--of-starter"], ["-v"], {nodes}))

run_script(main, grace_s=600)
"""

NODE = """
import os, queue, signal, sys, time
sys.path.insert(0, {src!r})
from pathlib import Path
from mdi.cli.script import run_script
from mdi.inbox import Inbox

inbox = Inbox()
role = sys.argv[1] if sys.argv[1] == "starter" else f"secondary {{sys.argv[-1]}}"

def say(text):
    print(text, file=sys.stderr, flush=True)

def main(signals):
    with signals.passed_to(inbox.interrupt):
        (Path({folder!r}) / role).write_text(str(os.getpid()))
        say("options " + " ".join(sys.argv[2:]))
        try:
            {body}
        finally:
            if signals.came:
                say("in order")

run_script(main)
"""

WAITING = "inbox.get()"
OUTPUT = """
            while len(list(Path({folder!r}).iterdir())) < 3:
                time.sleep(0.01)
            os.write(1, "caf\\u00e9".encode()[:4])  # half a character
            time.sleep(0.05)
            os.write(1, "\\u00e9 and more\\n".encode()[1:])
            raise SystemExit(3)
"""
DRAINING = """
            try:
                inbox.get()
            except SystemExit as exc:
                say(f"drained after {exc.code - 128}")
                raise SystemExit(0)
"""


@dataclass(frozen=True)
class Launched:
    """A launcher and its nodes."""

    process: "subprocess.Popen[str]"
    folder: Path

    def pid(self, role: str) -> int:
        """Waits until the node is at work."""
        path = self.folder / role
        wait_until(lambda: path.exists() and path.read_text(), END_S, f"{role} runs")
        return int(path.read_text())

    @property
    def pids(self) -> list[int]:
        return [int(path.read_text()) for path in self.folder.iterdir()]

    def wait_for(self, text: str) -> None:
        """Read the log until a line has `text`."""
        assert self.process.stderr is not None
        assert any(text in line for line in self.process.stderr), f"it ended without {text!r}"

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=END_S)
        return self.process.returncode, out, err


@contextlib.contextmanager
def launched(tmp_path: Path, starter: str = WAITING, nodes: object = range(3)) -> Iterator[Launched]:
    folder, script = tmp_path / "pids", tmp_path / "node.py"
    folder.mkdir()
    body = f"if role != 'starter': {WAITING}\n            {starter.strip()}"
    script.write_text(NODE.format(src=str(SRC), folder=str(folder), body=body.replace("{folder!r}", repr(str(folder)))))
    code = LAUNCHER.format(src=str(SRC), node=str(script), nodes=nodes)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            yield Launched(process, folder)
        finally:
            process.kill()


def is_there(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


# ---- processes


def test_nodes_have_one_log_and_the_exit_status_is_that_of_the_starter(tmp_path: Path) -> None:
    with launched(tmp_path, OUTPUT) as ring:
        status, out, err = ring.end()
    assert (status, out) == (3, "café and more\n")
    assert sorted(line for line in err.splitlines() if "options" in line) == [
        "secondary 0 | options -v --nodes-config net.json 0",
        "secondary 1 | options -v --nodes-config net.json 1",
        "starter     | options --of-starter --nodes-config net.json",
    ]
    assert "starter ended with exit status 3" in err.splitlines()
    assert err.count("in order") == 2, "the secondaries were asked to end"
    assert not any(map(is_there, ring.pids))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_starter_first_and_is_its_to_answer(number: signal.Signals, tmp_path: Path) -> None:
    with launched(tmp_path, DRAINING) as ring:
        pids = [ring.pid(role) for role in ("starter", "secondary 0", "secondary 1")]
        ring.process.send_signal(number)
        status, _, err = ring.end()
    assert status == 0
    lines = err.splitlines()
    first, *later = [index for index, line in enumerate(lines) if "drained" in line or line.endswith("| in order")]
    assert lines[first] == f"starter     | drained after {int(number)}" and len(later) == 3
    assert "exit status" not in err and "killed" not in err, "nobody died by itself"
    assert not any(map(is_there, pids))


def test_a_secondary_that_dies_is_told_and_the_starter_goes_on(tmp_path: Path) -> None:
    with launched(tmp_path, DRAINING) as ring:
        starter = ring.pid("starter")
        os.kill(ring.pid("secondary 1"), signal.SIGKILL)
        ring.wait_for("secondary 1 was killed by SIGKILL; the ring waits for it, or goes on without it")
        assert is_there(starter)
        ring.process.send_signal(signal.SIGTERM)
        assert ring.end()[0] == 0


def test_a_starter_that_is_killed_ends_all(tmp_path: Path) -> None:
    with launched(tmp_path) as ring:
        os.kill(ring.pid("starter"), signal.SIGKILL)
        status, _, err = ring.end()
    assert status == 137
    assert "starter was killed by SIGKILL" in err.splitlines()
    assert not any(map(is_there, ring.pids))


def test_no_node_survives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    with launched(tmp_path) as ring:
        pids = [ring.pid(role) for role in ("starter", "secondary 0", "secondary 1")]
        ring.process.kill()
        wait_until(lambda: not any(map(is_there, pids)), END_S, "all nodes have ended")


def test_without_the_starter_all_secondaries_are_told_of_a_signal(tmp_path: Path) -> None:
    with launched(tmp_path, nodes=[1, 2]) as ring:
        pids = [ring.pid("secondary 0"), ring.pid("secondary 1")]
        ring.process.send_signal(signal.SIGTERM)
        status, _, err = ring.end()
    assert (status, err.count("in order")) == (143, 2)
    assert not any(map(is_there, pids))


def test_a_reader_that_has_seen_enough_ends_the_ring(tmp_path: Path) -> None:
    endless = "while True: os.write(1, b'more\\n' * 1000)"
    with launched(tmp_path, endless) as ring:
        assert ring.process.stdout is not None
        ring.process.stdout.readline()
        ring.process.stdout.close()
        assert ring.process.wait(END_S) == 0
        assert not any(map(is_there, ring.pids))


# ---- which nodes, and with which options


def node(addr: str, listen_on: str | None = None) -> NodeConfig:
    return NodeConfig(addr, 1, 2, 3, listen=listen_on)


def test_local_nodes_are_those_with_an_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ring, "all_addresses", lambda: ["127.0.0.1", "10.1.2.3", "fe80::1%eth0"])
    nodes = [
        node(ELSEWHERE),
        node("127.0.0.1"),
        node("localhost"),
        node("10.1.2.3"),
        node(ELSEWHERE, listen_on="10.1.2.3"),  # forwarded from there
        node("10.1.2.3", listen_on="0.0.0.0"),
        node(ELSEWHERE, listen_on="0.0.0.0"),
        node("no-such-machine.invalid"),
        node("::1"),
    ]
    assert local_nodes(NetworkConfig(nodes[0], tuple(nodes[1:]))) == [1, 2, 3, 4, 5, 8]


def test_a_network_of_other_machines_is_refused_with_our_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "all_addresses", lambda: ["127.0.0.1", "10.1.2.3"])
    network = write_network(tmp_path / "two.json", 2)
    network.path.write_text(network.path.read_text().replace("127.0.0.1", ELSEWHERE))
    monkeypatch.setattr(sys, "argv", ["launch.py", "--nodes-config", str(network.path)])
    with pytest.raises(ConfigError, match=r"two\.json: no node has .* this machine, which has 127\.0\.0\.1, 10\.1\.2"):
        launch.main(Signals())


def test_only_the_ports_of_our_own_nodes_are_checked(tmp_path: Path) -> None:
    network = load_network(write_network(tmp_path / "three.json", 3).path)
    taken = network.secondaries[0]
    with listen(taken.addr, taken.port_in):
        check_ports(network, [0, 2])
        with pytest.raises(ConfigError, match=f"port {taken.port_in}: another program uses"):
            check_ports(network, [0, 1])


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (NodeOptions(), []),
        (NodeOptions(verbose=True, compile=True, device="cuda:1"), ["-v", "-c", "--device", "cuda:1"]),
        (NodeOptions(quiet=True, debug=True), ["-q", "-d"]),
        (NodeOptions(memory_limit="3GB"), ["--memory-limit", "3GB"]),
    ],
)
def test_what_holds_for_every_node_is_passed_to_secondaries(options: NodeOptions, flags: list[str]) -> None:
    assert launch.node_flags(options) == flags


def test_the_starter_gets_the_command_line_and_the_grace_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = write_network(tmp_path / "two.json", 2).path
    arguments = ["-v", "--nodes-config", str(network), "--ckpt", "m", "--serve", "--drain-timeout", "90"]
    ran: list[object] = []
    monkeypatch.setattr(sys, "argv", ["launch.py", *arguments])
    monkeypatch.setattr(launch, "run_nodes", lambda signals, *rest: ran.extend(rest) or 5)
    signals = Signals()
    with pytest.raises(SystemExit) as ended:
        launch.main(signals)
    assert ended.value.code == 5
    flags, *rest = ran
    assert rest == [arguments, ["-v"], [0, 1]]
    assert callable(flags) and flags(1) == ["--nodes-config", str(network), "0"]
    assert signals.grace_s > 90


def test_nodes_without_a_file_are_started_where_their_addresses_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    arguments = ["--nodes", f"127.0.0.1:{port}", "--ckpt", "m"]
    ran: list[object] = []
    monkeypatch.setenv("MDI_KEY", "correct horse battery staple")
    monkeypatch.setattr(sys, "argv", ["launch.py", *arguments])
    monkeypatch.setattr(launch, "run_nodes", lambda signals, *rest: ran.extend(rest) or 0)
    with pytest.raises(SystemExit, match="0"):
        launch.main(Signals())
    flags, starter, _, nodes = ran
    assert (starter, nodes) == (arguments, [0, 1])
    assert callable(flags) and [list(flags(node)) for node in (0, 1)] == [arguments[:2], ["--port", str(port)]]


def test_a_chat_beside_nodes_without_a_file_starts_its_starter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDI_KEY", "correct horse battery staple")
    nodes, flags = own_server._nodes_beside("192.0.2.5,192.0.2.6")
    assert nodes == [0]
    assert list(flags(0)) == ["--nodes", "192.0.2.5,192.0.2.6", "--keep-nodes"]
    nodes, flags = own_server._nodes_of(ChatOptions(discover=2.5))
    assert (nodes, list(flags(0))) == ([0], ["--discover", "2.5", "--keep-nodes"])
    monkeypatch.delenv("MDI_KEY")
    with pytest.raises(ConfigError, match="--discover needs a key"):
        own_server._nodes_of(ChatOptions(discover=2.5))


# ---- the log


def test_the_log_has_a_colour_for_each_node_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    coloured = MergedLog(["starter", "secondary 0"], in_colour=True)
    coloured.say("starter", "ready")
    coloured.say("secondary 0", "ready")
    MergedLog(["starter", "secondary 0"]).say("starter", "ready")
    first, second, plain = capsys.readouterr().err.splitlines()
    assert first == "\x1b[36mstarter     |\x1b[0m ready"
    assert second == "\x1b[33msecondary 0 |\x1b[0m ready"
    assert plain == "starter     | ready"
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    MergedLog(["starter"]).say("starter", "ready")
    assert capsys.readouterr().err == "starter | ready\n"
