"""A node asks a starter for a place in its ring: what `POST /join` asks for and answers. JSON in, checked, JSON out."""

from dataclasses import asdict, dataclass
from typing import Any

from mdi import __version__
from mdi.control.checks import is_name, is_string, short, whole
from mdi.control.protocol import WrongVersion
from mdi.errors import ControlError
from mdi.net.sockets import MAX_PORT


@dataclass(frozen=True)
class JoinRequest:
    """Where the node answers HTTP, at the address that it asks from."""

    port: int
    version: str = __version__

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> "JoinRequest":
        """Check what came over the network; raises `ControlError`."""
        if not isinstance(data, dict) or not is_string(data.get("version")):
            raise ControlError('expected {"port": number, "version": text}')
        if data["version"] != __version__:
            raise WrongVersion(f"the node runs version {short(data['version'])}, this starter {__version__}")
        if not whole(1, MAX_PORT)(data.get("port")):
            raise ControlError(f"the port is not acceptable: {short(repr(data.get('port')))}")
        return cls(data["port"])


def name_from_json(data: Any) -> str:
    """What the node is called in the ring, as the starter answers. Raises `ControlError`."""
    if not isinstance(data, dict) or not is_name(data.get("name")):
        raise ControlError("not an answer to /join")
    return str(data["name"])
