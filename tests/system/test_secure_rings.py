"""Whole rings with a key and with TLS, and nodes that do not belong to them."""

import contextlib
import http.client
import json
import logging
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mdi.control.client import ControlClient
from mdi.control.status import NodeState
from mdi.errors import ControlError
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.certificates import BACKDATED_DAYS, CA_DAYS, NODE_DAYS, make_certificates, renew_certificates
from mdi.net.keys import Key, Keys
from mdi.net.tls import Tls
from mdi.net.validity import DAY_S
from mdi.ring.link import PredecessorConnected
from support.config_files import files_of
from support.links import FLOOD, FOREIGN, LARGE, PATIENCE_S, Bench
from support.rings import ring_of
from support.wire import frame

pytestmark = pytest.mark.slow

SECRET = "correct horse battery staple"
KEY, OTHER = Keys(Key(SECRET, "test")), Keys(Key("another horse, another staple", "test"))
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return files_of(*make_certificates(["127.0.0.1"], tmp_path_factory.mktemp("certs")))


@pytest.fixture(scope="module")
def foreign_tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """Certificates of another authority."""
    return files_of(*make_certificates(["127.0.0.1"], tmp_path_factory.mktemp("foreign")))


@pytest.fixture(scope="module")
def misnamed_tls(tls: Tls, tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate of the right authority, for another machine."""
    folder = tmp_path_factory.mktemp("misnamed")
    shutil.copytree(tls.certificate.parents[1] / "_authority", folder / "_authority")
    return files_of(*make_certificates(["10.0.0.2"], folder))


# ---- a model on three nodes


def test_a_ring_with_a_key_generates_what_one_without_does(tiny: Path, tmp_path: Path) -> None:
    with ring_of(3, tmp_path / "open") as ring:
        expected = ring.generate(tiny, [[1, 2, 3], [4]])
    with ring_of(3, tmp_path / "keyed", access=Access(KEY)) as ring:
        assert ring.generate(tiny, [[1, 2, 3], [4]]) == expected
        assert ring.generate(tiny, [[1, 2, 3], [4]]) == expected  # and again, with the weights that were sent


@needs_openssl
def test_a_ring_with_tls_generates_what_one_without_does(tiny: Path, tls: Tls, tmp_path: Path) -> None:
    with ring_of(3, tmp_path / "open") as ring:
        expected = ring.generate(tiny, [[1, 2, 3], [4]])
    for key in (KEY, None):
        with ring_of(3, tmp_path / "tls", access=Access(key, tls)) as ring:
            assert ring.generate(tiny, [[1, 2, 3], [4]]) == expected


@pytest.mark.parametrize(
    ("starter", "secondary", "words"),
    [
        (KEY, OTHER, "different keys"),
        (KEY, None, "has no key, and this node has one"),
        (None, KEY, "this ring has a key and the caller has none"),
    ],
)
def test_a_starter_whose_key_is_not_the_nodes_is_refused(
    tiny: Path, tmp_path: Path, starter: Keys | None, secondary: Keys | None, words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    with ring_of(2, tmp_path, access=Access(secondary), starter_access=Access(starter)) as ring:
        with pytest.raises(ControlError, match=f"secondary 0 at .*{words}") as caught:
            ring.generate(tiny, [[1, 2]])
        assert ring.secondaries[0].status().state is NodeState.IDLE
    text = str(caught.value)
    assert "\n" not in text
    refusals = {record.getMessage() for record in caplog.records if record.name == "mdi.control.auth"}
    assert all(line.startswith("refused ") and "\n" not in line for line in refusals)
    assert 1 <= len(refusals) <= 3  # its status, the request, and giving it up again
    assert SECRET not in caplog.text + text


# ---- one connection of the ring


@pytest.fixture
def bench() -> Iterator[Bench]:
    with contextlib.closing(Bench()) as bench:
        yield bench


def meet(bench: Bench, caller: Access, answerer: Access) -> tuple[str, bool]:
    """What the caller ends with ("" where nothing is wrong), and whether the answerer let it in."""
    b = bench.end(1, access=answerer)
    a = bench.end(b.port, access=caller)
    b.link.accept()
    a.link.connect()
    error = "" if (caller, answerer) == (answerer, caller) else str(a.down().error)
    let_in = not error and isinstance(b.event(), PredecessorConnected)
    a.link.close()
    b.link.close()
    assert let_in or b.inbox.empty()  # it waits on
    return error, let_in


@pytest.mark.parametrize("access", [THIS_MACHINE, Access(KEY)])
def test_two_nodes_with_the_same_access_meet(bench: Bench, access: Access) -> None:
    assert meet(bench, access, access) == ("", True)


@needs_openssl
@pytest.mark.parametrize("key", [KEY, None])
def test_two_nodes_with_the_same_certificates_meet(bench: Bench, tls: Tls, key: Keys | None) -> None:
    assert meet(bench, Access(key, tls), Access(key, tls)) == ("", True)


@needs_openssl
def test_variables_for_proxies_and_certificates_mean_nothing_between_nodes(
    bench: Bench, tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "foo:bar:baz")
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, "/no/such/file")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    access = Access(KEY, replace(tls))  # without the contexts that were made before
    assert meet(bench, access, access) == ("", True)
    with ring_of(2, tmp_path, access=access) as ring:
        port = ring.secondaries[0].http_port
        assert ControlClient("n", "127.0.0.1", port, access).status().state is NodeState.IDLE


@pytest.mark.parametrize(
    ("caller", "answerer", "reason"),
    [
        (KEY, OTHER, "the caller and this node have different keys"),
        (KEY, None, "the caller has a key and this node has none"),
        (None, KEY, "this ring has a key and the caller has none"),
    ],
)
def test_keys_that_differ_are_told_on_both_sides(
    bench: Bench, caller: Keys | None, answerer: Keys | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    error, let_in = meet(bench, Access(caller), Access(answerer))
    assert not let_in
    assert error.startswith("the node behind (127.0.0.1:")
    assert error.endswith(reason)
    assert [r.getMessage() for r in caplog.records] == [f"refused a connection from 127.0.0.1: {reason}"]


@needs_openssl
@pytest.mark.parametrize("who", ["caller", "answerer", "misnamed", "caller plain", "answerer plain"])
def test_certificates_that_differ_are_told_on_both_sides(
    bench: Bench, tls: Tls, foreign_tls: Tls, misnamed_tls: Tls, who: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    good = Access(None, tls)
    pairs = {
        "caller": (Access(None, foreign_tls), good),
        "answerer": (good, Access(None, foreign_tls)),
        "misnamed": (good, Access(None, misnamed_tls)),
        "caller plain": (THIS_MACHINE, good),
        "answerer plain": (good, THIS_MACHINE),
    }
    error, let_in = meet(bench, *pairs[who])
    assert not let_in
    assert error.startswith("the node behind (127.0.0.1:")
    assert "\n" not in error
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("refused a connection from 127.0.0.1: ")


def dated(tls: Tls, folder: Path, days_ago: float) -> Tls:
    """A certificate of the same authority, as if it had been made at another time."""
    shutil.copytree(tls.certificate.parents[1] / "_authority", folder / "_authority")
    return files_of(*make_certificates(["127.0.0.1"], folder, time.time() - days_ago * DAY_S))


ENDED, NOT_YET = NODE_DAYS + 2, -BACKDATED_DAYS - 2  # days ago
BOTH_TIMES = r"valid from 20\S+ \S+ UTC to 20\S+ \S+ UTC, and this machine's clock says 20\S+ \S+ UTC"
DATES = [
    (
        "answerer",
        ENDED,
        rf"its certificate is {BOTH_TIMES}: it has ended",
        "it says that this node's certificate has ended",
    ),
    (
        "answerer",
        NOT_YET,
        rf"its certificate is {BOTH_TIMES}: it is not valid yet",
        "certificate is not valid yet, or for",
    ),
    (
        "caller",
        ENDED,
        "it says that this node's certificate has ended",
        "its certificate has ended by this machine's clock",
    ),
    (
        "caller",
        NOT_YET,
        "certificate is not valid yet, or for",
        "its certificate is not valid yet by this machine's clock",
    ),
]


@needs_openssl
@pytest.mark.parametrize(("whose", "days_ago", "caller_says", "answerer_says"), DATES)
def test_dates_that_do_not_agree_are_told_on_both_sides_of_a_link(
    bench: Bench, tls: Tls, tmp_path: Path, whose: str, days_ago: float, caller_says: str, answerer_says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    other = dated(tls, tmp_path, days_ago)
    caller, answerer = (other, tls) if whose == "caller" else (tls, other)
    error, let_in = meet(bench, Access(None, caller), Access(None, answerer))
    assert not let_in
    assert re.search(rf"does not agree on TLS: .*{caller_says}", error)
    assert re.search(BOTH_TIMES, error)
    line = next(line for line in caplog.messages if "does not agree on TLS" in line)
    assert re.search(answerer_says, line)
    assert re.search(rf"this node.s is {BOTH_TIMES}.*\({answerer.certificate}\)$", line)


@needs_openssl
@pytest.mark.parametrize(("whose", "days_ago", "caller_says", "answerer_says"), DATES)
def test_dates_that_do_not_agree_are_told_on_both_sides_of_a_call(
    tls: Tls, tmp_path: Path, whose: str, days_ago: float, caller_says: str, answerer_says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    other = dated(tls, tmp_path / "certs", days_ago)
    caller, answerer = (other, tls) if whose == "caller" else (tls, other)
    with ring_of(2, tmp_path, access=Access(KEY, answerer)) as ring:
        client = ControlClient("secondary 0", "127.0.0.1", ring.secondaries[0].http_port, Access(KEY, caller))
        with pytest.raises(ControlError, match=rf"secondary 0 at .* does not agree on TLS: .*{caller_says}") as caught:
            client.status()
        assert re.search(BOTH_TIMES, str(caught.value))
        assert "\n" not in str(caught.value)
    line = next(line for line in caplog.messages if "does not agree on TLS" in line)
    assert re.search(answerer_says, line)
    assert re.search(rf"this node.s is {BOTH_TIMES}.*\({answerer.certificate}\)$", line)


@needs_openssl
def test_a_node_without_tls_says_so_at_once(tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ring_of(2, tmp_path, access=Access(KEY)) as ring:
        client = ControlClient("secondary 0", "127.0.0.1", ring.secondaries[0].http_port, Access(KEY, tls))
        with pytest.raises(ControlError, match=r"does not agree on TLS: it has none: give `tls` to all nodes, or to"):
            client.status()
    assert "refused a connection from 127.0.0.1: it speaks TLS, and this node has none" in caplog.text


@needs_openssl
def test_a_caller_without_tls_is_told_on_both_sides(tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ring_of(2, tmp_path, access=Access(KEY, tls)) as ring:
        client = ControlClient("secondary 0", "127.0.0.1", ring.secondaries[0].http_port, Access(KEY))
        with pytest.raises(ControlError, match="closed the connection before it answered, as a node with `tls` does"):
            client.status()
    refusal = (
        "refused a connection from 127.0.0.1: it does not agree on TLS: it does not use it: give `tls` to all nodes"
    )
    assert refusal in caplog.text


@needs_openssl
def test_old_and_renewed_certificates_meet(bench: Bench, tmp_path: Path) -> None:
    """Also where the authority was renewed: nodes get their files one after the other."""
    made_s = time.time() - (CA_DAYS - 20) * DAY_S
    make_certificates(["127.0.0.1"], tmp_path, made_s)
    shutil.rmtree(tmp_path / "127.0.0.1")
    (folder,) = make_certificates(["127.0.0.1"], tmp_path)
    old = files_of(Path(shutil.copytree(folder, tmp_path / "old")))
    renew_certificates(["127.0.0.1"], tmp_path)
    new = files_of(folder)
    assert new.ca_validity != old.ca_validity
    for caller, answerer in ((old, new), (new, old)):
        b = bench.end(1, access=Access(None, answerer))
        a = bench.end(b.port, access=Access(None, caller))
        b.link.accept()
        a.link.connect()
        assert isinstance(b.event(), PredecessorConnected)


def test_a_connection_from_another_machine_is_dropped(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    end = bench.end(1, predecessor_addr="192.0.2.1")
    end.link.accept()
    with contextlib.suppress(ConnectionError):  # which may come as early as from the call itself
        assert bench.dial(end.port).recv(1) == b""
    end.link.close()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("refused a connection from 127.0.0.1: it is not the predecessor's address")


def test_a_peer_without_the_key_learns_nothing_of_the_session(bench: Bench) -> None:
    end = bench.end(1, access=Access(KEY), predecessor_addr="192.0.2.1")
    end.link.accept()
    for name in ("other epoch", "other facts", "not hello", "no json"):
        sock = bench.dial(end.port)
        sock.sendall(FOREIGN[name])
        with contextlib.suppress(ConnectionError):
            answer = sock.recv(10_000)
        assert answer[32:] in (
            b"it does not fit this node's session; the node's log says why",
            b"this ring has a key and the caller has none",
        )


def test_a_stranger_is_given_nothing_to_try_keys_on(bench: Bench, tmp_path: Path) -> None:
    """No proof, and nothing else that is made with the key: a challenge, or a reason."""
    end = bench.end(1, access=Access(KEY))
    end.link.accept()
    sock = bench.dial(end.port)
    sock.sendall(frame(1, json.dumps({"n_slots": 9, "nonce": "00" * 16}).encode()))
    assert sock.recv(1000)[32:] == b"it does not fit this node's session; the node's log says why"
    with ring_of(2, tmp_path, access=Access(KEY)) as ring:
        answers = [challenged(ring.secondaries[0].http_port) for _ in range(2)]
    nonces = [re.findall(r'nonce="([0-9a-f]{32})"', answer) for answer in answers]
    assert [re.findall(r"[0-9a-f]{10,}", answer) for answer in answers] == nonces
    assert nonces[0] != nonces[1]


def challenged(port: int) -> str:
    """Head and body of the answer to a request for a nonce."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/", headers={"Authorization": "MDI-HMAC"})
        response = connection.getresponse()
        return str(response.headers) + response.read().decode()


