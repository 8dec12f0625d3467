"""A fetch in environments with proxies and certificates, some of which cannot work."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session

from mdi.convert import hub
from mdi.convert.hub_environment import check_connection, check_numbers, proxy_variable
from mdi.convert.sources import find_cached
from mdi.errors import ConfigError, MdiError
from mdi.files import partial_folder
from mdi.net.certificates import make_certificates
from support.hub import StubHub, serve
from support.paths import SRC

_READ = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HF_TOKEN")
_NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing of the person who runs the tests; huggingface_hub reads the environment once per session."""
    for name in list(os.environ):
        if name in _READ + _NUMBERS or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    close_session()
    yield
    close_session()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"x" * 100}
    with serve(StubHub("org/tiny", files)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def untrusted_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server whose certificate no public authority has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine")
    (folder,) = make_certificates(["127.0.0.1"], tmp_path_factory.mktemp("certs"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "node.pem", folder / "node.key")
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def failure(folder: Path) -> str:
    """The line that a download ends with, of which nothing is left."""
    with pytest.raises(MdiError) as caught, partial_folder(folder / "tiny", keep_on_error=True) as partial:
        hub.download("org/tiny", partial)
    assert list(folder.iterdir()) == []
    text = str(caught.value)
    assert "\n" not in text and SECRET not in text
    return text


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("ALL_PROXY", f"socks5://me:{SECRET}@127.0.0.1:1080", "ALL_PROXY names a SOCKS proxy.*pip install socksio"),
        ("https_proxy", "socks5h://127.0.0.1:1080", "https_proxy names a SOCKS proxy"),
        ("HTTPS_PROXY", "foo:bar:baz", "HTTPS_PROXY is not the URL of a proxy, such as http://"),
        ("HTTP_PROXY", f"ftp://me:{SECRET}@127.0.0.1", "HTTP_PROXY is not the URL of a proxy"),
        ("All_Proxy", "http://", "All_Proxy is not the URL of a proxy"),
        ("NO_PROXY", "foo:bar:baz", "NO_PROXY is 'foo:bar:baz': not hosts such as"),
        ("no_proxy", "[::1", "no_proxy is"),
        ("SSL_CERT_FILE", "/no/such.pem", "SSL_CERT_FILE is '/no/such.pem': No such file or directory; correct it"),
        ("SSL_CERT_FILE", __file__, "SSL_CERT_FILE is .*: no certificates in it"),
        ("SSL_CERT_DIR", "/no/such", "SSL_CERT_DIR is '/no/such': no such folder"),
        ("SSLKEYLOGFILE", "/no/such/log", "SSLKEYLOGFILE is '/no/such/log', which cannot be written: No such file"),
    ],
)
def test_a_variable_that_cannot_work_is_named_and_nothing_is_left(
    stub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # as where it is not installed
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=line):
        check_connection()
    assert name in failure(tmp_path)
    assert stub.requests == []


@pytest.mark.parametrize("name", _NUMBERS)
def test_a_number_that_is_none_is_named_before_the_library_is_imported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "soon")
    for call in (check_numbers, lambda: find_cached("org/tiny")):
        with pytest.raises(ConfigError, match=f"{name} is 'soon', not a whole number of seconds"):
            call()
    assert name in failure(tmp_path)


def test_variables_that_the_library_does_not_read_change_nothing(
    stub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such.pem")
    monkeypatch.setenv("CURL_CA_BUNDLE", "/no/such.pem")
    monkeypatch.setenv("GIT_PROXY", "foo:bar:baz")
    hub.download("org/tiny", tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == 100


def test_a_proxy_is_not_looked_at_where_no_host_has_one(
    stub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "foo:bar:baz")
    monkeypatch.setenv("NO_PROXY", "localhost, *")
    hub.download("org/tiny", tmp_path)
    assert proxy_variable(stub.url) is None


def test_a_fetch_goes_through_the_proxy(stub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For plain HTTP a proxy gets the whole URL, which the stand-in answers as if it were its own."""
    monkeypatch.setenv("HTTP_PROXY", stub.url)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert proxy_variable("http://hub.invalid") == "HTTP_PROXY"
    with pytest.raises(MdiError, match="does not exist, or it is private"):  # it looks for the path alone
        hub.download("org/tiny", tmp_path)
    assert stub.requests[0].path.startswith("http://hub.invalid/api/models/org/tiny")


def test_a_proxy_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", f"http://me:{SECRET}@127.0.0.1:{port}")
    assert failure(tmp_path) == "the proxy that http_proxy names refuses connections: check http_proxy and the firewall"


def test_certificates_that_are_not_trusted_name_the_variable_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untrusted_hub: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", untrusted_hub)
    text = failure(tmp_path)
    assert re.search(r"the clock says \d{4}-\d\d-\d\d \d\d:\d\d UTC, check it; where a proxy has a certificate", text)
    assert "set SSL_CERT_FILE to a file that holds its authority" in text
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such.pem")
    assert "set SSL_CERT_FILE, not REQUESTS_CA_BUNDLE, to a file" in failure(tmp_path)


def test_a_token_file_that_cannot_be_read_is_named(
    stub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(SRC))
    assert failure(tmp_path) == f"{SRC}: Is a directory: HF_HOME or HF_TOKEN_PATH says that a token is there"


@pytest.mark.slow
def test_the_script_ends_in_one_line(tmp_path: Path) -> None:
    variables = {"ALL_PROXY": "socks5://127.0.0.1:9", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables}
    script = [sys.executable, str(SRC / "prepare_model.py"), "org/tiny", "--ckpt-folder", str(tmp_path / "models")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ALL_PROXY ") and done.stderr.count("\n") == 1
    assert list(tmp_path.rglob("*.partial")) == []
