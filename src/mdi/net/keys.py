"""The ring's keys, the proofs made with them, and the challenges they answer. A key is never shown."""

import functools
import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from mdi.errors import ConfigError
from mdi.installation import program_name
from mdi.net.timeouts import Clock

MIN_KEY_CHARACTERS = 16
NONCE_BYTES = 16
MAC_BYTES = 32
MAKE_KEY = f"`{program_name('starter')} --make-key FILE` makes a good one"

# scrypt, RFC 7914: 32 MiB and 0.1 s on a desktop, once for each program; a guess at the key costs as much. The salt is
# fixed, because nodes share nothing before they share the key.
SCRYPT_SALT = b"mdi-llm ring key"
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**15, 8, 1
SCRYPT_MAX_BYTES = 64 * 2**20


class Key:
    """A secret that the nodes of a ring share. Not a dataclass: `repr` and `asdict` would show it."""

    def __init__(self, text: str, where: str) -> None:
        """Surrounding whitespace is ignored. Raises `ConfigError`, naming `where` it stands, if it is too short."""
        text = text.strip()
        if len(text) < MIN_KEY_CHARACTERS:
            problem = f"the key has fewer than {MIN_KEY_CHARACTERS} characters" if text else "the key is empty"
            raise ConfigError(f"{where}: {problem}; {MAKE_KEY}")
        self._secret = _stretch(text.encode(errors="surrogatepass"))  # an environment may hold any bytes

    def __repr__(self) -> str:
        return "Key(hidden)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.mac(b"hash"))

    @property
    def fingerprint(self) -> str:
        """Enough to tell the keys of two rings apart, and too little to be sure of a guess at one: 16 bits."""
        return self.mac(b"mdi fingerprint")[:2].hex()

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


@functools.lru_cache(maxsize=64)  # a process may hold many nodes
def _stretch(secret: bytes) -> bytes:
    """The secret under all MACs. Whoever hears a MAC can try keys on it, but only some ten per second and core."""
    scrypt = getattr(hashlib, "scrypt", None)
    if scrypt is None:
        raise ConfigError("a ring with a key needs scrypt, which this Python lacks: use one built with OpenSSL 1.1")
    try:
        stretched: bytes = scrypt(
            secret, salt=SCRYPT_SALT, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P, maxmem=SCRYPT_MAX_BYTES, dklen=MAC_BYTES
        )
    except (ValueError, MemoryError) as exc:  # OpenSSL in FIPS mode has no scrypt
        raise ConfigError(f"a ring with a key needs scrypt and 32 MiB for it, and it failed: {exc}") from None
    return stretched


@dataclass(frozen=True)
class Keys:
    """The key of a ring and, while it is being replaced, the one before.

    Two nodes understand each other if they have one key in common, so the nodes of a ring can get a new key one by one.
    """

    current: Key
    old: Key | None = None

    @property
    def fingerprints(self) -> list[str]:
        """See `Key.fingerprint`."""
        return [key.fingerprint for key in (self.current, self.old) if key is not None]

    def prove(self, *parts: bytes) -> bytes:
        """A proof of each key, the current one's first: the peer may know only one of them.

        The second covers the first. So nobody without a key can take the first away, to have two nodes that share the
        new key use the old one.
        """
        first = self.current.mac(*parts)
        return first if self.old is None else first + self.old.mac(*parts, first)

    def match(self, proof: bytes, *parts: bytes) -> Key | None:
        """The key that both sides have, the current one if possible; None where the `proof` over `parts` shows none."""
        first, second = proof[:MAC_BYTES], proof[MAC_BYTES:]
        for key in (self.current, self.old):
            if key is not None and (key.verify(first, *parts) or key.verify(second, *parts, first)):
                return key
        return None


def new_nonce() -> bytes:
    """What only this moment's challenge holds."""
    return secrets.token_bytes(NONCE_BYTES)


class Nonces:
    """The challenges that a node has given out, each good for one answer. Called from HTTP threads.

    The limit is well above the requests that may wait to be answered, so that those of other clients, which are given
    one each, do not push out a nonce before it comes back.
    """

    def __init__(self, limit: int = 8192, lifetime_s: float = 30.0, clock: Clock = time.monotonic) -> None:
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