@needs_openssl
def test_large_messages_pass_through_tls(bench: Bench, tls: Tls) -> None:
    b = bench.end(1, access=Access(KEY, tls), session=LARGE)
    a = bench.end(b.port, access=Access(KEY, tls), session=LARGE)
    b.link.accept()
    a.link.connect()
    b.event()
    a.link.send(FLOOD)
    assert b.message() == FLOOD


# ---- pending connections at the ring's port


@needs_openssl
@pytest.mark.parametrize("encrypted", [False, True])
def test_ten_silent_connections_do_not_keep_the_predecessor_waiting(bench: Bench, tls: Tls, encrypted: bool) -> None:
    access = Access(KEY, tls if encrypted else None)
    b = bench.end(1, access=access)
    b.link.accept()
    for _ in range(10):
        bench.dial(b.port)
    a = bench.end(b.port, access=access)
    a.link.connect()
    assert b.inbox.get(timeout=1.0)


@needs_openssl
def test_a_connection_that_is_silent_in_tls_is_dropped_in_time(bench: Bench, tls: Tls) -> None:
    b = bench.end(1, access=Access(None, tls))
    b.link.accept()
    sock = bench.dial(b.port)
    with pytest.raises((ConnectionError, AssertionError)):
        assert sock.recv(1) != b""


