"""`chat.py` as a process: in a pipe, on a terminal of its own, and with a server that it starts itself."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mdi.cli import local_ring
from mdi.cli.chat.conversation import load
from mdi.cli.chat.own_server import OwnServer
from mdi.config.options import ChatOptions
from mdi.errors import ControlError
from mdi.inbox import Inbox
from support.paths import SRC, home_with_kernels
from support.scripts import ports_in_use, write_network
from support.stub_api import StubApi, broken, refusal, serve_api, stream

END_S = 60.0
SCRIPT = str(SRC / "chat.py")

# The terminal becomes the controlling one, so that its Ctrl-C is a signal.
ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
def api() -> Iterator[StubApi]:
    with serve_api(StubApi()) as api:
        yield api


def run_chat(*arguments: object, typed: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        input=typed,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | environment,
        timeout=180,
        check=False,
    )


# ---- in a pipe


def test_in_a_pipe_answers_alone_are_written_and_errors_are_counted(api: StubApi) -> None:
    api.replies += [stream("Gr", "üß dich **fett**"), refusal(429, "it is full"), stream("Yes\n")]
    done = run_chat("--url", api.url, typed='Hi\nAnd?\n"""\ntwo\nlines\n"""\n', MDI_API_KEY="first-key,second-key")
    assert (done.stdout, done.returncode) == ("Grüß dich **fett**\nYes\n", 1)
    assert done.stderr == "error: the server is busy: it is full\n"
    assert api.keys == ["Bearer first-key"]
    assert [body["messages"][-1]["content"] for _, body in api.requests] == ["Hi", "And?", "two\nlines"]


def test_bytes_that_are_no_text_disturb_nothing(api: StubApi) -> None:
    api.replies += [stream("Yes")]
    command = [sys.executable, SCRIPT, "--url", api.url]
    done = subprocess.run(command, input=b"caf\xe9\n", capture_output=True, timeout=END_S, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"Yes\n", b"", 0)
    assert api.requests[0][1]["messages"][0]["content"] == "caf\ufffd"


def test_where_there_is_no_server_one_line_says_what_to_do() -> None:
    done = run_chat("--url", "http://127.0.0.1:9/v1", typed="Hi\n")
    assert (done.stdout, done.returncode) == ("", 1)
    advice = r"start one \(starter\.py --serve\), name it by --url, or give --ckpt to chat with a model of yours\n"
    assert re.fullmatch(rf"error: nothing answers at http://127\.0\.0\.1:9/v1 \(.+\): {advice}", done.stderr)


# ---- on a terminal


class Terminal:
    """A chat on a terminal, and what it has shown so far, without colours and cursor movements."""

    def __init__(self, *arguments: object, home: Path) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x18\x00\x50\x00\x00\x00\x00\x00")  # 24 lines of 80 characters
        self._slave = slave
        self.modes = termios.tcgetattr(slave)
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, SCRIPT, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "MDI_HOME": str(home)},
        )
        self.raw = ""

    @property
    def shown(self) -> str:
        return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self.raw)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str) -> None:
        self._wait_until(lambda: text in self.shown, repr(text))

    def wait_for_prompt(self, number: int) -> None:
        """Wait until it has prompted so many times: each time it switches a mode of pasting on."""
        self._wait_until(lambda: self.raw.count("\x1b[?2004h") >= number, f"prompt {number}")

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + END_S
        while not condition():
            left_s = deadline_s - time.monotonic()
            assert left_s > 0 and select.select([self.master], [], [], left_s)[0], f"no {what} in {self.raw!r}"
            self.raw += os.read(self.master, 1 << 16).decode("utf-8", "replace")

    def modes_now(self) -> list[object]:
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)


@pytest.fixture
def terminal_of(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    pytest.importorskip("prompt_toolkit")
    with contextlib.ExitStack() as stack:

        def start(*arguments: object) -> Terminal:
            terminal = Terminal(*arguments, home=tmp_path)
            stack.callback(terminal.close)
            terminal.wait_for("Ctrl-D ends")
            terminal.wait_for_prompt(1)
            return terminal

        yield start


def test_on_a_terminal_answers_are_rendered_ctrl_c_stops_them_and_ctrl_d_ends(
    api: StubApi, terminal_of: Callable[..., Terminal], tmp_path: Path
) -> None:
    held = threading.Event()
    api.replies += [stream("A **bold**", " word"), broken("Long and", " longer", held=held), stream("Fine")]
    terminal = terminal_of("--url", api.url)
    terminal.type("One\x1b\rline\r")  # Alt-Enter between the words
    terminal.wait_for("A bold word")
    assert "\x1b[1mbold" in terminal.raw and "**" not in terminal.shown
    terminal.wait_for_prompt(2)
    terminal.type("Two\r")
    terminal.wait_for("Long and longer")
    terminal.type("\x03")
    terminal.wait_for("stopped")
    assert "^C" not in terminal.raw, "what is echoed moves the text"
    terminal.wait_for_prompt(3)
    terminal.type("half a li\x03")  # at the prompt it throws away what was typed
    terminal.wait_for_prompt(4)
    terminal.type("Three\r")
    terminal.wait_for("Fine")
    terminal.wait_for_prompt(5)
    terminal.type("\x04")
    assert terminal.process.wait(END_S) == 0
    assert [m["content"] for m in api.requests[2][1]["messages"]] == [
        "One\nline", "A **bold** word", "Two", "Long and longer", "Three",
    ]  # fmt: skip
    assert terminal.modes_now() == terminal.modes
    history = tmp_path / "chat_history"
    assert "+Three" in history.read_text() and history.stat().st_mode & 0o777 == 0o600


def test_a_signal_at_the_prompt_leaves_the_terminal_as_it_was(
    api: StubApi, terminal_of: Callable[..., Terminal]
) -> None:
    terminal = terminal_of("--url", api.url)
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(END_S) == 143
    assert terminal.modes_now() == terminal.modes
    assert "Traceback" not in terminal.shown


# ---- with a server of its own


@pytest.mark.slow
def test_a_chat_starts_its_own_ring_and_ends_it(tiny: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "two.json", 2)
    saved = tmp_path / "chat.json"
    typed = f"Once upon a time\nAnd then\n/save {saved}\n"
    done = run_chat(
        "-v", "--ckpt", tiny, "--nodes-config", network.path, "--temperature", 0, "--n-tokens", 8, "--device", "cpu",
        "--seed", 3, "--dtype", "float32", typed=typed, MDI_HOME=str(home_with_kernels(tmp_path / "home")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tiny has no chat template: it goes on from what you type" in done.stderr
    assert [turn.text for turn in load(saved).turns[::2]] == ["Once upon a time", "And then"]
    assert all(turn.text for turn in load(saved).turns)
    assert re.search(r"secondary 0 \| ready: layers", done.stderr)
    assert re.search(r"starter     \| serving tiny on http://127\.0\.0\.1:\d+/v1; open", done.stderr)
    first, second = (int(n) for n in re.findall(r"\((\d+) cached\)", done.stderr))
    assert second > first == 0
    assert ports_in_use(network.ports) == []


NODE = """
import os, sys
{body}
"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("print('loading', file=sys.stderr); sys.exit('error: there is no such model')", "there is no such model"),
        ("os.kill(os.getpid(), 9)", "starter was killed by SIGKILL"),
    ],
    ids=["an error", "no word"],
)
def test_why_its_own_server_does_not_start_is_told(
    body: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_ring, "command", lambda *_: [sys.executable, "-c", NODE.format(body=body)])
    with OwnServer(ChatOptions(ckpt=Path("model")), Inbox()) as server, pytest.raises(ControlError) as failed:
        server.start()
    assert str(failed.value) == reason
    assert "loading" not in capsys.readouterr().err, "a log is shown where it is asked for"


