"""What a node is asked to measure, and what it answers, as values: JSON in, checked, JSON out.

{"stage": StageRequest}  ->  {"stage": StageTimes}
{"link": LinkRequest}    ->  {"listening": true} of the node that echoes, {"link": LinkTimes} of the one that times
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from mdi import __version__
from mdi.control.checks import (
    Check,
    check_fields,
    is_dtype,
    is_kv_dtype,
    is_mode,
    is_seconds,
    is_string,
    optional,
    printable,
    short,
    whole,
)
from mdi.control.protocol import WrongVersion
from mdi.control.session import is_config, is_peer
from mdi.documents import is_flag
from mdi.errors import ControlError
from mdi.formats import KvDtype, Mode
from mdi.ids import Rank
from mdi.net.sockets import Peer
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.ring.config import LinkConfig
from mdi.ring.wire import DTYPE_BYTES, Session

MAX_TIMES = 64  # of one measurement
PROBE_BYTES = 1 << 20  # of rows in the largest frame that a link is measured with
LINK_SILENCE_S = 5.0  # after which a link that is measured counts as lost


@dataclass(frozen=True)
class StageRequest:
    """What a node is to time: layers of a model's shape, and the head where the node would be the starter."""

    config: dict[str, Any]  # litgpt's `Config` fields
    stored_dtype: str  # of the weights in the model's file
    stored: Mode  # how they are quantized there
    dtype: str | None  # to compute in, as in `SessionSpec`
    quantize: Mode | None  # as in `SessionSpec`
    kv_dtype: KvDtype | None  # as in `SessionSpec`
    has_head: bool
    nodes_on_host: int  # nodes that share this one's cores
    again: bool = False  # even if the same was measured before
    version: str = __version__

    @classmethod
    def from_json(cls, data: Any) -> "StageRequest":
        """Check what came over the network; raises `ControlError` naming the field."""
        return cls(**_checked_fields(cls, data, _STAGE_CHECKS))


class LayerTime(NamedTuple):
    """Seconds that a layer takes for `rows` rows, at the end of sequences of `context` positions."""

    rows: int
    context: int
    seconds: float


class HeadTime(NamedTuple):
    """Seconds that head and sampling take for `rows` rows."""

    rows: int
    seconds: float


@dataclass(frozen=True)
class StageTimes:
    """What a node has timed."""

    device: str
    dtype: str  # that it computed in
    mode: Mode  # of the weights
    kv_dtype: KvDtype | None  # that kernels were asked for; None: as exact as the weights
    threads: int
    has_kernels: bool  # native ones, as in `NodeStatus`
    layers: tuple[LayerTime, ...]  # of each layer
    head: tuple[HeadTime, ...]  # empty where it was not asked for
    message_s: float  # for a message besides, however few layers there are
    frame_s: float  # to receive it, and to send the next one
    disk_read_bytes_s: float | None  # of the disk where chunks are kept; None: unknown
    disk_write_bytes_s: float | None
    free_memory_bytes: int | None  # for a session; None: unknown
    memory_limit_bytes: int | None = None  # that a session may take at most; None: what is free

    def slowed(self, factor: float) -> "StageTimes":
        """The same of a node that takes `factor` times as long to compute."""
        layers = tuple(time._replace(seconds=factor * time.seconds) for time in self.layers)
        head = tuple(time._replace(seconds=factor * time.seconds) for time in self.head)
        message_s, frame_s = factor * self.message_s, factor * self.frame_s
        return replace(self, layers=layers, head=head, message_s=message_s, frame_s=frame_s)

    @classmethod
    def from_json(cls, data: Any) -> "StageTimes":
        """Check what came over the network; raises `ControlError` naming the field."""
        values = _checked_fields(cls, data, _TIMES_CHECKS)
        return cls(
            **values
            | {
                "layers": tuple(LayerTime(*time) for time in values["layers"]),
                "head": tuple(HeadTime(*time) for time in values["head"]),
                "device": printable(values["device"]),
            }
        )


