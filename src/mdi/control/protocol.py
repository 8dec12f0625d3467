"""What both sides of the control plane hold to: the limits of its bodies, and the one error that is worth a retry."""

from mdi.errors import ControlError

UPLOAD_BYTES = 16 << 20  # of one PUT of a chunk
MAX_JSON_BYTES = 1 << 20  # of any other body


class NodeBusy(ControlError):
    """The node cannot do this now; later it may. Over HTTP: status 409, or `"retry": true` in an answer to /init."""
