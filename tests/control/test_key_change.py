"""HTTP between nodes while a ring gets another key."""

import contextlib
from pathlib import Path

import pytest

from mdi.checkpoint.cache import ChunkCache
from mdi.control.client import ControlClient
from mdi.control.routes import ControlServer
from mdi.errors import ControlError
from mdi.net.access import Access
from mdi.net.keys import Key, Keys
from support.control import HOST, FakeNode, sha256_of

OLD, NEW = Key("correct horse battery staple", "test"), Key("another horse, another staple", "test")
BEFORE, MEANWHILE, AFTER = Keys(OLD), Keys(NEW, OLD), Keys(NEW)


@pytest.mark.parametrize("server_keys", [BEFORE, MEANWHILE, AFTER], ids=["before", "meanwhile", "after"])
@pytest.mark.parametrize("client_keys", [BEFORE, MEANWHILE, AFTER], ids=["before", "meanwhile", "after"])
def test_a_client_and_a_node_with_a_key_in_common_understand_each_other(
    client_keys: Keys, server_keys: Keys, tmp_path: Path
) -> None:
    node = FakeNode(ChunkCache(tmp_path / "cache", sha256_of))
    with contextlib.closing(ControlServer(HOST, 0, node, Access(server_keys))) as server:
        server.start()
        client = ControlClient("secondary 0", HOST, server.port, Access(client_keys))
        if MEANWHILE in (client_keys, server_keys) or client_keys == server_keys:
            assert client.status()
            client.release(3)
        else:
            with pytest.raises(ControlError, match="different keys"):
                client.status()
