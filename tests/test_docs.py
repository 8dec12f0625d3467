"""The docs are executable: commands are parsed, examples decoded, the module table held against the tree."""

import contextlib
import hashlib
import hmac
import json
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from mdi.cli.commands import (
    chat,
    launch,
    mem_monitor,
    nodes,
    plan,
    plot_tok_time,
    prepare_data,
    prepare_model,
    secondary,
    starter,
    status,
    train,
)
from mdi.cli.parser import Parser
from mdi.config.options import ChatOptions, NetworkOptions, PlannerOptions, SampleOptions, StarterOptions
from mdi.config.prepare_options import PrepareOptions
from mdi.config.training_options import PrepareDataOptions, TrainOptions
from mdi.net.keys import Key, Keys
from mdi.ring.handshake import mac_input
from mdi.ring.messages import Activation, Fault, Goodbye, Hello, Ping, Proof, Refuse, Welcome
from mdi.ring.wire import Decoder, Encoder, Kind, Session, State
from mdi.segments import Fork, Segment
from support.paths import ROOT

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGE = ROOT / "src" / "mdi"
SESSION = Session(epoch=7, n_embd=2, wire_dtype="float32", n_slots=4, context=16, max_rows=8)
SEGMENTS = (Segment(0, 0, 3, 1), Segment(2, 5, 1, 1))


def commands() -> list[str]:
    found = []
    for path in DOCS:
        for block in re.findall(r"```\n(.*?)```", path.read_text(), re.DOTALL):
            found += [line.strip() for line in block.splitlines() if line.strip().startswith("./src/")]
    return found