@dataclass(frozen=True)
class LinkRequest:
    """One end of a link that is to be timed: a ring of two nodes, of which rank 0 sends and rank 1 echoes."""

    run: int
    rank: Rank
    peer: Peer  # where the other node listens for its predecessor
    n_embd: int
    wire_dtype: str
    version: str = __version__

    @property
    def row_bytes(self) -> int:
        """Of a row on the wire."""
        return self.n_embd * DTYPE_BYTES[self.wire_dtype]

    @property
    def max_rows(self) -> int:
        """Of the largest frame."""
        return max(2, PROBE_BYTES // self.row_bytes)

    def link_config(self, source_port: int, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> LinkConfig:
        """How this node opens its two edges."""
        session = Session(1, self.n_embd, self.wire_dtype, 1, self.max_rows, self.max_rows)
        return LinkConfig(
            session=session,
            predecessor=self.peer,
            successor=self.peer,
            expected=self._facts(Rank(1 - self.rank)),
            hello=self._facts(self.rank),
            returning=self.rank == 0,
            capacity=4,
            peer_timeout_s=LINK_SILENCE_S,
            source_port=source_port,
            timeouts=timeouts,
        )

    def _facts(self, rank: Rank) -> dict[str, Any]:
        own = {"n_embd": self.n_embd, "wire_dtype": self.wire_dtype, "measures": "link"}
        return {"version": self.version, "run": self.run, "rank": rank, **own}

    @classmethod
    def from_json(cls, data: Any) -> "LinkRequest":
        """Check what came over the network; raises `ControlError` naming the field."""
        values = _checked_fields(cls, data, _LINK_CHECKS)
        return cls(**values | {"peer": Peer(**values["peer"]), "rank": Rank(values["rank"])})


@dataclass(frozen=True)
class LinkTimes:
    """What frames take between two nodes, there and back."""

    round_trip_s: float  # of a single row
    bytes_s: float  # from the node that timed to the other
    back_bytes_s: float

    @classmethod
    def from_json(cls, data: Any) -> "LinkTimes":
        """Check what came over the network; raises `ControlError` naming the field."""
        return cls(**_checked_fields(cls, data, _LINK_TIMES_CHECKS))


@dataclass(frozen=True)
class Listening:
    """The node waits for the other end of a link, and will echo."""


MeasureRequest = StageRequest | LinkRequest
Measured = StageTimes | LinkTimes | Listening


def request_to_json(request: MeasureRequest) -> dict[str, Any]:
    """The body of `POST /measure`."""
    return {"stage" if isinstance(request, StageRequest) else "link": asdict(request)}


def request_from_json(data: Any) -> MeasureRequest:
    """Check what came over the network; raises `ControlError`."""
    match data:
        case {"stage": stage} if len(data) == 1:
            return StageRequest.from_json(stage)
        case {"link": link} if len(data) == 1:
            return LinkRequest.from_json(link)
    raise ControlError(f"not a request to measure a stage or a link: {short(repr(data))}")


def measured_to_json(measured: Measured) -> dict[str, Any]:
    """The body of the answer."""
    match measured:
        case StageTimes():
            return {"stage": asdict(measured)}
        case LinkTimes():
            return {"link": asdict(measured)}
        case Listening():
            return {"listening": True}


def measured_from_json(data: Any) -> Measured:
    """Check what came over the network; raises `ControlError`."""
    match data:
        case {"stage": stage}:
            return StageTimes.from_json(stage)
        case {"link": link}:
            return LinkTimes.from_json(link)
        case {"listening": True}:
            return Listening()
    raise ControlError(f"not an answer to /measure: {short(repr(data))}")


def _checked_fields(kind: type, data: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    """The fields of a value of `kind`, all of them and no others."""
    what = kind.__name__
    if not isinstance(data, dict):
        raise ControlError(f"{what} is not a JSON object")
    if "version" in checks and data.get("version") != __version__:
        raise WrongVersion(f"the caller runs version {short(str(data.get('version')))}, this node {__version__}")
    check_fields(what, data, kind, checks)
    return data


def _are_times(n_numbers: int) -> Check:
    """A list of lists, each of whole numbers and, at its end, seconds."""

    def is_time(value: Any) -> bool:
        is_row = isinstance(value, list | tuple) and len(value) == n_numbers + 1
        return is_row and all(map(whole(1, 1_000_000), value[:-1])) and is_seconds(value[-1]) and value[-1] > 0

    return lambda value: isinstance(value, list | tuple) and len(value) <= MAX_TIMES and all(map(is_time, value))


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e15  # bytes a second


def _at_least_one(check: Check) -> Check:
    return lambda value: check(value) and len(value) > 0


_STAGE_CHECKS: dict[str, Check] = {
    "config": is_config,
    "stored_dtype": is_dtype,
    "stored": is_mode,
    "dtype": optional(is_dtype),
    "quantize": optional(is_mode),
    "kv_dtype": optional(is_kv_dtype),
    "has_head": is_flag,
    "nodes_on_host": whole(1, 10_000),
    "again": is_flag,
    "version": is_string,
}
_TIMES_CHECKS: dict[str, Check] = {
    "device": is_string,
    "dtype": is_dtype,
    "mode": is_mode,
    "kv_dtype": optional(is_kv_dtype),
    "threads": whole(1, 10_000),
    "has_kernels": is_flag,
    "layers": _at_least_one(_are_times(2)),
    "head": _are_times(1),
    "message_s": is_seconds,
    "frame_s": is_seconds,
    "disk_read_bytes_s": optional(_is_rate),
    "disk_write_bytes_s": optional(_is_rate),
    "free_memory_bytes": optional(whole(0, 2**63 - 1)),
    "memory_limit_bytes": optional(whole(0, 2**63 - 1)),
}
_LINK_CHECKS: dict[str, Check] = {
    "run": whole(0, 2**64 - 1),
    "rank": whole(0, 1),
    "peer": is_peer,
    "n_embd": whole(1, 10_000_000),
    "wire_dtype": is_dtype,
    "version": is_string,
}
_LINK_TIMES_CHECKS: dict[str, Check] = {
    "round_trip_s": is_seconds,
    "bytes_s": _is_rate,
    "back_bytes_s": _is_rate,
}
