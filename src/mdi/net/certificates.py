"""A private certificate authority and one certificate for each machine of a network, made by `openssl`.

<folder>/_authority/ca.pem, ca.key      the authority; its key stays where it was made
<folder>/<addr>/node.pem, node.key, ca.pem    what the machine at <addr> needs
"""

import ipaddress
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mdi.errors import ConfigError
from mdi.files import atomic_path, partial_folder, read_bytes
from mdi.net.access import is_loopback
from mdi.net.openssl import Authority, check_available, make_key, read_validity, sign_authority, sign_node
from mdi.net.tls import host_name
from mdi.net.validity import DAY_S, Validity, utc

CA_DAYS, NODE_DAYS = 3650, 825
BACKDATED_DAYS = 7  # clocks of boards without a battery are slow, often by days
RENEWED_DAYS = 90  # before its end a certificate is renewed, on request
_SUBJECT = "MDI ring"
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_LOOPBACK_NAMES = ("DNS:localhost", "IP:127.0.0.1", "IP:::1")


@dataclass(frozen=True)
class Renewal:
    """What became of the certificates of one machine: which files are new, and until when they are valid."""

    folder: Path
    files: tuple[str, ...]
    validity: Validity


def make_certificates(addrs: Iterable[str], folder: Path, now_s: float | None = None) -> list[Path]:
    """The folders of all machines; what is there already is left as it is. Raises `ConfigError`.

    Args:
        now_s: from when on they are valid, in seconds since 1970, but for some days before; if not given: now.
    """
    now_s = time.time() if now_s is None else now_s
    names = _names(addrs)
    authority = _make_authority(folder / "_authority", now_s)  # no name of a machine begins so
    return [_make_node(_folder_of(folder, addr), authority, addr, names[addr], now_s) for addr in names]


def renew_certificates(addrs: Iterable[str], folder: Path, now_s: float | None = None) -> list[Renewal]:
    """Renew what ends soon or has ended, with the same keys, and make what is missing. Raises `ConfigError`.

    A new certificate of the authority is of the same key too. So old and new certificates trust each other, and nodes
    can get theirs one after the other.
    """
    now_s = time.time() if now_s is None else now_s
    names = _names(addrs)
    authority = _make_authority(folder / "_authority", now_s)
    if ends_soon(authority.certificate, now_s):
        with atomic_path(authority.certificate) as partial:
            sign_authority(_SUBJECT, authority.key, partial, _validity(now_s, CA_DAYS))
    return [_renew_node(_folder_of(folder, addr), authority, addr, names[addr], now_s) for addr in names]


def ends_soon(certificate: Path, now_s: float) -> bool:
    """Whether `renew_certificates` would renew it. Raises `ConfigError` where it cannot be read."""
    return read_validity(certificate).days_left(now_s) < RENEWED_DAYS


def _names(addrs: Iterable[str]) -> dict[str, str]:
    """The names in the certificate of each machine; all are checked before anything is made."""
    addrs = [host_name(addr) for addr in addrs]
    names = {addr: _names_of(addr) for addr in addrs}
    check_available()
    return names


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


def _folder_of(folder: Path, addr: str) -> Path:
    return folder / addr.replace(":", "_")


def _validity(now_s: float, days: float) -> Validity:
    return Validity(now_s - BACKDATED_DAYS * DAY_S, now_s + days * DAY_S)


def _make_authority(folder: Path, now_s: float) -> Authority:
    """Make the authority unless it is there: a new one would make all certificates worthless."""
    if folder.exists():
        _check_whole(folder, "ca.pem", "ca.key")
    else:
        with partial_folder(folder) as partial:
            make_key(partial / "ca.key")
            sign_authority(_SUBJECT, partial / "ca.key", partial / "ca.pem", _validity(now_s, CA_DAYS))
    return Authority(folder / "ca.pem", folder / "ca.key")


def _make_node(folder: Path, authority: Authority, addr: str, names: str, now_s: float) -> Path:
    if not folder.exists():
        with partial_folder(folder) as partial:
            make_key(partial / "node.key")
            _sign(partial / "node.key", partial / "node.pem", authority, addr, names, now_s)
            shutil.copyfile(authority.certificate, partial / "ca.pem")
    return folder


def _renew_node(folder: Path, authority: Authority, addr: str, names: str, now_s: float) -> Renewal:
    if not folder.exists():
        _make_node(folder, authority, addr, names, now_s)
        return Renewal(folder, ("node.pem", "node.key", "ca.pem"), read_validity(folder / "node.pem"))
    _check_whole(folder, "node.pem", "node.key")
    certificate, ca, renewed = folder / "node.pem", folder / "ca.pem", []
    if ends_soon(certificate, now_s):
        with atomic_path(certificate) as partial:
            _sign(folder / "node.key", partial, authority, addr, names, now_s)
        renewed.append(certificate.name)
    if not ca.is_file() or read_bytes(ca) != read_bytes(authority.certificate):
        with atomic_path(ca) as partial:
            shutil.copyfile(authority.certificate, partial)
        renewed.append(ca.name)
    return Renewal(folder, tuple(renewed), read_validity(certificate))


def _sign(key: Path, out: Path, authority: Authority, addr: str, names: str, now_s: float) -> None:
    """A certificate is of no use after the end of its authority's, so it does not say that it were."""
    validity, ends_s = _validity(now_s, NODE_DAYS), read_validity(authority.certificate).ends_s
    if ends_s <= now_s:
        raise ConfigError(f"{authority.certificate} has ended on {utc(ends_s)}: renew it, with --renew")
    validity = Validity(validity.begins_s, min(validity.ends_s, ends_s))
    sign_node(addr[:64], names, key, out, validity, authority)


def _check_whole(folder: Path, *names: str) -> None:
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ConfigError(f"{folder} lacks {' and '.join(missing)}: bring back what was there, or move it away")
