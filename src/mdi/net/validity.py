"""How long a certificate is valid, and what the clock of this machine says to that."""

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DAY_S = 24 * 3600.0
NOTICE_S = 30 * DAY_S  # before its end a certificate is warned of


def utc(moment_s: float) -> str:
    """A moment, in seconds since 1970, as the messages show it."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment_s))


@dataclass(frozen=True)
class Validity:
    """From when to when a certificate is valid, in seconds since 1970."""

    begins_s: float
    ends_s: float

    @classmethod
    def of(cls, certificate: Mapping[str, Any]) -> "Validity":
        """That of a certificate as `ssl` decodes it."""
        begins, ends = certificate["notBefore"], certificate["notAfter"]
        return cls(ssl.cert_time_to_seconds(begins), ssl.cert_time_to_seconds(ends))

    def __str__(self) -> str:
        return f"valid from {utc(self.begins_s)} to {utc(self.ends_s)}"

    def includes(self, moment_s: float) -> bool:
        """Whether the certificate is valid at a moment."""
        return self.begins_s <= moment_s <= self.ends_s

    def compared(self, now_s: float) -> str:
        """Both times, and what they mean where they do not agree."""
        times = f"{self}, and this machine's clock says {utc(now_s)}"
        if now_s < self.begins_s:
            return f"{times}: it is not valid yet, or this clock is slow"
        if now_s > self.ends_s:
            return f"{times}: it has ended, or this clock is fast"
        return times

    def days_left(self, now_s: float) -> int:
        """Whole days until the end."""
        return int((self.ends_s - now_s) // DAY_S)
