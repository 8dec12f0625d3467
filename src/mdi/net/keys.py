"""The ring's shared key, the proofs made with it, and the challenges they answer. The key is never shown."""

import hashlib
import hmac
import os
import secrets
import threading
import time
from collections import OrderedDict
from pathlib import Path

from mdi.errors import ConfigError
from mdi.net.timeouts import Clock

KEY_VARIABLE, KEY_FILE_VARIABLE = "MDI_KEY", "MDI_KEY_FILE"
MIN_KEY_CHARACTERS = 16
MAX_KEY_FILE_BYTES = 4096
NONCE_BYTES = 16
MAC_BYTES = 32


class Key:
    """The secret that the nodes of a ring share. Not a dataclass: `repr` and `asdict` would show it."""

    def __init__(self, text: str, where: str) -> None:
        """Surrounding whitespace is ignored. Raises `ConfigError`, naming `where` it stands, if it is too short."""
        text = text.strip()
        if len(text) < MIN_KEY_CHARACTERS:
            problem = f"the key has fewer than {MIN_KEY_CHARACTERS} characters" if text else "the key is empty"
            raise ConfigError(f"{where}: {problem}; `openssl rand -hex 32` makes a good one")
        self._secret = text.encode(errors="surrogatepass")  # an environment may hold any bytes

    def __repr__(self) -> str:
        return "Key(hidden)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.mac(b"hash"))

    def mac(self, *parts: bytes) -> bytes:
        """The proof of knowing the key, over `parts` and their lengths: other parts that join to the same differ."""
        digest = hmac.new(self._secret, digestmod=hashlib.sha256)
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()

    def verify(self, mac: bytes, *parts: bytes) -> bool:
        """Whether `mac` is the proof over `parts`; takes as long for a wrong one as for the right one."""
        return hmac.compare_digest(mac, self.mac(*parts))


def key_from_environment() -> Key | None:
    """The key that `MDI_KEY` holds or `MDI_KEY_FILE` names; None where neither is set."""
    text, path = os.environ.get(KEY_VARIABLE), os.environ.get(KEY_FILE_VARIABLE)
    if text is not None and path is not None:
        raise ConfigError(f"{KEY_VARIABLE} and {KEY_FILE_VARIABLE} both give a key: set one of them")
    if path is not None:
        return key_from_file(Path(path), KEY_FILE_VARIABLE)
    return None if text is None else Key(text, KEY_VARIABLE)


def key_from_file(path: Path, where: str) -> Key:
    """The key in a file; errors name `where` the file is named. They quote nothing of its content."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEY_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:  # a null byte in a path is a ValueError
        reason = (exc.strerror if isinstance(exc, OSError) else None) or "not a path"
        raise ConfigError(f"{where}: {path} cannot be read: {reason}") from exc
    if len(content) > MAX_KEY_FILE_BYTES:
        raise ConfigError(f"{where}: {path} has more than {MAX_KEY_FILE_BYTES} bytes: is it a key?")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: {path} is not UTF-8 text") from None  # its bytes would stand in the chain
    return Key(text, f"{where}: {path}")


def new_nonce() -> bytes:
    """What only this moment's challenge holds."""
    return secrets.token_bytes(NONCE_BYTES)


class Nonces:
    """The challenges that a node has given out, each good for one answer. Called from HTTP threads."""

    def __init__(self, limit: int = 512, lifetime_s: float = 30.0, clock: Clock = time.monotonic) -> None:
        self._limit, self._lifetime_s, self._clock = limit, lifetime_s, clock
        self._deadlines_s: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()

    def issue(self) -> bytes:
        """A new one; beyond the limit the oldest is forgotten."""
        nonce = new_nonce()
        with self._lock:
            self._deadlines_s[nonce] = self._clock() + self._lifetime_s
            while len(self._deadlines_s) > self._limit:
                self._deadlines_s.popitem(last=False)
        return nonce

    def redeem(self, nonce: bytes) -> bool:
        """Whether it was given out, lately, and never redeemed before."""
        with self._lock:
            deadline_s = self._deadlines_s.pop(nonce, None)
        return deadline_s is not None and self._clock() < deadline_s
