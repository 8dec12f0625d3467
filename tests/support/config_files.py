"""Nodes-config files, written by hand, and the one line that a mistake in them gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mdi.errors import ConfigError
from mdi.net.tls import Tls

Json = dict[str, Any]


def node_json(http_port: int = 8088, port_in: int = 5088, port_out: int = 5089, addr: str = "127.0.0.1") -> Json:
    return {
        "addr": addr,
        "communication": {"port": http_port},
        "inference": {"port_in": port_in, "port_out": port_out},
    }


def network_json() -> Json:
    secondaries = [node_json(8089, 5090, 5091), node_json(8090, 5092, 5093)]
    for secondary in secondaries:
        secondary["communication"]["starter_addr"] = "127.0.0.1"
    return {"nodes": {"starter": node_json(), "secondary": secondaries}}


def written(tmp_path: Path, data: object) -> Path:
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


def files_of(folder: Path) -> Tls:
    return Tls(folder / "node.pem", folder / "node.key", folder / "ca.pem")


def without_key(*path: str) -> Callable[[Any], Any]:
    """A change of JSON data: the key at the end of `path` is gone."""

    def change(data: Any) -> Any:
        place = data
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        return data

    return change


def with_key(value: Any, *path: str) -> Callable[[Any], Any]:
    """A change of JSON data: the key at the end of `path` is `value`."""

    def change(data: Any) -> Any:
        place = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return data

    return change
