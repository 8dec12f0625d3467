"""What a node answers to `GET /` and to `POST /init`, as values: JSON in, checked, JSON out.

Keys that are not known here are ignored, so a newer node can be asked; a known one of a wrong type is a `ControlError`.
"""

import enum
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar

from mdi.control.checks import (
    Check,
    check_values,
    is_dtype,
    is_kv_dtype,
    is_mode,
    is_name,
    is_seconds,
    is_span,
    is_string,
    optional,
    printable,
    short,
    whole,
)
from mdi.documents import is_flag
from mdi.errors import ControlError
from mdi.formats import KvDtype, Mode
from mdi.ids import Rank
from mdi.model.span import Span
from mdi.net.sockets import MAX_PORT
from mdi.strings import format_bytes
from mdi.work import Work

MAX_ERROR_CHARACTERS = 4096
_MAX_TIME_S = 1e12


class NodeState(enum.Enum):
    """What a node is doing."""

    # a secondary
    IDLE = "idle"  # in no session
    LOADING = "loading"
    READY = "ready"  # waits for its ring to close
    # both
    RUNNING = "running"
    # a starter
    STARTING = "starting"  # no ring has been formed yet
    RECOVERING = "recovering"  # the ring broke and is being formed again
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """The status of a node of either role."""

    role: ClassVar[str]
    checks: ClassVar[Mapping[str, Check]]

    version: str
    state: NodeState
    device: str
    dtype: str  # that it computes in
    own_dtype: str | None  # that it was started with; None: as the starter says, else what the device computes fast
    quantize: Mode | None  # that it was started with; None: as the starter or the chunk has it
    kv_dtype: KvDtype | None = None  # that it was started with; None: as the starter says, else as exact as the weights
    weights: Mode | None = None  # how the weights that it has loaded are held; None: it has loaded none
    weights_bytes: int = 0
    cache_bytes: int = 0  # of keys and values, in all slots
    has_kernels: bool = False  # for its CPU, to compute the models with that they support
    run: int | None
    epoch: int | None
    model: str | None
    span: Span | None
    peak_memory_bytes: int
    free_memory_bytes: int | None  # for a session; None: unknown
    memory_limit_bytes: int | None = None  # that a session may take at most; None: what is free
    memory_bytes: int | None = None  # resident now. What is None here and below, an earlier version does not tell
    numerics: str | None = None  # the name of its arithmetic; None also where it has loaded nothing
    waiting: int | None = None  # messages that have arrived and are not computed, or are computed and not sent
    work: Work | None = None  # since it was started
    name: str | None = None  # of its machine
    boot: str | None = None  # what tells its machine from others of that name, since it was switched on
    process: str | None = None  # a random name of this process, by which it is known at whatever address
    ring_port: int | None = None  # that it listens on for its predecessor
    time_s: float | None = None  # by its clock, since 1970
    # Of the request: the address of whoever asks, as the node sees it, and the one by which it was reached.
    caller: str | None = field(default=None, compare=False)
    called: str | None = field(default=None, compare=False)

    @property
    def computes(self) -> str:
        """What runs on it: `layers 4 to 8, bfloat16 on cpu, int8 weights of 269.00 MB`."""
        parts = [str(self.span)] if self.span is not None else []
        parts.append(f"{self.dtype} on {self.device}")
        if self.weights is not None:
            kind = "weights" if self.weights == "none" else f"{self.weights} weights"
            parts.append(f"{kind} of {format_bytes(self.weights_bytes)}")
        return ", ".join(parts)

    @property
    def precision(self) -> str:
        """What it computes with: `bfloat16`, or `bfloat16, int8 weights`."""
        return self.dtype if self.weights in (None, "none") else f"{self.dtype}, {self.weights} weights"

    @property
    def memory(self) -> str:
        """`1.07 GB at most so far, 8.59 GB free, limited to 3.00 GB`"""
        return ", ".join([f"{format_bytes(self.peak_memory_bytes)} at most so far", *self._room])

    @property
    def room(self) -> str:
        """`8.59 GB free, limited to 3.00 GB`; `-` where it tells nothing."""
        return ", ".join(self._room) or "-"

    @property
    def available_bytes(self) -> int | None:
        """What a session may take: what is free, as far as the node's limit lets it have that. None: unknown."""
        known = [n_bytes for n_bytes in (self.free_memory_bytes, self.memory_limit_bytes) if n_bytes is not None]
        return min(known, default=None)

    @property
    def _room(self) -> list[str]:
        free, limit = self.free_memory_bytes, self.memory_limit_bytes
        parts = [] if free is None else [f"{format_bytes(free)} free"]
        return parts if limit is None else [*parts, f"limited to {format_bytes(limit)}"]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        span, work = self.span and list(self.span), self.work and self.work._asdict()
        return {"role": self.role} | asdict(self) | {"state": self.state.value, "span": span, "work": work}

    @staticmethod
    def from_json(data: Any) -> "NodeStatus":
        """Check what came over the network; raises `ControlError` naming the field."""
        role = data.get("role") if isinstance(data, dict) else None
        for kind in (SecondaryStatus, StarterStatus):
            if role == kind.role:
                return kind(**_checked(kind, data))
        raise ControlError(f"not the status of a node of a known role: {short(repr(data))}")


