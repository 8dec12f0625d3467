"""The room that weights take on the disk: said, and required, before any is written."""

import logging
import shutil
from pathlib import Path

from mdi.errors import StorageError
from mdi.files import storage_error
from mdi.strings import format_bytes

log = logging.getLogger(__name__)


def announce_weights(folder: Path, needed_bytes: int, kind: str) -> None:
    """Say how much a whole model takes, and as what. Raises `StorageError` where the disk of `folder` has less room."""
    log.warning("the weights take %s in %s", format_bytes(needed_bytes), kind)
    require_space(folder, needed_bytes, "the weights")


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise `StorageError` where the disk of `folder` has less room than `what` takes."""
    try:
        free_bytes = shutil.disk_usage(folder).free
    except OSError as exc:
        raise storage_error(folder, exc) from exc
    if needed_bytes > free_bytes:
        raise StorageError(
            f"{folder}: {what} take {format_bytes(needed_bytes)} and {format_bytes(free_bytes)} are free on this disk:"
            " make room, or choose another folder"
        )
