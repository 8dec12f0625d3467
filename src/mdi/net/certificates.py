"""A private certificate authority and one certificate for each machine of a network, made by `openssl`.

<folder>/ca.pem, ca.key      the authority; its key stays where it was made
<folder>/<addr>/node.pem, node.key, ca.pem    what the machine at <addr> needs
"""

import ipaddress
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from mdi.errors import ConfigError
from mdi.files import partial_folder
from mdi.net.access import is_loopback
from mdi.net.tls import host_name
from mdi.strings import one_line

CA_DAYS, NODE_DAYS = 3650, 825
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_LOOPBACK_NAMES = ("DNS:localhost", "IP:127.0.0.1", "IP:::1")


def make_certificates(addrs: Iterable[str], folder: Path) -> list[Path]:
    """The folders of all machines; what is there already is left as it is. Raises `ConfigError`."""
    addrs = [host_name(addr) for addr in dict.fromkeys(addrs)]
    names = {addr: _names_of(addr) for addr in addrs}  # before anything is made
    if shutil.which("openssl") is None:
        raise ConfigError("no openssl on this machine: install it, or make the certificates on another one")
    authority = _make_authority(folder / "_authority")  # no name of a machine begins so
    return [_make_node(folder / addr.replace(":", "_"), authority, addr, names[addr]) for addr in addrs]


def _names_of(addr: str) -> str:
    """What the certificate of `addr` is for, as openssl wants it."""
    try:
        names = [f"IP:{ipaddress.ip_address(addr)}"]
    except ValueError:
        if not _HOST_NAME.fullmatch(addr):
            raise ConfigError(f"{addr!r} is neither an address nor the name of a machine") from None
        names = [f"DNS:{addr}"]
    if is_loopback(addr):
        names += _LOOPBACK_NAMES
    return ",".join(dict.fromkeys(names))


def _make_authority(folder: Path) -> Path:
    """Make the authority unless it is there: a new one would make all certificates worthless."""
    if folder.exists():
        if missing := [name for name in ("ca.pem", "ca.key") if not (folder / name).is_file()]:
            raise ConfigError(f"{folder} lacks {' and '.join(missing)}: bring back what was there, or move it away")
        return folder
    with partial_folder(folder) as partial:
        _openssl(
            "req", "-x509", *_NEW_KEY, "-keyout", partial / "ca.key", "-out", partial / "ca.pem",
            "-days", CA_DAYS, "-subj", "/CN=MDI ring",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-addext", "subjectKeyIdentifier=hash",
        )  # fmt: skip
    return folder


def _make_node(folder: Path, authority: Path, addr: str, names: str) -> Path:
    if folder.exists():
        return folder
    with partial_folder(folder) as partial:
        request, extensions = partial / "request", partial / "extensions"
        _openssl("req", *_NEW_KEY, "-keyout", partial / "node.key", "-out", request, "-subj", f"/CN={addr[:64]}")
        extensions.write_text(
            f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:FALSE\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        _openssl(
            "x509", "-req", "-in", request, "-out", partial / "node.pem", "-days", NODE_DAYS,
            "-CA", authority / "ca.pem", "-CAkey", authority / "ca.key",
            "-set_serial", f"0x{os.urandom(16).hex()}", "-extfile", extensions,
        )  # fmt: skip
        request.unlink()
        extensions.unlink()
        shutil.copyfile(authority / "ca.pem", partial / "ca.pem")
    return folder


def _openssl(*arguments: object) -> None:
    """Run one command of openssl; what it writes is for the user alone."""
    command = ["openssl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, umask=0o077)
    if done.returncode:
        raise ConfigError(f"openssl {arguments[0]} failed: {one_line(done.stderr)}")