PARSERS = {
    "chat.py": lambda arguments: ChatOptions(**vars(chat.build_parser().parse_args(arguments))),
    "launch.py": lambda arguments: StarterOptions(**vars(launch.build_parser().parse_args(arguments))),
    "starter.py": lambda arguments: StarterOptions(**vars(starter.build_parser().parse_args(arguments))),
    "sample.py": lambda arguments: SampleOptions(**vars(starter.build_parser(SampleOptions).parse_args(arguments))),
    "secondary.py": lambda arguments: secondary.build_parser().parse_args(arguments),
    "prepare_data.py": lambda arguments: PrepareDataOptions(**vars(prepare_data.build_parser().parse_args(arguments))),
    "prepare_model.py": lambda arguments: PrepareOptions(**vars(prepare_model.build_parser().parse_args(arguments))),
    "train.py": lambda arguments: TrainOptions(**vars(train.build_parser().parse_args(arguments))),
    "plot_tok_time.py": lambda arguments: plot_tok_time.build_parser().parse_args(arguments),
    "nodes.py": lambda arguments: NetworkOptions(**vars(nodes.build_parser().parse_args(arguments))),
    "status.py": lambda arguments: status.build_parser().parse_args(arguments),
    "plan.py": lambda arguments: PlannerOptions(**vars(plan.build_parser().parse_args(arguments))),
    "mem_monitor.py": lambda arguments: mem_monitor.build_parser().parse_args(arguments),
}


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_docs_is_accepted_by_the_real_parser(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script, *arguments = shlex.split(command)
    carried_out = "--make-key" in arguments  # by the parser itself
    with pytest.raises(SystemExit, match="0") if carried_out else contextlib.nullcontext():
        PARSERS[Path(script).name](arguments)


def ignored_by_git(paths: Iterable[str]) -> set[str]:
    """Those of `paths`, from the root of the tree, that git ignores."""
    given = "".join(f"{path}\n" for path in paths)
    done = subprocess.run(
        ["git", "check-ignore", "--stdin"], cwd=ROOT, input=given, capture_output=True, text=True, check=False
    )
    if done.returncode > 1:
        pytest.skip(f"not a checkout: {done.stderr.strip()}")
    return set(done.stdout.splitlines())


def test_the_network_files_of_the_readme_are_there_or_ignored_by_git() -> None:
    """People put addresses and keys into those that they make, which therefore must not be committed."""
    named = set(re.findall(r"src/settings_distr/[\w-]+\.json", (ROOT / "README.md").read_text()))
    own = {f"src/settings_distr/{name}.json" for name in ("my-network", "my-two")}
    assert ignored_by_git(named | own) == own
    assert [name for name in named - own if not (ROOT / name).exists()] == []


def test_what_the_commands_of_the_docs_write_is_ignored_by_git() -> None:
    """The key of a ring above all: one `git add .` would commit it."""
    written = set(re.findall(r"(?:--make-key|--img|-o) ([\w./-]+)", "\n".join(commands())))
    assert written >= {"ring.key", "memory.csv", "memory.png"}
    assert ignored_by_git({*written, "other.key"}) == {*written, "other.key"}


def anchors(page: Path) -> set[str]:
    """What links can name on a page: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).replace(" ", "-").lower() for heading in headings}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8"))
    for file, anchor in links:
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.svg")), ids=lambda picture: picture.name)
def test_pictures_load_nothing_and_run_nothing(picture: Path) -> None:
    """GitHub shows what does as a broken image."""
    svg = picture.read_text(encoding="utf-8")
    assert not re.search(r"<script|<foreignObject|href=\"(?!#)|url\((?!#)|@import", svg)
    assert len(svg) < 300_000


def documented_flags(readme: str) -> set[str]:
    """The flags in the first column of the README's table of the starter."""
    table = readme.partition("## Flags of `starter.py`")[2].partition("\n## ")[0]
    first_column = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `-"))
    return {quoted.split()[0] for quoted in re.findall(r"`([^`]+)`", first_column)}


def test_the_readme_tells_every_flag_of_the_starter() -> None:
    flags = {flag for action in starter.build_parser()._actions for flag in action.option_strings}
    readme = (ROOT / "README.md").read_text()
    assert documented_flags(readme) == flags - {"-h", "--help"}
    without_row = "".join(line for line in readme.splitlines(keepends=True) if not line.startswith("| `--prompt`"))
    assert documented_flags(readme) - documented_flags(without_row) == {"--prompt"}  # `--prompt-style` does not do


@pytest.mark.parametrize(
    ("script", "parser"), [("secondary.py", secondary.build_parser()), ("chat.py", chat.build_parser())]
)
def test_the_readme_names_every_flag(script: str, parser: Parser) -> None:
    readme = (ROOT / "README.md").read_text()
    listed = readme.partition(f"`{script}` accepts ")[2].partition("\n\n")[0]
    named = set(re.findall(r"(?<![\w-])--?[\w-]+", listed))
    flags = [action.option_strings for action in parser._actions]
    assert [names for names in flags if "--help" not in names and named.isdisjoint(names)] == []
    assert named <= {name for names in flags for name in names}


def hex_examples() -> dict[str, bytes]:
    text = (ROOT / "docs" / "wire-protocol.md").read_text()
    return {name: bytes.fromhex(digits) for name, digits in re.findall(r"```hex (.+)\n([0-9a-f \n]+)```", text)}


EXAMPLE_KEY, NEW_KEY = b"a key for the examples", b"a new key for the examples"
NONCES = bytes(range(16)), bytes(range(16, 32))  # of the caller and of the answerer
KEYED_FACTS = {"rank": 0, "nonce": NONCES[0].hex()}


def mac_of(role: bytes, *more: bytes, key: bytes = EXAMPLE_KEY) -> bytes:
    """A MAC of the examples, made from the document's words alone."""
    secret = hashlib.scrypt(key, salt=b"mdi-llm ring key", n=32768, r=8, p=1, maxmem=2**26, dklen=32)
    facts = json.dumps(KEYED_FACTS, sort_keys=True).encode()
    parts = (b"mdi ring 4", role, struct.pack("<Q", 7), NONCES[1], facts, *more)
    joined = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    return hmac.digest(secret, joined, "sha256")


NEW_PROOF = mac_of(b"answerer", key=NEW_KEY)
SESSION_KEY = mac_of(b"frames")


EXPECTED = {
    "HELLO": Hello({"rank": 0}),
    "HELLO with key": Hello(KEYED_FACTS),
    "WELCOME with key": Welcome(NONCES[1], mac_of(b"answerer")),
    "PROOF with key": Proof(mac_of(b"caller")),
    "WELCOME with two keys": Welcome(NONCES[1], NEW_PROOF + mac_of(b"answerer", NEW_PROOF)),
    "WELCOME": Welcome(),
    "PROOF": Proof(),
    "REFUSE": Refuse("another epoch"),
    "FORK": Fork(0, 3, 3),
    "PING": Ping(),
    "FAULT": Fault(2, "gone"),
    "GOODBYE": Goodbye(),
    "ACTIVATION": Activation(SEGMENTS, memoryview(b"")),
    "ACTIVATION returning": Activation(SEGMENTS, memoryview(b"")),
    "ACTIVATION with key": Activation(SEGMENTS, memoryview(b"")),
    "FORK with key": Fork(0, 3, 3),
}
FRAMES_WITH_MAC = ("ACTIVATION with key", "FORK with key")  # the first two of their connection
BACKWARD = ("WELCOME", "REFUSE")
STATES = dict.fromkeys(("HELLO", *BACKWARD), State.HANDSHAKE) | {"PROOF": State.AWAITING_PROOF}


def state_of(name: str) -> tuple[State, bool]:
    """Where an example belongs: the state that it is legal in, and whether it travels backward."""
    kind, *_ = name.split()
    return STATES.get(kind, State.OPEN), kind in BACKWARD


@pytest.mark.parametrize("name", EXPECTED)
def test_the_hex_examples_decode_and_encode(name: str) -> None:
    data, expected = hex_examples()[name], EXPECTED[name]
    state, backward = state_of(name)
    decoder = Decoder(SESSION, returning=name.endswith("returning"), backward=backward)
    encoder = Encoder(SESSION, backward=backward)
    decoder.state = encoder.state = state
    if name in FRAMES_WITH_MAC:
        for end in (decoder, encoder):
            end.state = State.PROVED
            end.open(SESSION_KEY)
            end._mac._n_frames = FRAMES_WITH_MAC.index(name)
    message, rest = None, data
    while rest:
        buffer = decoder.buffer()
        n = min(len(buffer), len(rest))
        buffer[:n], rest = rest[:n], rest[n:]
        message = decoder.received(n)
    if isinstance(expected, Activation):
        assert isinstance(message, Activation) and message.segments == SEGMENTS
        n_rows = 2 if name.endswith("returning") else 4
        assert message.data.cast("f").tolist() == [float(i) for i in range(2 * n_rows)]
    else:
        assert message == expected
    assert message is not None
    assert b"".join(bytes(part) for part in encoder.encode(message)) == data


def test_the_keyed_examples_are_what_the_handshake_says() -> None:
    key, new = Key(EXAMPLE_KEY.decode(), "the document"), Key(NEW_KEY.decode(), "the document")
    for name, role, mac in (("WELCOME", b"answerer", 16), ("PROOF", b"caller", 0)):
        body = hex_examples()[f"{name} with key"][32:]
        assert key.verify(body[mac:], *mac_input(role, SESSION, KEYED_FACTS, NONCES[1]))
    body = hex_examples()["WELCOME with two keys"][32:]
    for keys in (Keys(key), Keys(new)):
        assert keys.match(body[16:], *mac_input(b"answerer", SESSION, KEYED_FACTS, NONCES[1])) == keys.current
    assert SESSION_KEY.hex() in (ROOT / "docs" / "wire-protocol.md").read_text()


@pytest.mark.parametrize(("number", "name"), list(enumerate(FRAMES_WITH_MAC)))
def test_the_mac_of_a_frame_is_what_the_document_says(number: int, name: str) -> None:
    data = hex_examples()[name]
    text = struct.pack("<Q", number) + data[:32] + data[48:]
    assert data[32:48] == hashlib.blake2b(text, key=SESSION_KEY, digest_size=16).digest()


def test_every_promise_of_the_security_page_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named and named <= defined, named - defined


def test_there_is_an_example_of_every_kind() -> None:
    assert {name.split()[0] for name in hex_examples()} == {kind.name for kind in Kind}


@pytest.mark.slow
def test_the_package_installs_beside_a_torch_that_is_there(tmp_path: Path) -> None:
    """What docs/setup-jetson.md relies on: under a constraint, an installed torch is not replaced."""
    from importlib.metadata import version

    constraints = tmp_path / "constraints.txt"
    constraints.write_text(f"torch=={version('torch').partition('+')[0]}\n")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-build-isolation", "--no-index"]
    result = subprocess.run([*command, "-c", constraints, ROOT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Would install mdi-llm-" in result.stdout
    assert not re.search(r"Would install.* torch-", result.stdout)
