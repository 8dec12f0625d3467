"""What the environment of a process may hold that would trip it, looked at before anything heavy is imported."""

import errno
import logging
import os
from pathlib import Path

from mdi.config.network import NodeConfig
from mdi.config.options import SecondaryOptions
from mdi.config.paths import chunk_cache_dir
from mdi.errors import ConfigError
from mdi.net.access import is_loopback, parse_ip
from mdi.net.interfaces import shared_addresses

log = logging.getLogger(__name__)

# Of libraries that others import in passing. A notebook sets the first one to a backend that exists in the notebook
# alone, and either library raises while it is imported where it cannot use a value.
_PREFIXES = ("MPLBACKEND", "TQDM_")
_SPINS = 1000  # docs/performance.md has what others give


def forget_foreign_variables() -> None:
    """Take variables of libraries that nobody asked for out of the environment of this process and its children."""
    for name in [name for name in os.environ if name.startswith(_PREFIXES)]:
        del os.environ[name]


def sleep_at_barriers() -> None:
    """Have threads of GNU's OpenMP sleep that have waited some microseconds for others, unless the user chose a policy.

    By default they spin, for milliseconds where each has a core: as long as another program holds one of these cores.
    The library reads its variables when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))


def cache_folder(options: SecondaryOptions) -> Path:
    """The folder for received chunks, made if it is not there.

    Raises `ConfigError` where it cannot be written, unless the node was given weights: then it may do without.
    """
    folder = options.cache_dir or chunk_cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as exc:
        problem = (
            f"{folder} cannot be written ({exc.strerror}): say where chunks are kept by --cache-dir or XDG_CACHE_HOME"
        )
        if options.chunk is None and options.ckpt is None:
            raise ConfigError(problem) from exc
        log.warning("%s", problem)
    return folder


def warn_of_loopback_name(node: NodeConfig) -> None:
    """Warn of a name that means this machine alone: Debian and Raspberry Pi OS map its own name to 127.0.1.1."""
    addr = node.listen_addr
    is_meant = parse_ip(addr) is not None or addr.partition(".")[0].startswith("localhost")
    if is_meant or not is_loopback(addr):
        return
    own = ", ".join(shared_addresses()) or "its address in your network"
    log.warning(
        "%s is a loopback address on this machine (see /etc/hosts), where no other can reach it: set `listen`, or "
        "`addr`, in the nodes configuration to one of this machine's own addresses: %s",
        addr,
        own,
    )
