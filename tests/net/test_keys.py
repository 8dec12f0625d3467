"""The shared key: where it comes from, what it proves, and that nobody gets to see it."""

import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mdi.cli.commands import secondary, starter
from mdi.config.network import load_network, load_node
from mdi.net.access import Access
from mdi.net.key_sources import MIN_KEY_BITS, guess_bits, key_from_file, key_from_text, make_key_file
from mdi.net.keys import Key, Keys, Nonces
from mdi.net.tls import Tls
from support.config_files import error_of, network_json, node_json, written

SECRET = "correct horse battery staple"
OTHER = "another horse, another staple"


# ---- where it comes from


def keys_of(tmp_path: Path, **top: object) -> Keys | None:
    return load_network(written(tmp_path, network_json() | top)).starter.access.keys


def key_of(tmp_path: Path, **top: object) -> Key | None:
    """The only key of a network."""
    keys = keys_of(tmp_path, **top)
    assert keys is None or keys.old is None
    return keys and keys.current


def test_every_node_of_a_network_has_its_key(tmp_path: Path) -> None:
    path = written(tmp_path, network_json() | {"key": SECRET})
    assert {node.access.keys for node in load_network(path).nodes} == {Keys(Key(SECRET, "here"))}
    assert load_node(path, 1).access.keys == Keys(Key(SECRET, "here"))


def test_a_single_node_file_may_hold_the_key(tmp_path: Path) -> None:
    assert load_node(written(tmp_path, node_json() | {"key": SECRET}), None).access.keys == Keys(Key(SECRET, "here"))


def test_a_ring_without_a_key_has_none(tmp_path: Path) -> None:
    assert key_of(tmp_path) is None


def test_a_key_file_stands_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "ring").write_text(f"  {SECRET}\n")
    assert key_of(tmp_path, key_file="keys/ring") == Key(SECRET, "here")
    assert key_of(tmp_path, key_file=str(tmp_path / "keys" / "ring")) == Key(SECRET, "here")


def test_the_environment_comes_before_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDI_KEY", SECRET)
    assert key_of(tmp_path, key=OTHER) == key_of(tmp_path) == Key(SECRET, "here")
    monkeypatch.delenv("MDI_KEY")
    path = tmp_path / "ring.key"
    path.write_text(SECRET)
    monkeypatch.setenv("MDI_KEY_FILE", str(path))
    assert key_of(tmp_path, key=OTHER) == Key(SECRET, "here")


def test_two_keys_in_one_place_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "keep one of them" in error_of(lambda: key_of(tmp_path, key=SECRET, key_file="ring.key"))
    monkeypatch.setenv("MDI_KEY", SECRET)
    monkeypatch.setenv("MDI_KEY_FILE", "ring.key")
    assert error_of(lambda: key_of(tmp_path)) == "MDI_KEY and MDI_KEY_FILE both give a key: set one of them"


@pytest.mark.parametrize("text", ["", "   ", "\n", "fifteen letters", " fifteen letters "])
def test_a_key_that_is_too_short_is_refused_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    problem = "fewer than 16 characters" if text.strip() else "is empty"
    file = tmp_path / "ring.key"
    file.write_text(text)

    def refused(place: str, load: Callable[[], object]) -> None:
        message = error_of(load)
        assert place in message
        assert problem in message
        assert "fifteen" not in message

    refused("nodes.json: key: ", lambda: key_of(tmp_path, key=text))
    refused("nodes.json: key_file: ", lambda: key_of(tmp_path, key_file="ring.key"))
    monkeypatch.setenv("MDI_KEY", text)
    refused("MDI_KEY: ", lambda: key_of(tmp_path, key=SECRET))
    monkeypatch.delenv("MDI_KEY")
    monkeypatch.setenv("MDI_KEY_FILE", str(file))
    refused("MDI_KEY_FILE: ", lambda: key_of(tmp_path))


def test_an_empty_name_of_a_key_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDI_KEY_FILE", "")
    assert error_of(lambda: key_of(tmp_path)).startswith("MDI_KEY_FILE is empty: ")


@pytest.mark.parametrize("value", [1234567890123456, None, ["a secret in a list"], {"a": "secret in an object"}, True])
def test_a_key_that_is_no_text_is_refused_and_not_quoted(tmp_path: Path, value: object) -> None:
    text = error_of(lambda: key_of(tmp_path, key=value))
    assert text == f"{tmp_path / 'nodes.json'}: key: is not a string"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read: No such file"), (b"\xff" * 20, "not UTF-8"), (b"x" * 5000, "more than 4096 bytes")],
)
def test_a_key_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "ring.key").write_bytes(content)
    text = error_of(lambda: key_of(tmp_path, key_file="ring.key"))
    assert "key_file" in text
    assert problem in text


