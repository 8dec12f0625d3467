"""The whole error vocabulary.

Scripts catch `MdiError` and print it as one line; anything else is a bug and shows its traceback.
Foreign exceptions are translated once, at the boundary where they arise, and chained.
"""

from mdi.ids import Rank


class MdiError(Exception):
    """A failure that a user or a network can cause. Its text says what happened and what to do."""


class ConfigError(MdiError):
    """The user can fix it: the text names the file or flag, the value and what is allowed."""


class CheckpointError(MdiError):
    """Missing, damaged, foreign or mismatching model files."""


class GrammarError(MdiError):
    """What an answer has to look like cannot be read, or cannot be followed."""


class StorageError(MdiError):
    """A file or folder that cannot be read or written: disk full, quota, permissions, a read-only file system."""


class TrainingError(MdiError):
    """Training came to numbers that it cannot go on with."""


class RingError(MdiError):
    """A failure on the ring. The text is for people; what a program decides by stands beside it."""

    def __init__(self, text: str, *, peer: str | None = None, reason: str | None = None) -> None:
        """
        Args:
            peer: the name of the node at the other end, None while it is not known.
            reason: what happened, without the name of the node; the whole text unless it is given.
        """
        super().__init__(text)
        self.peer, self.reason = peer, text if reason is None else reason


class ProtocolError(RingError):
    """A message that is not legal on the ring."""


class LocalProtocolError(ProtocolError):
    """We were about to send something illegal: our own bug."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something illegal."""


class LinkError(RingError):
    """A ring connection failed."""


class LinkTimeout(LinkError):
    """The peer stayed silent, or took nothing, for longer than its deadline."""


class LinkClosed(LinkError):
    """The connection ended without a goodbye."""


class RemoteAbort(LinkError):
    """The peer refused the handshake; the text carries its reason."""


class RingBroken(LinkError):
    """The ring cannot go on. `rank` is that of the node which is said to be lost, None where nobody can tell."""

    def __init__(
        self, text: str, rank: Rank | None = None, *, peer: str | None = None, reason: str | None = None
    ) -> None:
        super().__init__(text, peer=peer, reason=reason)
        self.rank = rank


class RingStalled(RingBroken):
    """All nodes of the ring are alive, but it returns nothing. `sent` and `received` are messages of the starter."""

    def __init__(self, text: str, *, sent: int, received: int) -> None:
        super().__init__(text)
        self.sent, self.received = sent, received


class ControlError(MdiError):
    """A node could not be reached over HTTP, or refused what was asked, with its reason."""


class ChunkBusy(ControlError):
    """Somebody else receives the same chunk: later it may be here, or its next part may be another one."""
