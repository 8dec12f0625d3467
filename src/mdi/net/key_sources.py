"""Where keys come from: the environment, files and the configuration; how a new one is made; what is said of bad ones.

Errors and warnings name the place and quote nothing of a key.
"""

import logging
import math
import os
import secrets
import stat
from pathlib import Path

from mdi.errors import ConfigError
from mdi.files import storage_error
from mdi.net.keys import MAKE_KEY, Key, Keys

log = logging.getLogger(__name__)

KEY_VARIABLE, OLD_KEY_VARIABLE = "MDI_KEY", "MDI_KEY_OLD"
KEY_FILE_VARIABLE = f"{KEY_VARIABLE}_FILE"
MAX_KEY_FILE_BYTES = 4096
MIN_KEY_BITS = 40
NEW_KEY_BYTES = 32


def keys_from(current: Key | None, old: Key | None) -> Keys | None:
    """The keys of a node, whose configuration holds `current` and `old`; those of the environment come first."""
    current = key_from_environment(KEY_VARIABLE) or current
    old = key_from_environment(OLD_KEY_VARIABLE) or old
    if current is None:
        if old is not None:
            raise ConfigError(f"there is an old key but no new one: set {KEY_VARIABLE} too")
        return None
    if old == current:
        raise ConfigError(f"the old key is the same as the new one: remove {OLD_KEY_VARIABLE} or key_old")
    if old is not None:
        log.warning("the old key is still accepted: remove it when all nodes have the new one")
    return Keys(current, old)


def key_from_environment(variable: str) -> Key | None:
    """The key that `variable` holds, or the file that `<variable>_FILE` names; None where neither is set."""
    file_variable = f"{variable}_FILE"
    text, path = os.environ.get(variable), os.environ.get(file_variable)
    if text is not None and path is not None:
        raise ConfigError(f"{variable} and {file_variable} both give a key: set one of them")
    if path == "":  # which would be the current folder
        raise ConfigError(f"{file_variable} is empty: set it to the path of a file with a key, or unset it")
    if path is not None:
        return key_from_file(Path(path), file_variable)
    return None if text is None else key_from_text(text, variable)


def key_from_file(path: Path, where: str) -> Key:
    """The key in a file; errors name `where` the file is named."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEY_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:  # a null byte in a path is a ValueError
        reason = (exc.strerror if isinstance(exc, OSError) else None) or "not a path"
        raise ConfigError(f"{where}: {path} cannot be read: {reason}") from exc
    if len(content) > MAX_KEY_FILE_BYTES:
        raise ConfigError(f"{where}: {path} has more than {MAX_KEY_FILE_BYTES} bytes: is it a key?")
    try:
        text = content.decode("utf-8-sig")  # without the mark that Windows editors write, which no other node's key has
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: {path} is not UTF-8 text") from None  # its bytes would stand in the chain
    warn_if_readable_by_others(path)
    return key_from_text(text, f"{where}: {path}")


def key_from_text(text: str, where: str) -> Key:
    """A key that a user chose; one that is easy to guess is warned of."""
    key = Key(text, where)
    if guess_bits(text.strip()) < MIN_KEY_BITS:
        log.warning("%s: this key is easy to guess; %s", where, MAKE_KEY)
    return key


def guess_bits(text: str) -> float:
    """A rough upper bound of a key's variety in bits, which sees repetitions and sequences but knows no dictionary.

    A character that goes on with a sequence (`aaa`, `1234`) or repeats what stood before (`ring ring`) adds nothing.
    """
    fresh = sum(not _is_predictable(text, end) for end in range(1, len(text) + 1))
    return fresh * math.log2(len(set(text)) or 1)


def _is_predictable(text: str, end: int) -> bool:
    """Whether the last of the first `end` characters follows from those before it."""
    last = text[max(0, end - 3) : end]
    if len(last) < 3:
        return False
    a, b, c = map(ord, last)
    return c - b == b - a in (-1, 0, 1) or last in text[: end - 1]


def warn_if_readable_by_others(path: Path) -> None:
    """Warn of a file with a secret that other users of this machine may read.

    systemd and Kubernetes hand a secret over as a file of root's that the group of the program may read: its mode is
    not the user's to change, so the group counts only where the file is the user's own.
    """
    if os.name != "posix":
        return
    status = path.stat()
    others = stat.S_IROTH | (stat.S_IRGRP if status.st_uid == os.geteuid() else 0)
    if status.st_mode & others:
        log.warning("%s holds a secret and other users of this machine may read it: chmod 600 %s", path, path)


def new_key() -> str:
    """A random key, fit for a line of text."""
    return secrets.token_hex(NEW_KEY_BYTES)


def make_key_file(path: Path) -> None:
    """Write a new random key to `path`, for its owner alone; an existing file is left as it is."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists already: move it away, or choose another name") from None
    except (OSError, ValueError) as exc:  # a null byte in a path is a ValueError
        raise ConfigError(f"{path} cannot be written: {getattr(exc, 'strerror', None) or 'not a path'}") from exc
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{new_key()}\n")
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise storage_error(path, exc) from exc