def test_the_mark_that_windows_editors_write_is_no_part_of_a_key(tmp_path: Path) -> None:
    text = "a key with sixteen characters or more"
    (tmp_path / "ring.key").write_text(text, encoding="utf-8-sig")
    assert key_from_file(tmp_path / "ring.key", "here") == key_from_text(text, "there")


def test_a_key_may_be_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("größer als sechzehn", "\udcff" * 16, "\ud800" * 16):
        assert Key(text, "here") == Key(text, "there")
        assert len(Key(text, "here").mac(b"x")) == 32


# ---- the key that is being replaced


def test_the_old_key_stands_where_the_new_one_may_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Keys(Key(SECRET, "here"), Key(OTHER, "here"))
    file = tmp_path / "old.key"
    file.write_text(OTHER)
    assert keys_of(tmp_path, key=SECRET, key_old=OTHER) == both
    assert keys_of(tmp_path, key=SECRET, key_old_file="old.key") == both
    monkeypatch.setenv("MDI_KEY_OLD", OTHER)
    assert keys_of(tmp_path, key=SECRET, key_old="an older one, of no interest") == both
    monkeypatch.delenv("MDI_KEY_OLD")
    monkeypatch.setenv("MDI_KEY_OLD_FILE", str(file))
    assert keys_of(tmp_path, key=SECRET) == both


def test_an_old_key_that_is_still_accepted_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys_of(tmp_path, key=SECRET)
    assert "the old key" not in caplog.text
    keys_of(tmp_path, key=SECRET, key_old=OTHER)
    assert "the old key is still accepted: remove it when all nodes have the new one" in caplog.text


@pytest.mark.parametrize(
    ("top", "problem"),
    [
        ({"key_old": OTHER}, "there is an old key but no new one: set MDI_KEY too"),
        ({"key": SECRET, "key_old": f" {SECRET}"}, "the old key is the same as the new one"),
        ({"key": SECRET, "key_old": "short"}, "key_old: the key has fewer than 16 characters"),
        ({"key": SECRET, "key_old": OTHER, "key_old_file": "x"}, "key_old: key_old_file gives a key too"),
    ],
)
def test_an_old_key_that_makes_no_sense_is_refused(tmp_path: Path, top: dict[str, object], problem: str) -> None:
    assert problem in error_of(lambda: keys_of(tmp_path, **top))


# ---- keys that others could guess or read


@pytest.mark.parametrize(
    "text",
    ["a" * 16, "ab" * 20, "1234567890123456", "abcdefghijklmnop", "passwordpassword", "secret secret secret secret",
     "0000000000000001"],
)  # fmt: skip
def test_a_key_that_is_easy_to_guess_is_warned_of_with_the_remedy(text: str, caplog: pytest.LogCaptureFixture) -> None:
    key_from_text(text, "MDI_KEY")
    expected = "MDI_KEY: this key is easy to guess; `starter.py --make-key FILE` makes a good one"
    assert [record.getMessage() for record in caplog.records] == [expected]


