"""What a starter tells a secondary about a session, as a value: JSON in, checked, JSON out."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from mdi import __version__
from mdi.errors import ControlError
from mdi.formats import DTYPES, MODES, Mode
from mdi.model.span import Span
from mdi.net.sockets import Peer
from mdi.ring.wire import VERSION, Session

FIRST_EPOCH = 1  # of a run


@dataclass(frozen=True)
class SessionSpec:
    """One node's part in a session: the body of `POST /init`, and what the handshake compares."""

    run: int  # whom the node serves: one starter's work from its first session to its last
    epoch: int  # of the sessions of a run, one after the other; a greater one replaces what is left of a lower one
    node: int  # place in the ring; the starter is 0
    n_nodes: int
    starter: Peer  # where the starter answers HTTP
    model: str  # its name, for people
    model_digest: str  # empty where the starter has no manifest
    config: dict[str, Any]  # litgpt's `Config` fields
    span: Span
    chunk_digest: str  # empty where the starter does not know it
    n_slots: int
    context: int
    max_rows: int
    wire_dtype: str
    quantize: Mode | None  # for weights that are not quantized already, unless the node has its own say; None: none
    peer_timeout_s: float
    timeline: bool  # whether to record what the node does when
    nodes_on_host: int  # nodes that share this one's cores
    previous: Peer
    following: Peer
    protocol: int = VERSION
    version: str = __version__

    @property
    def session(self) -> Session:
        """The numbers that every frame is held against."""
        n_embd = self.config["n_embd"]
        return Session(self.epoch, n_embd, self.wire_dtype, self.n_slots, self.context, self.max_rows)

    def facts(self, node: int) -> dict[str, Any]:
        """The handshake of node `node`: both ends must hold the same values."""
        return {
            "version": self.version,
            "run": self.run,
            "node": node,
            "n_nodes": self.n_nodes,
            "model_digest": self.model_digest,
            "wire_dtype": self.wire_dtype,
            "n_slots": self.n_slots,
            "context": self.context,
            "max_rows": self.max_rows,
        }

    @property
    def hello(self) -> dict[str, Any]:
        """What this node says to the next one."""
        return self.facts(self.node)

    @property
    def expected(self) -> dict[str, Any]:
        """What the previous node must say to this one."""
        return self.facts((self.node - 1) % self.n_nodes)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"span": list(self.span)}

    @classmethod
    def from_json(cls, data: Any) -> "SessionSpec":
        """Check what came over the network; raises `ControlError` naming the field."""
        if not isinstance(data, dict):
            raise ControlError("the session is not a JSON object")
        if data.get("protocol") != VERSION or data.get("version") != __version__:
            theirs = _short(f"{data.get('version')} (protocol {data.get('protocol')})")
            raise ControlError(f"the starter runs version {theirs}, this node {__version__} (protocol {VERSION})")
        wanted = {item.name for item in fields(cls)}
        if set(data) != wanted:
            raise ControlError(f"the session has wrong fields: {_short(', '.join(sorted(set(data) ^ wanted)))}")
        for name, check in _CHECKS.items():
            if not check(data[name]):
                raise ControlError(f"the session's {name} is not acceptable: {_short(repr(data[name]))}")
        if data["node"] >= data["n_nodes"]:
            raise ControlError(f"the session's node is not acceptable: {data['node']} of {data['n_nodes']} nodes")
        if data["span"][1] > (n_layer := data["config"]["n_layer"]):
            raise ControlError(f"the session's span is not acceptable: {data['span']} of {n_layer} layers")
        values = data | {
            "span": Span(*data["span"]),
            "starter": Peer(**data["starter"]),
            "previous": Peer(**data["previous"]),
            "following": Peer(**data["following"]),
        }
        return cls(**values)


def _short(text: str) -> str:
    """Whatever a stranger sent, fit to stand in one line."""
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _whole(least: int, most: int) -> Any:
    return lambda value: type(value) is int and least <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1024


def _is_digest(value: Any) -> bool:
    return value == "" or (isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"))


def _is_peer(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"name", "addr", "port"}
        and _is_text(value["name"])
        and _is_text(value["addr"])
        and _whole(1, 65535)(value["port"])
    )


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and list(map(type, value)) == [int, int] and 0 <= value[0] < value[1] <= 10_000


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and all(_whole(1, 10_000_000)(value.get(key)) for key in ("n_embd", "n_layer"))


_CHECKS = {
    "run": _whole(0, 2**64 - 1),
    "epoch": _whole(0, 2**64 - 1),
    "node": _whole(1, 10_000),
    "n_nodes": _whole(2, 10_000),
    "starter": _is_peer,
    "model": _is_text,
    "model_digest": _is_digest,
    "config": _is_config,
    "span": _is_span,
    "chunk_digest": _is_digest,
    "n_slots": _whole(1, 1_000_000),
    "context": _whole(1, 100_000_000),
    "max_rows": _whole(1, 1_000_000),
    "wire_dtype": lambda value: value in DTYPES,
    "quantize": lambda value: value is None or (isinstance(value, str) and value in MODES),
    "peer_timeout_s": lambda value: type(value) in (int, float) and 0.1 <= value <= 86_400,
    "timeline": lambda value: type(value) is bool,
    "nodes_on_host": _whole(1, 10_000),
    "previous": _is_peer,
    "following": _is_peer,
}
