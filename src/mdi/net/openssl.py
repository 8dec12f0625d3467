"""Keys and certificates, made and read by the `openssl` command.

Certificates are signed by `openssl ca`: `openssl x509` takes a first day of validity only since version 3.4. Its
configuration is our own, not the machine's, so neither `OPENSSL_CONF` nor a distribution decides what is in them.
"""

import os
import shutil
import ssl
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mdi.errors import ConfigError
from mdi.net.validity import Validity
from mdi.strings import one_line

_CONFIGURATION = """\
[ca]
default_ca = ring
[ring]
database = index
serial = serial
new_certs_dir = .
default_md = sha256
policy = subject
[subject]
commonName = supplied
[req]
distinguished_name = empty
[empty]
[extensions]
subjectKeyIdentifier = hash
"""
_AUTHORITY = "basicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign,cRLSign\n"
_NODE = """\
basicConstraints = critical,CA:FALSE
extendedKeyUsage = serverAuth,clientAuth
authorityKeyIdentifier = keyid
subjectAltName = """


@dataclass(frozen=True)
class Authority:
    """The files of an authority."""

    certificate: Path
    key: Path


def check_available() -> None:
    """Raise `ConfigError` where there is no `openssl`."""
    if shutil.which("openssl") is None:
        raise ConfigError("no openssl on this machine: install it, or make the certificates on another one")


def make_key(path: Path) -> None:
    """Write a new private key, which only its owner may read."""
    _run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path.absolute())


def sign_authority(subject: str, key: Path, out: Path, validity: Validity) -> None:
    """Write the certificate of an authority, signed by itself."""
    _sign(subject, key, out, validity, _AUTHORITY, "-selfsign", "-keyfile", key.absolute())


def sign_node(subject: str, names: str, key: Path, out: Path, validity: Validity, authority: Authority) -> None:
    """Write the certificate of a node. `names` are those it is called by, such as `IP:10.0.0.1,DNS:box.local`."""
    signer = ("-cert", authority.certificate.absolute(), "-keyfile", authority.key.absolute())
    _sign(subject, key, out, validity, _NODE + names, *signer)


def read_validity(certificate: Path) -> Validity:
    """Raises `ConfigError` where the file is not a certificate."""
    lines = _run("x509", "-in", certificate.absolute(), "-noout", "-startdate", "-enddate").splitlines()
    begins, ends = (ssl.cert_time_to_seconds(line.partition("=")[2]) for line in lines)
    return Validity(begins, ends)


def _sign(subject: str, key: Path, out: Path, validity: Validity, extensions: str, *signer: object) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "configuration").write_text(_CONFIGURATION + extensions, encoding="ascii")
        (folder / "index").touch()
        (folder / "serial").write_text(os.urandom(16).hex())
        configured = ("-config", "configuration")
        _run(
            "req", "-new", "-key", key.absolute(), "-out", "request", "-subj", f"/CN={subject}", *configured, cwd=folder
        )
        _run(
            "ca", "-batch", "-notext", "-in", "request", "-out", out.absolute(), *signer, *configured,
            "-startdate", _asn1(validity.begins_s), "-enddate", _asn1(validity.ends_s), "-extensions", "extensions",
            cwd=folder,
        )  # fmt: skip


def _asn1(moment_s: float) -> str:
    """A moment as RFC 5280 has it: with two digits of the year until 2049."""
    moment = time.gmtime(moment_s)
    return time.strftime("%y%m%d%H%M%SZ" if 1950 <= moment.tm_year < 2050 else "%Y%m%d%H%M%SZ", moment)


def _run(*arguments: object, cwd: Path | None = None) -> str:
    """The output of one command of openssl; what it writes is for the user alone."""
    command = ["openssl", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, umask=0o077, cwd=cwd,
        env=environment,
    )  # fmt: skip
    if done.returncode:
        raise ConfigError(f"openssl {arguments[0]} failed: {one_line(done.stderr)}")
    return done.stdout
