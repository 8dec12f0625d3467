"""The whole error vocabulary.

Scripts catch `MdiError` and print it as one line; anything else is a bug and shows its traceback.
Foreign exceptions are translated once, at the boundary where they arise, and chained.
"""


class MdiError(Exception):
    """A failure that a user or a network can cause. Its text says what happened and what to do."""


class ConfigError(MdiError):
    """The user can fix it: the text names the file or flag, the value and what is allowed."""


class CheckpointError(MdiError):
    """Missing, damaged, foreign or mismatching model files."""


class StorageError(MdiError):
    """A file or folder that cannot be read or written: disk full, quota, permissions, a read-only file system."""


class NumericsError(MdiError):
    """The model computes NaN or infinity."""


class ProtocolError(MdiError):
    """A message that is not legal on the ring."""


class LocalProtocolError(ProtocolError):
    """We were about to send something illegal: our own bug."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something illegal."""


class LinkError(MdiError):
    """A ring connection failed."""


class LinkTimeout(LinkError):
    """The peer stayed silent, or took nothing, for longer than its deadline."""


class LinkClosed(LinkError):
    """The connection ended without a goodbye."""


class RemoteAbort(LinkError):
    """The next node refused the handshake; the text carries its reason."""


class RingBroken(LinkError):
    """The ring cannot go on. `place` is the node in it that is said to be lost, None where nobody can tell."""

    def __init__(self, text: str, place: int | None = None) -> None:
        super().__init__(text)
        self.place = place


class ControlError(MdiError):
    """A node could not be reached over HTTP, or refused what was asked, with its reason."""