# ---- HTTP with TLS


def answer_without_certificate(port: int, tls: Tls) -> bytes:
    """What a client reads that trusts the authority and has nothing to show."""
    context = ssl.create_default_context(cafile=str(tls.ca))
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock:  # noqa: SIM117
        with context.wrap_socket(sock, server_hostname="127.0.0.1") as wrapped:
            wrapped.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return wrapped.recv(100)
    return b""


@needs_openssl
def test_http_takes_only_who_shows_a_certificate(
    tiny: Path, tls: Tls, foreign_tls: Tls, misnamed_tls: Tls, tmp_path: Path
) -> None:
    with ring_of(2, tmp_path, access=Access(KEY, tls)) as ring:
        port = ring.secondaries[0].http_port

        def status(access: Access) -> dict[str, object]:
            return ControlClient("secondary 0", "127.0.0.1", port, access).status()

        assert status(Access(KEY, tls)).state is NodeState.IDLE
        assert ControlClient("n", "localhost", port, Access(KEY, tls)).status().state is NodeState.IDLE
        for stranger in (Access(KEY), Access(KEY, foreign_tls), Access(None, replace(tls, ca=foreign_tls.ca))):
            with pytest.raises(ControlError, match="secondary 0 at") as caught:
                status(stranger)
            assert "\n" not in str(caught.value)
        assert answer_without_certificate(port, tls) == b""
        assert status(Access(KEY, tls)).state is NodeState.IDLE
    with ring_of(2, tmp_path, access=Access(KEY, misnamed_tls)) as ring:
        client = ControlClient("n", "127.0.0.1", ring.secondaries[0].http_port, Access(KEY, tls))
        with pytest.raises(ControlError, match="does not agree on TLS"):
            client.status()


@needs_openssl
def test_silent_tls_connections_do_not_keep_the_right_client_out(tls: Tls, tmp_path: Path) -> None:
    access = Access(KEY, tls)
    with ring_of(2, tmp_path, access=access) as ring, contextlib.ExitStack() as stack:
        port = ring.secondaries[0].http_port
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert ControlClient("n", "127.0.0.1", port, access).status().state is NodeState.IDLE
