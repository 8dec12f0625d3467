"""Whether one node reaches another: what `POST /reach` asks for and answers, as values. JSON in, checked, JSON out."""

import enum
from dataclasses import dataclass
from typing import Any

from mdi.control.checks import is_name, whole
from mdi.errors import ControlError
from mdi.net.sockets import MAX_PORT


class Outcome(enum.Enum):
    """How an attempt to reach a port ended."""

    REACHED = "reached"
    REFUSED = "refused"  # nobody listens there, or a firewall rejects
    TIMED_OUT = "timed out"  # nobody is there, or a firewall drops
    NO_WAY = "no way there"
    UNKNOWN_NAME = "unknown name"
    OTHER_KEY = "other key"
    NOT_A_NODE = "not a node"
    NO_ANSWER = "no answer"
    NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Target:
    """Where a node is to be reached over HTTP."""

    addr: str
    port: int

    @classmethod
    def from_json(cls, data: Any) -> "Target":
        """Check what came over the network; raises `ControlError`."""
        if not isinstance(data, dict) or not is_name(data.get("addr")) or not whole(1, MAX_PORT)(data.get("port")):
            raise ControlError('expected {"addr": address, "port": number}')
        return cls(data["addr"], data["port"])


@dataclass(frozen=True)
class Reach:
    """How well one node reaches another."""

    http: Outcome
    ring: Outcome = Outcome.NOT_TRIED

    @property
    def is_whole(self) -> bool:
        """Whether both ports were reached."""
        return self.http is self.ring is Outcome.REACHED

    def to_json(self) -> dict[str, str]:
        """Plain JSON values."""
        return {"http": self.http.value, "ring": self.ring.value}

    @classmethod
    def from_json(cls, data: Any) -> "Reach":
        """Check what came over the network; raises `ControlError`."""
        try:
            return cls(Outcome(data["http"]), Outcome(data["ring"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise ControlError("not an answer to /reach") from exc
