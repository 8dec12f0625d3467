"""One node's part in a session, as a value: JSON in, checked, JSON out."""

from dataclasses import asdict, dataclass
from typing import Any

from mdi import __version__
from mdi.control.checks import (
    Check,
    check_fields,
    is_digest,
    is_dtype,
    is_kv_dtype,
    is_mode,
    is_name,
    is_span,
    is_string,
    optional,
    printable,
    short,
    whole,
)
from mdi.control.protocol import WrongVersion
from mdi.documents import is_flag
from mdi.errors import ControlError
from mdi.formats import KvDtype, Mode
from mdi.ids import Rank
from mdi.model.span import Span
from mdi.net.sockets import MAX_PORT, Peer
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.ring.config import LinkConfig
from mdi.ring.wire import VERSION, Session

FIRST_EPOCH = 1  # of a run


@dataclass(frozen=True)
class SessionSpec:
    """One node's part in a session: the body of `POST /init`, and what the handshake compares."""

    run: int  # the work of one starter from its first session to its last
    epoch: int  # of the sessions of a run, one after the other; a greater one replaces what is left of a lower one
    rank: Rank  # place in the ring; the starter is 0
    n_nodes: int
    names: list[str]  # what the nodes are called, by rank
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
    dtype: str | None  # to compute in, unless the node was started with another; None: what its device computes fast
    quantize: (
        Mode | None
    )  # for weights that are not quantized already, unless the node was started with another; None: none
    kv_dtype: KvDtype | None  # unless the node was started with another; None: as exact as the weights
    peer_timeout_s: float
    timeline: bool  # whether to record what the node does when
    nodes_on_host: int  # nodes that share this one's cores
    predecessor: Peer
    successor: Peer
    protocol: int = VERSION
    version: str = __version__

    @property
    def session(self) -> Session:
        """The numbers that every frame is held against."""
        n_embd = self.config["n_embd"]
        return Session(self.epoch, n_embd, self.wire_dtype, self.n_slots, self.context, self.max_rows)

    def facts(self, rank: Rank) -> dict[str, Any]:
        """What the node of `rank` says in its HELLO: both ends must hold the same values."""
        return {
            "version": self.version,
            "run": self.run,
            "rank": rank,
            "n_nodes": self.n_nodes,
            "model_digest": self.model_digest,
            "wire_dtype": self.wire_dtype,
            "n_slots": self.n_slots,
            "context": self.context,
            "max_rows": self.max_rows,
        }

    @property
    def hello(self) -> dict[str, Any]:
        """The facts for the successor."""
        return self.facts(self.rank)

    @property
    def expected(self) -> dict[str, Any]:
        """The facts that the predecessor must hold."""
        return self.facts(self.predecessor_rank)

    @property
    def predecessor_rank(self) -> Rank:
        """The rank of the node that connects to this one."""
        return Rank((self.rank - 1) % self.n_nodes)

    def link_config(self, source_port: int, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> LinkConfig:
        """How this node opens its two edges of the ring; its connection to the successor leaves from `source_port`."""
        # As many messages travel as there are nodes. Before each of them every slot may be forked anew, even one whose
        # rows travel: a cancelled sample's slot is given away before they are back. So hundreds of slots need hundreds
        # of entries. At the end come FAULT and GOODBYE.
        capacity = self.n_nodes * (1 + self.n_slots) + 2
        return LinkConfig(
            session=self.session,
            predecessor=self.predecessor,
            successor=self.successor,
            expected=self.expected,
            hello=self.hello,
            returning=self.rank == 0,
            capacity=capacity,
            peer_timeout_s=self.peer_timeout_s,
            source_port=source_port,
            timeouts=timeouts,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"span": list(self.span)}

    @classmethod
    def from_json(cls, data: Any) -> "SessionSpec":
        """Check what came over the network; raises `ControlError` naming the field."""
        if not isinstance(data, dict):
            raise ControlError("the session is not a JSON object")
        if data.get("protocol") != VERSION or data.get("version") != __version__:
            theirs = short(f"{data.get('version')} (protocol {data.get('protocol')})")
            raise WrongVersion(f"the starter runs version {theirs}, this node {__version__} (protocol {VERSION})")
        check_fields("the session", data, cls, _CHECKS)
        if data["rank"] >= data["n_nodes"]:
            raise ControlError(f"the session's rank is not acceptable: {data['rank']} of {data['n_nodes']} nodes")
        if len(data["names"]) != data["n_nodes"]:
            raise ControlError(f"the session's names is not acceptable: there are {data['n_nodes']} nodes")
        if data["span"][1] > (n_layer := data["config"]["n_layer"]):
            raise ControlError(f"the session's span is not acceptable: {data['span']} of {n_layer} layers")
        values = data | {
            "span": Span(*data["span"]),
            "model": printable(data["model"]),
            "starter": Peer(**data["starter"]),
            "predecessor": Peer(**data["predecessor"]),
            "successor": Peer(**data["successor"]),
        }
        return cls(**values)


def is_peer(value: Any) -> bool:
    """Where a node listens, as JSON."""
    return (
        isinstance(value, dict)
        and set(value) == {"name", "addr", "port"}
        and is_name(value["name"])
        and is_name(value["addr"])
        and whole(1, MAX_PORT)(value["port"])
    )


def is_config(value: Any) -> bool:
    """The fields of a configuration, as JSON; the model itself is checked where it is built."""
    return isinstance(value, dict) and all(whole(1, 10_000_000)(value.get(key)) for key in ("n_embd", "n_layer"))


_CHECKS: dict[str, Check] = {
    "run": whole(0, 2**64 - 1),
    "epoch": whole(0, 2**64 - 1),
    "rank": whole(1, 10_000),
    "n_nodes": whole(2, 10_000),
    "names": lambda value: isinstance(value, list) and all(map(is_name, value)),
    "starter": is_peer,
    "model": is_string,
    "model_digest": is_digest,
    "config": is_config,
    "span": is_span,
    "chunk_digest": is_digest,
    "n_slots": whole(1, 1_000_000),
    "context": whole(1, 100_000_000),
    "max_rows": whole(1, 1_000_000),
    "wire_dtype": is_dtype,
    "dtype": optional(is_dtype),
    "quantize": optional(is_mode),
    "kv_dtype": optional(is_kv_dtype),
    "peer_timeout_s": lambda value: type(value) in (int, float) and 0.1 <= value <= 86_400,
    "timeline": is_flag,
    "nodes_on_host": whole(1, 10_000),
    "predecessor": is_peer,
    "successor": is_peer,
}