def test_its_own_server_has_a_key_and_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = f"""
import pathlib
pathlib.Path({str(tmp_path / "seen")!r}).write_text(os.environ["MDI_API_KEY"] + " " + " ".join(sys.argv[1:]))
print("serving model on http://127.0.0.1:4711/v1; open", file=sys.stderr, flush=True)
sys.stdin.read()
"""
    monkeypatch.setattr(
        local_ring, "command", lambda *options: [sys.executable, "-c", NODE.format(body=body), *options]
    )
    precision: dict[str, Any] = {"dtype": "float32", "quantize": "int8", "kv_dtype": "int8"}
    options = ChatOptions(ckpt=Path("m"), compile=True, device="cpu", verbose=True, **precision)
    with OwnServer(options, Inbox()) as server:
        assert server.start() == "http://127.0.0.1:4711/v1"
        assert len(server.key) > 20
    key, *arguments = (tmp_path / "seen").read_text().split()
    assert key == server.key
    expected = (
        "starter --serve 127.0.0.1:0 --max-slots 2 --ckpt m --dtype float32 --quantize int8 --kv-dtype int8"
        " -v -c --device cpu"
    )
    assert " ".join(arguments).partition(" --nodes-config")[0] == expected


def test_a_chat_can_only_start_what_is_on_this_machine(tmp_path: Path) -> None:
    network = write_network(tmp_path / "two.json", 2)
    network.path.write_text(network.path.read_text().replace("127.0.0.1", "192.0.2.1"))
    done = run_chat("--ckpt", tmp_path, "--nodes-config", network.path, typed="Hi\n")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {network.path}: its starter is on 192.0.2.1: chat there, or by --url\n",
    )