_SIZE = whole(0, 2**63 - 1)
_RUN_NUMBER = optional(whole(0, 2**64 - 1))


def _is_work(value: Any) -> bool:
    """All counters of `Work`; others may come with a later version."""
    seconds = ("compute_s", "transfer_s", "idle_s")
    return isinstance(value, dict) and all(map(is_seconds, map(value.get, seconds))) and _SIZE(value.get("rows"))


_NODE_CHECKS: dict[str, Check] = {
    "version": is_string,
    "state": lambda value: isinstance(value, str) and value in {state.value for state in NodeState},
    "device": is_string,
    "dtype": is_dtype,
    "own_dtype": optional(is_dtype),
    "quantize": optional(is_mode),
    "kv_dtype": optional(is_kv_dtype),
    "weights": optional(is_mode),
    "weights_bytes": _SIZE,
    "cache_bytes": _SIZE,
    "has_kernels": is_flag,
    "run": _RUN_NUMBER,
    "epoch": _RUN_NUMBER,
    "model": optional(is_string),
    "span": optional(is_span),
    "peak_memory_bytes": _SIZE,
    "free_memory_bytes": optional(_SIZE),
    "memory_limit_bytes": optional(_SIZE),
    "memory_bytes": optional(_SIZE),
    "numerics": optional(is_string),
    "waiting": optional(_SIZE),
    "work": optional(_is_work),
    "name": optional(is_string),
    "boot": optional(is_string),
    "process": optional(is_string),
    "ring_port": optional(whole(1, MAX_PORT)),
    "time_s": optional(lambda value: type(value) in (int, float) and abs(value) < _MAX_TIME_S),
    "caller": optional(is_name),
    "called": optional(is_name),
}


@dataclass(frozen=True, kw_only=True)
class SecondaryStatus(NodeStatus):
    """The status of a secondary. What belongs to a session is None while there is none."""

    role: ClassVar[str] = "secondary"
    checks: ClassVar[Mapping[str, Check]] = _NODE_CHECKS | {
        "starter": optional(is_string),
        "rank": optional(whole(0, 10_000)),
        "wire_dtype": optional(is_dtype),
        "messages": _SIZE,
        "received": _SIZE,
        "computed": _SIZE,
        "sent": _SIZE,
        "computing_s": optional(is_seconds),
        "last_error": lambda value: isinstance(value, str) and len(value) <= MAX_ERROR_CHARACTERS,
    }

    starter: str | None  # where its starter answers HTTP, as `addr:port`
    rank: Rank | None
    wire_dtype: str | None
    messages: int  # computed since it was started
    last_error: str  # why its last session ended, until another runs; empty: it did not fail
    # Messages with rows in the session, and for how long one has been computed; None: the node waits for the next one.
    received: int = 0
    computed: int = 0
    sent: int = 0
    computing_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with an error that the other side accepts."""
        return super().to_json() | {"last_error": self.last_error[:MAX_ERROR_CHARACTERS]}


@dataclass(frozen=True, kw_only=True)
class StarterStatus(NodeStatus):
    """The status of a starter."""

    role: ClassVar[str] = "starter"
    checks: ClassVar[Mapping[str, Check]] = _NODE_CHECKS | {
        "members": lambda value: isinstance(value, list) and len(value) <= 10_000 and all(map(is_string, value)),
        "samples": _SIZE,
        "tokens": _SIZE,
        "recoveries": _SIZE,
    }

    members: list[str]  # names of the nodes in the ring, by rank
    samples: int
    tokens: int
    recoveries: int


def _checked(kind: type[NodeStatus], data: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for a status of that kind."""
    may_lack = {item.name for item in fields(kind) if item.default is not MISSING}  # an earlier version does
    checks = {name: check for name, check in kind.checks.items() if name in data or name not in may_lack}
    check_values("the status", data, checks)
    values = {name: printable(data[name], MAX_ERROR_CHARACTERS) for name in checks}
    span, work = values["span"], values.get("work")
    return values | {
        "state": NodeState(values["state"]),
        "span": None if span is None else Span(*span),
        "work": None if work is None else Work(*(work[name] for name in Work._fields)),
    }


@dataclass(frozen=True)
class Ready:
    """The node has loaded its span, has empty slots, and waits for its ring to close."""

    status: SecondaryStatus


@dataclass(frozen=True)
class NeedsChunk:
    """The node has none of its weights, or a part of them; it is idle again until they were sent."""

    held_bytes: int


InitAnswer = Ready | NeedsChunk


def init_answer_to_json(answer: InitAnswer) -> dict[str, Any]:
    """`{"ready": status}` or `{"needs_chunk": {"held_bytes": n}}`."""
    match answer:
        case Ready(status):
            return {"ready": status.to_json()}
        case NeedsChunk(held_bytes):
            return {"needs_chunk": {"held_bytes": held_bytes}}


def init_answer_from_json(data: Any) -> InitAnswer:
    """Check what came over the network; raises `ControlError`."""
    match data:
        case {"ready": status}:
            if isinstance(found := NodeStatus.from_json(status), SecondaryStatus):
                return Ready(found)
        case {"needs_chunk": {"held_bytes": held_bytes}} if _SIZE(held_bytes):
            return NeedsChunk(held_bytes)
    raise ControlError(f"not an answer to /init: {short(repr(data))}")
