"""The handshake of two neighbours on the ring: do they hold the same facts, and the same key? Sans-I/O.

    initiator  HELLO    facts and, where the ring has a key, a nonce
    responder  WELCOME  a nonce of its own and a proof of each of its keys, or REFUSE
    initiator  PROOF    a proof of the key that both have, or REFUSE

A proof is a MAC over the role, the epoch, both nonces and the facts: it fits no other session, connection or
direction. A further MAC over the same is the session key, which authenticates the frames that follow. Without a key
nonces and proofs are empty, and there is no session key.
"""

import re
from typing import Any

from mdi.errors import RemoteProtocolError
from mdi.net.keys import NONCE_BYTES, Keys, new_nonce
from mdi.ring.messages import Hello, Proof, Refuse, Welcome
from mdi.ring.wire import VERSION, Session, pack_facts

NONCE = "nonce"  # among the facts of a HELLO
_NONCE_TEXT = re.compile(f"[0-9a-f]{{{2 * NONCE_BYTES}}}")


class KeyMismatch(RemoteProtocolError):
    """One of the two has no key, or another one. The text says nothing of the session."""


def mac_input(role: bytes, session: Session, facts: dict[str, Any], nonce: bytes) -> tuple[bytes, ...]:
    """What a proof or the session key is a MAC over; the facts hold the initiator's nonce, `nonce` is the responder's.

    With the `role` in it, a proof cannot be reflected: sent back to whoever made it as if it were the answer.
    """
    return b"mdi ring %d" % VERSION, role, session.epoch.to_bytes(8, "little"), nonce, pack_facts(facts)


class Initiator:
    """The side that connects."""

    def __init__(self, session: Session, facts: dict[str, Any], keys: Keys | None) -> None:
        self._session, self._keys = session, keys
        self._facts = facts if keys is None else facts | {NONCE: new_nonce().hex()}

    def hello(self) -> Hello:
        return Hello(self._facts)

    def prove(self, welcome: Welcome) -> tuple[Proof, bytes | None]:
        """The answer to a WELCOME, and the session key. Raises `KeyMismatch` unless the WELCOME shows a key of ours."""
        if self._keys is None:
            if welcome.mac:
                raise KeyMismatch("this ring has a key and the caller has none")
            return Proof(), None
        if not welcome.mac:
            raise KeyMismatch("the caller has a key and this node has none")
        key = self._keys.match(welcome.mac, *mac_input(b"answerer", self._session, self._facts, welcome.nonce))
        if key is None:
            raise KeyMismatch("the caller and this node have different keys")
        proof = Proof(key.mac(*mac_input(b"caller", self._session, self._facts, welcome.nonce)))
        return proof, key.mac(*mac_input(b"frames", self._session, self._facts, welcome.nonce))


class Responder:
    """The side that listens: `welcome`, then `check`."""

    def __init__(self, session: Session, expected: dict[str, Any], keys: Keys | None) -> None:
        self._session, self._expected, self._keys = session, expected, keys
        self._facts: dict[str, Any] = {}
        self._nonce = b""

    def welcome(self, hello: Hello) -> Welcome:
        """The answer to a HELLO. Raises `KeyMismatch`, or `RemoteProtocolError` where a fact is not as expected."""
        self._facts = hello.facts
        nonce = hello.facts.get(NONCE)
        if self._keys is None:
            if nonce is not None:
                raise KeyMismatch("the caller has a key and this node has none")
            self._check_facts()
            return Welcome()
        if not isinstance(nonce, str) or not _NONCE_TEXT.fullmatch(nonce):
            raise KeyMismatch("this ring has a key and the caller has none")
        self._check_facts()
        self._nonce = new_nonce()
        return Welcome(self._nonce, self._keys.prove(*mac_input(b"answerer", self._session, self._facts, self._nonce)))

    def check(self, proof: Proof) -> bytes | None:
        """The session key. Raises `KeyMismatch` unless the PROOF shows a key of ours."""
        if self._keys is None:
            return None
        key = self._keys.match(proof.mac, *mac_input(b"caller", self._session, self._facts, self._nonce))
        if key is None:
            raise KeyMismatch("the caller and this node have different keys")
        return key.mac(*mac_input(b"frames", self._session, self._facts, self._nonce))

    def refuse(self, error: RemoteProtocolError) -> Refuse:
        """The frame that answers `error`. In a ring with a key it says nothing of the session to an unproven peer."""
        secret = self._keys is not None and not isinstance(error, KeyMismatch)
        return Refuse("it does not fit this node's session; the node's log says why" if secret else str(error))

    def _check_facts(self) -> None:
        """All facts that are expected and, but for the nonce, no others.

        The proof covers the facts packed again from what was parsed, so a fact that we do not check must not be there.
        """
        for name, wanted in self._expected.items():
            if (got := self._facts.get(name)) != wanted:
                raise RemoteProtocolError(f"{name} is {got!r}, this node expects {wanted!r}")
        if unknown := self._facts.keys() - self._expected.keys() - {NONCE}:
            raise RemoteProtocolError(f"unknown facts: {sorted(unknown)}")
