"""The signatures of HTTP between nodes that share a key. No HTTP library: headers in, headers out.

A client asks for a nonce first and signs its request with it; the node signs its answer:

    Authorization: MDI-HMAC                                      give me a nonce
    WWW-Authenticate: MDI-HMAC nonce="...", stale="false"        (401) here it is
    Authorization: MDI-HMAC nonce="...", body="...", mac="..."   the SHA-256 of the body, and a proof of each key
    Authentication-Info: body="...", mac="..."                   the same for the answer, with the key they share

Every proof covers the header Host, so that nobody can relay a request to another node.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPMessage

from mdi.control.protocol import HELD_BYTES
from mdi.net.keys import MAC_BYTES, NONCE_BYTES, Key, Keys

SCHEME = "MDI-HMAC"
STREAM = "stream"  # instead of the digest of a body that is streamed, which ends with a line that holds its MAC

_HEX = "[0-9a-f]"
_CHALLENGE = re.compile(f'{SCHEME} nonce="({_HEX}{{{2 * NONCE_BYTES}}})", stale="(true|false)"')
_SIGNED = re.compile(
    f'{SCHEME} nonce="({_HEX}{{{2 * NONCE_BYTES}}})", body="({_HEX}{{64}})",'
    f' mac="((?:{_HEX}{{{2 * MAC_BYTES}}}){{1,2}})"'
)
_ANSWER = re.compile(f'body="({_HEX}{{64}}|{STREAM})", mac="({_HEX}{{{2 * MAC_BYTES}}})"')
_MAC_LINE = re.compile(rb"\n(%s{%d})" % (_HEX.encode(), 2 * MAC_BYTES))
_MAC_LINE_BYTES = 1 + 2 * MAC_BYTES


@dataclass(frozen=True)
class _Exchange:
    """What the proofs of a request and of its answer have in common: the nonce, and the node that they are for.

    Each also covers the one header that says something of its body: Content-Range and X-Held-Bytes.
    """

    nonce: str
    host: str

    def request(self, method: str, target: str, content_range: str, digest: str) -> tuple[bytes, ...]:
        return self._parts(b"mdi http request", method, target, content_range, digest)

    def answer(self, status: int, held_bytes: str, digest: str) -> tuple[bytes, ...]:
        return self._parts(b"mdi http answer", str(status), held_bytes, digest)

    def streamed(self, digest: str) -> tuple[bytes, ...]:
        return self._parts(b"mdi http stream", digest)

    def _parts(self, label: bytes, *values: str) -> tuple[bytes, ...]:
        return label, *(value.encode("latin-1", "replace") for value in (self.nonce, self.host, *values))


def sha256(body: bytes) -> str:
    """The digest of a body, as it stands in the headers."""
    return hashlib.sha256(body).hexdigest()


# ---- the client's side


@dataclass(frozen=True)
class Challenge:
    """A nonce that a node gave out; `stale`: because the one that was signed with is no longer known."""

    nonce: str
    stale: bool

    @classmethod
    def of(cls, header: str) -> "Challenge | None":
        """What the header WWW-Authenticate holds."""
        match = _CHALLENGE.fullmatch(header)
        return cls(match[1], match[2] == "true") if match else None

    @property
    def header(self) -> str:
        """The header WWW-Authenticate that holds it."""
        return f'{SCHEME} nonce="{self.nonce}", stale="{"true" if self.stale else "false"}"'

    def sign(self, keys: Keys, host: str, method: str, target: str, body: bytes, content_range: str = "") -> str:
        """The header Authorization for one request; `host` and `target` (path and query) are those that are sent."""
        digest = sha256(body)
        mac = keys.prove(*_Exchange(self.nonce, host).request(method, target, content_range, digest)).hex()
        return f'{SCHEME} nonce="{self.nonce}", body="{digest}", mac="{mac}"'

    def digest_of(self, keys: Keys, host: str, status: int, headers: HTTPMessage) -> str | None:
        """What the header Authentication-Info of an answer says of its body, which is still to come.

        `STREAM` or a SHA-256; None where it does not show that the other side has one of the keys.
        """
        match = _ANSWER.fullmatch(headers.get("Authentication-Info", ""))
        if match is None:
            return None
        parts = _Exchange(self.nonce, host).answer(status, headers.get(HELD_BYTES, ""), match[1])
        return match[1] if keys.match(bytes.fromhex(match[2]), *parts) else None

    def verified(self, keys: Keys, host: str, digest: str, body: bytes) -> bytes | None:
        """The body of an answer without its proof; None where it is not the one that the node with the key sent."""
        if digest != STREAM:
            return body if sha256(body) == digest else None
        text, match = body[:-_MAC_LINE_BYTES], _MAC_LINE.fullmatch(body[-_MAC_LINE_BYTES:])
        if match is None:
            return None
        parts = _Exchange(self.nonce, host).streamed(sha256(text))
        return text if keys.match(bytes.fromhex(match[1].decode()), *parts) else None


# ---- the node's side


@dataclass(frozen=True)
class Signature:
    """The header Authorization of a signed request, before it is checked."""

    nonce: str
    digest: str  # of the body
    mac: str

    @classmethod
    def of(cls, header: str) -> "Signature | None":
        """What the header Authorization holds."""
        match = _SIGNED.fullmatch(header)
        return cls(*match.groups()) if match else None

    def verified(self, keys: Keys, host: str, method: str, target: str, content_range: str) -> "SignedRequest | None":
        """The request, where the other side has one of the keys and signed what has arrived; else None."""
        exchange = _Exchange(self.nonce, host)
        key = keys.match(bytes.fromhex(self.mac), *exchange.request(method, target, content_range, self.digest))
        return None if key is None else SignedRequest(key, exchange, self.digest)


@dataclass(frozen=True)
class SignedRequest:
    """A request whose signature is right; `key` is the one it was made with, and signs the answer."""

    key: Key
    exchange: _Exchange
    digest: str  # of its body, which is still to come

    def info(self, status: int, digest: str, held_bytes: str = "") -> str:
        """The header Authentication-Info of an answer."""
        mac = self.key.mac(*self.exchange.answer(status, held_bytes, digest)).hex()
        return f'body="{digest}", mac="{mac}"'

    def sign_stream(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The blocks as they come, and the proof of all of them at their end."""
        digest = hashlib.sha256()
        for block in blocks:
            digest.update(block)
            yield block
        yield b"\n" + self.key.mac(*self.exchange.streamed(digest.hexdigest())).hex().encode()
