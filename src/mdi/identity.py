"""What this machine and this process are known by. It needs nothing installed: whatever writes files imports it."""

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str | None:
    """What Linux calls this machine from one start to the next; None elsewhere. Machines of one image differ in it."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Identity:
    """What a node is known by, at whatever address."""

    name: str  # of its machine
    boot: str | None  # see `boot_id`
    process: str  # a random name

    @classmethod
    def new(cls) -> "Identity":
        """That of a node which begins on this machine."""
        return cls(socket.gethostname(), boot_id(), secrets.token_hex(8))
