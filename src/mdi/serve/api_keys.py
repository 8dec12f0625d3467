"""API keys: who may use a server."""

import hashlib
import hmac
from collections.abc import Iterable

from mdi.errors import ConfigError

SCHEME = "Bearer "
MIN_CHARS = 8


class ApiKeys:
    """The keys that are accepted; without any, everybody may use the server."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises `ConfigError` for one that no header can carry, or that is too short."""
        keys = [key.strip() for key in keys]
        for key in keys:
            if len(key) < MIN_CHARS or not (key.isascii() and key.isprintable()) or " " in key:
                raise ConfigError(f"an API key has at least {MIN_CHARS} characters of ASCII, and no blanks")
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: str) -> bool:
        """Whether the header `Authorization` has one of them: in a time that depends on none of them."""
        if not self._digests:
            return True
        given = _digest(authorization.removeprefix(SCHEME))
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return authorization.startswith(SCHEME) and any(found)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