@pytest.mark.parametrize("text", [SECRET, OTHER, "größer als sechzehn", "9f86d081884c7d65", "kX3vQz81LmWp0RtB"])
def test_a_key_of_some_variety_is_not_warned_of(text: str, caplog: pytest.LogCaptureFixture) -> None:
    key_from_text(text, "MDI_KEY")
    assert not caplog.records


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
@pytest.mark.parametrize("top", [{"key": SECRET}, {"key_file": "ring.key"}, {"key": OTHER, "key_old_file": "ring.key"}])
def test_a_key_that_others_may_read_is_warned_of(
    tmp_path: Path, top: dict[str, object], mode: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file, path = tmp_path / "ring.key", written(tmp_path, network_json() | top)
    file.write_text(SECRET)
    for holder in (file, path):
        holder.chmod(mode)
    load_network(path)
    holder = path if top == {"key": SECRET} else file
    advice = f"{holder} holds a secret and other users of this machine may read it: chmod 600 {holder}"
    assert (advice in caplog.text) is warned
    assert SECRET not in caplog.text


@pytest.mark.parametrize(("mode", "warned"), [(0o440, False), (0o444, True)])
def test_a_key_that_a_service_manager_hands_to_our_group_is_not_warned_of(
    tmp_path: Path, mode: int, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (file := tmp_path / "ring.key").write_text(SECRET)
    file.chmod(mode)
    monkeypatch.setattr("mdi.net.key_sources.os.geteuid", lambda: file.stat().st_uid + 1)
    key_from_file(file, "MDI_KEY_FILE")
    assert ("other users of this machine may read it" in caplog.text) is warned


# ---- a new key


def test_a_new_key_is_random_and_for_its_owner_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        make_key_file(tmp_path / name)
    texts = {(tmp_path / name).read_text() for name in ("a", "b")}
    assert len(texts) == 2
    assert all(len(bytes.fromhex(text)) == 32 and guess_bits(text.strip()) > 3 * MIN_KEY_BITS for text in texts)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert key_of(tmp_path, key_file="a") != key_of(tmp_path, key_file="b")
    assert not caplog.records


def test_a_new_key_replaces_nothing(tmp_path: Path) -> None:
    file = tmp_path / "ring.key"
    file.write_text(SECRET)
    assert error_of(lambda: make_key_file(file)) == f"{file} exists already: move it away, or choose another name"
    assert file.read_text() == SECRET
    for path in (tmp_path / "nowhere" / "ring.key", tmp_path / "a\0b"):
        assert "cannot be written" in error_of(lambda path=path: make_key_file(path))


@pytest.mark.parametrize("script", [starter, secondary])
def test_the_scripts_make_a_key_instead_of_running(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ring.key"
    with pytest.raises(SystemExit) as ended:
        script.build_parser().parse_args(["--make-key", str(file)])
    assert not ended.value.code
    assert capsys.readouterr().out.startswith(f"{file}: a new key; copy it to every node")
    assert file.is_file()


# ---- what it proves


def test_a_key_is_stretched_once_by_scrypt_with_the_published_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a key that no other test stretches"
    stretched = hashlib.scrypt(text.encode(), salt=b"mdi-llm ring key", n=32768, r=8, p=1, maxmem=2**26, dklen=32)
    message = b"\x01" + bytes(7) + b"x"
    assert Key(text, "here").mac(b"x") == hmac.digest(stretched, message, "sha256")
    monkeypatch.delattr(hashlib, "scrypt")
    assert Key(text, "there") == Key(text, "here")


def test_a_python_without_scrypt_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object, **__: object) -> bytes:
        raise ValueError("unsupported")

    monkeypatch.setattr(hashlib, "scrypt", unsupported)
    assert "it failed: unsupported" in error_of(lambda: Key("a key that cannot be stretched", "here"))
    monkeypatch.delattr(hashlib, "scrypt")
    assert "needs scrypt, which this Python lacks" in error_of(lambda: Key("a key that cannot be stretched", "here"))


NEW, OLD = Key(SECRET, "here"), Key(OTHER, "here")
PARTS = (b"label", b"nonce")


@pytest.mark.parametrize(
    ("prover", "verifier", "shared"),
    [
        (Keys(NEW), Keys(NEW), NEW),
        (Keys(OLD), Keys(NEW, OLD), OLD),
        (Keys(NEW, OLD), Keys(OLD), OLD),
        (Keys(NEW, OLD), Keys(NEW, OLD), NEW),
        (Keys(NEW, OLD), Keys(NEW), NEW),
        (Keys(NEW), Keys(NEW, OLD), NEW),
        (Keys(NEW, OLD), Keys(OLD, NEW), OLD),
        (Keys(NEW), Keys(OLD), None),
    ],
)
def test_two_nodes_use_the_newest_key_that_both_have(prover: Keys, verifier: Keys, shared: Key | None) -> None:
    assert verifier.match(prover.prove(*PARTS), *PARTS) == shared
    assert verifier.match(prover.prove(*PARTS), *PARTS, b"") is None


def test_the_proof_of_the_new_key_cannot_be_taken_away() -> None:
    both = Keys(NEW, OLD)
    proof = both.prove(*PARTS)
    for damaged in (proof[32:], bytes(32) + proof[32:], proof[32:] + proof[:32], proof[1:], proof[:31], b""):
        assert both.match(damaged, *PARTS) is None
        assert Keys(OLD).match(damaged, *PARTS) is None


def test_a_proof_is_of_its_key_and_its_parts_alone() -> None:
    key = Key(SECRET, "here")
    mac = key.mac(b"ab", b"c")
    assert key.verify(mac, b"ab", b"c")
    for parts in [(b"a", b"bc"), (b"abc",), (b"ab", b"c", b""), (b"", b"ab", b"c"), (b"c", b"ab"), ()]:
        assert not key.verify(mac, *parts)
    assert not Key(OTHER, "here").verify(mac, b"ab", b"c")
    for wrong in (b"", mac[:-1], mac + b"\0", bytes(32)):
        assert not key.verify(wrong, b"ab", b"c")


# ---- that nobody sees it


def test_nothing_that_holds_a_key_shows_it(tmp_path: Path) -> None:
    network = load_network(written(tmp_path, network_json() | {"key": SECRET}))
    for value in (network, network.starter, network.starter.access, network.starter.access.keys):
        for text in (repr(value), str(value), f"{value}", f"{value!r}"):
            assert SECRET not in text
    assert "hidden" in repr(network)


def test_an_error_in_a_file_with_a_key_does_not_show_it(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    good = json.dumps(network_json() | {"key": SECRET})
    for text in (
        good[:-1],
        good.replace('"nodes"', '"node"'),
        good.replace('"key"', '"Key"'),
        good.replace("8088", "-"),
    ):
        path.write_text(text)
        assert SECRET not in error_of(lambda: load_network(path))


def test_keys_compare_by_content() -> None:
    assert Key(SECRET, "here") == Key(f" {SECRET}\n", "there") != Key(OTHER, "here")
    assert hash(Key(SECRET, "here")) == hash(Key(SECRET, "there"))
    assert Key(SECRET, "here") != SECRET


# ---- the tls key of the configuration


TLS = {"certificate": "certs/node.pem", "private_key": "certs/node.key", "ca": "/etc/mdi/ca.pem"}


def test_tls_files_stand_beside_the_configuration(tmp_path: Path) -> None:
    network = load_network(written(tmp_path, network_json() | {"tls": TLS}))
    files = Tls(tmp_path / "certs/node.pem", tmp_path / "certs/node.key", Path("/etc/mdi/ca.pem"))
    assert {node.access.tls for node in network.nodes} == {files}
    assert load_node(written(tmp_path, node_json() | {"tls": TLS}), None).access.tls == files


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"certificate": 1}, "tls.certificate: 1 is not a string"),
        ({"ca": ""}, "tls.ca: is empty"),
        ({"key": "x"}, "tls.key: unknown key"),
    ],
)
def test_a_mistake_in_tls_is_named(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    path = written(tmp_path, network_json() | {"tls": TLS | change})
    assert error_of(lambda: load_network(path)) == f"{path}: {problem}"


@pytest.mark.parametrize("missing", TLS)
def test_a_tls_file_that_is_not_told_is_named(tmp_path: Path, missing: str) -> None:
    path = written(tmp_path, network_json() | {"tls": {key: value for key, value in TLS.items() if key != missing}})
    assert error_of(lambda: load_network(path)) == f"{path}: tls.{missing}: missing key"


def test_a_tls_file_that_is_not_there_is_named_before_anything_starts(tmp_path: Path) -> None:
    network = load_network(written(tmp_path, network_json() | {"tls": TLS}))
    text = error_of(network.starter.access.check)
    assert (
        text == f"tls: {tmp_path / 'certs/node.pem'} cannot be read: No such file or directory; `make certs` makes one"
    )
    Access().check()


# ---- who may call without a key


def test_a_node_knows_the_addresses_of_its_configuration(tmp_path: Path) -> None:
    data = network_json()
    data["nodes"]["secondary"][0]["addr"] = "10.0.0.2"
    network = load_network(written(tmp_path, data))
    assert {node.access.addrs for node in network.nodes} == {("127.0.0.1", "10.0.0.2")}
    alone = node_json(addr="10.0.0.2")
    assert load_node(written(tmp_path, alone), None).access.addrs is None
    alone["communication"]["starter_addr"] = "10.0.0.1"
    assert load_node(written(tmp_path, alone), None).access.addrs == ("10.0.0.2", "10.0.0.1")


# ---- challenges


def test_a_challenge_is_good_once() -> None:
    nonces = Nonces()
    nonce = nonces.issue()
    assert len(nonce) == 16
    assert nonces.redeem(nonce)
    assert not nonces.redeem(nonce)
    assert not nonces.redeem(bytes(16))


def test_challenges_differ() -> None:
    nonces = Nonces()
    assert len({nonces.issue() for _ in range(1000)}) == 1000


def test_the_oldest_challenges_are_forgotten() -> None:
    nonces = Nonces(limit=3)
    issued = [nonces.issue() for _ in range(5)]
    assert [nonces.redeem(nonce) for nonce in issued] == [False, False, True, True, True]


def test_a_challenge_is_forgotten_after_its_time() -> None:
    now_s = 1000.0
    nonces = Nonces(lifetime_s=30, clock=lambda: now_s)
    early, late = nonces.issue(), nonces.issue()
    now_s += 29
    assert nonces.redeem(early)
    now_s += 1
    assert not nonces.redeem(late)
