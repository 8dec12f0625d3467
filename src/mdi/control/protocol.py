"""What both sides of the control plane hold to: the limits of its bodies, and how a call can fail.

ControlError
  NoAnswer            no answer came, or none that was complete, in time and within its size
    Unreachable       there was no connection
      UnknownName     nor is the name of the machine known
  NotANode            another program answers, or something that no node says
  NotAuthorized       the two do not accept each other: another key, none, other certificates
  Refused             a node refuses, with its reason
    NodeBusy          later it may accept
    WrongVersion      it runs another version of this program
    NoStorage         its disk is full, or cannot be written or read
    DamagedFiles      its model files are damaged, or those of another model
"""

from collections.abc import Mapping

from mdi.errors import CheckpointError, ChunkBusy, ControlError, MdiError, StorageError

UPLOAD_BYTES = 16 << 20  # of one PUT of a chunk
MAX_JSON_BYTES = 1 << 20  # of any other body
MAX_STATUS_BYTES = 64 << 10  # of any answer but the following
MAX_INIT_BYTES = 256 << 10  # a status, and one blank per second of loading
MAX_TIMELINE_BYTES = 32 << 20  # some 60 bytes for each of its events

HELD_BYTES = "X-Held-Bytes"  # the header that says how much of a chunk a node has
JSON, BYTES = "application/json", "application/octet-stream"  # the types of bodies; no HTML form can send either


class NoAnswer(ControlError):
    """The node was asked, and its answer did not come, broke off, or was not complete in time or within its size."""


class Unreachable(NoAnswer):
    """Nobody answers at the node's address."""


class UnknownName(Unreachable):
    """No machine is known by the name in the node's address."""


def is_silent(error: Exception) -> bool:
    """Whether nobody answers at an address that may be right: perhaps the node is not running yet."""
    return isinstance(error, Unreachable) and not isinstance(error, UnknownName)


class NotANode(ControlError):
    """Another program answers at the node's address, or something that no node of this version says."""


class NotAuthorized(ControlError):
    """The two nodes do not accept each other: another key, a key on one side only, TLS, or an unknown address."""


class Refused(ControlError):
    """The node refuses what was asked, with its reason."""


class NodeBusy(Refused):
    """The node cannot do this now; later it may."""


class WrongVersion(Refused):
    """The two nodes run different versions of this program."""


class NoStorage(Refused):
    """The node's disk is full, or its files cannot be written or read."""


class DamagedFiles(Refused):
    """The node's model files are missing, damaged, or those of another model."""


# In the body of an error: what its reader can decide by.
CODES: Mapping[str, type[Refused]] = {
    "busy": NodeBusy,
    "version": WrongVersion,
    "storage": NoStorage,
    "files": DamagedFiles,
}
_LOCAL_ERRORS: Mapping[type[MdiError], str] = {
    StorageError: "storage",
    CheckpointError: "files",
    ChunkBusy: "busy",
}


def code_of(error: MdiError) -> str | None:
    """The code that stands beside the text of an error of this node; None where the text is all there is to say."""
    kinds = [*((kind, code) for code, kind in CODES.items()), *_LOCAL_ERRORS.items()]
    return next((code for kind, code in kinds if isinstance(error, kind)), None)
