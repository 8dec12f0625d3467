"""A node, its HTTP server and a client of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import mdi.control.client
import mdi.control.routes
from mdi.checkpoint.cache import ChunkCache
from mdi.control.client import ControlClient
from mdi.control.routes import ControlServer
from mdi.net.timeouts import Timeouts
from support.control import CHUNK, HOST, FakeNode, sha256_of


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(ChunkCache(tmp_path / "cache", sha256_of))


@pytest.fixture
def server(node: FakeNode) -> Iterator[ControlServer]:
    server = ControlServer(HOST, 0, node)
    server.start()
    yield server
    server.close()


@pytest.fixture
def lively(node: FakeNode) -> Iterator[ControlServer]:
    """A server that gives many signs of life."""
    server = ControlServer(HOST, 0, node, timeouts=Timeouts(heartbeat_s=0.02))
    server.start()
    yield server
    server.close()


@pytest.fixture
def client(server: ControlServer) -> ControlClient:
    return ControlClient("secondary 0", HOST, server.port)


@pytest.fixture
def chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chunk that takes six uploads."""
    for module in (mdi.control.routes, mdi.control.client):
        monkeypatch.setattr(module, "UPLOAD_BYTES", 1000)
    path = tmp_path / "chunk.pth"
    path.write_bytes(CHUNK)
    return path
