"""Models and nodes of the tests of wrong input."""

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.models import make_model
from support.scripts import (
    Network,
    Process,
    Scripts,
    WarmPython,
    write_network,
)


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A model to be spoilt."""
    return Path(shutil.copytree(tiny, tmp_path / "models" / "org" / "mine"))


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
