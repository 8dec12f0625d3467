"""The MACs of the frames of one direction of a connection, in a ring with a key. Sans-I/O.

A tag covers the frame's number, its header and its body, under a key of this connection alone (`mdi.ring.handshake`).
So a frame that was forged, repeated, left out or sent in another order does not have the right one.
"""

import hashlib
import hmac
from collections.abc import Sequence

TAG_BYTES = 16


class FrameMac:
    """Counts the frames of one direction. Used from one thread at a time."""

    def __init__(self, session_key: bytes) -> None:
        self._keyed = hashlib.blake2b(key=session_key, digest_size=TAG_BYTES)
        self._n_frames = 0

    def tag(self, header: bytes | memoryview, body: Sequence[bytes | memoryview]) -> bytes:
        """The tag of the next frame; the parts of its body are not joined."""
        digest = self._keyed.copy()
        digest.update(self._n_frames.to_bytes(8, "little"))
        digest.update(header)
        for part in body:
            digest.update(part)
        self._n_frames += 1
        return digest.digest()

    def verify(self, tag: bytes | memoryview, header: bytes | memoryview, body: Sequence[bytes | memoryview]) -> bool:
        """Whether `tag` is that of the next frame."""
        return hmac.compare_digest(tag, self.tag(header, body))
