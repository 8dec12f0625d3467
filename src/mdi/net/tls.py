"""TLS for both channels of a node: three files, and what the standard library makes of them."""

import contextlib
import ipaddress
import logging
import os
import socket
import ssl
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from mdi.errors import ConfigError
from mdi.installation import program_name
from mdi.net.key_sources import warn_if_readable_by_others
from mdi.net.validity import NOTICE_S, Validity, utc
from mdi.strings import count, one_line

log = logging.getLogger(__name__)

TLS_VARIABLE = "MDI_TLS"
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which `ssl` has no name for
_RENEW = f"renew it with `{program_name('make_certs')} --renew`"


@dataclass(frozen=True)
class Tls:
    """A node's certificate, its private key, and the authority that signed the certificates of all nodes."""

    certificate: Path
    private_key: Path
    ca: Path

    @cached_property
    def server(self) -> ssl.SSLContext:
        """For connections we accept: the client has to show a certificate too. Raises `ConfigError`."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        # Session tickets are sent after the handshake, unasked, and nobody here resumes a session. A client that closes
        # without having read them closes with unread data, which is a reset: it can discard what was sent just before.
        context.num_tickets = 0
        return context

    @cached_property
    def client(self) -> ssl.SSLContext:
        """For connections we make: the certificate has to carry the address we connect to. Raises `ConfigError`."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    @cached_property
    def undated_client(self) -> ssl.SSLContext:
        """As `client`, but it takes certificates of any date: to read the dates of one, not to send anything."""
        return self._undated_context()

    @cached_property
    def validity(self) -> Validity:
        """That of our certificate. Raises `ConfigError` where the authority has not signed it."""
        return Validity.of(self._own_certificate)

    @cached_property
    def ca_validity(self) -> Validity:
        """That of the authority; where the file holds several, of the one that has signed our certificate last."""
        authorities = self.client.get_ca_certs()
        issuer = self._own_certificate["issuer"]
        signers = [ca for ca in authorities if ca["subject"] == issuer] or authorities
        return max(map(Validity.of, signers), key=lambda validity: validity.ends_s, default=self.validity)

    def check(self, *, waits: bool = False) -> None:
        """Raise `ConfigError` where a file is missing, does not fit the others, or is not valid by our clock.

        A node that `waits` for others only logs the last: a clock may be set later, as on boards without a battery, and
        whoever calls the node is told by it.
        """
        self._check_readable()
        _ = self.server, self.client  # made now: what is wrong with the contents of the files is raised here
        warn_if_readable_by_others(self.private_key)
        _check_dates(self.certificate, self.validity, waits)
        _check_dates(self.ca, self.ca_validity, waits)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names and addresses that our certificate is for. Raises `ConfigError` as `check` does for the files."""
        self._check_readable()
        entries = self._own_certificate.get("subjectAltName", ())
        addresses = [str(ipaddress.ip_address(text.strip())) for kind, text in entries if kind == "IP Address"]
        return (*(text for kind, text in entries if kind == "DNS"), *addresses)

    def _check_readable(self) -> None:
        for path in (self.certificate, self.private_key, self.ca):
            try:
                path.open("rb").close()
            except OSError as exc:
                raise ConfigError(f"tls: {path} cannot be read: {exc.strerror}; `make certs` makes one") from exc

    @cached_property
    def _own_certificate(self) -> dict[str, Any]:
        """Our certificate, decoded. `ssl` decodes only that of a peer, once it is verified; so we are our own peer."""
        context = self._undated_context()
        context.check_hostname = False
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(to_client, to_server)
        server = self._context(ssl.PROTOCOL_TLS_SERVER).wrap_bio(to_server, to_client, server_side=True)
        try:
            for side in (client, server, client, server, client):  # as many turns as TLS 1.2 takes
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        except ssl.SSLError as exc:
            raise ConfigError(f"tls: {self.certificate} is not signed by {self.ca}: {one_line(exc)}") from exc
        return client.getpeercert() or {}

    def _undated_context(self) -> ssl.SSLContext:
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= _NO_CHECK_TIME
        return context

    def _context(self, protocol: ssl._SSLMethod) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(self.ca)
        except OSError as exc:  # `SSLError` is one
            raise ConfigError(f"tls: {self.ca} is not a certificate authority: {exc.strerror or exc}") from exc
        try:
            context.load_cert_chain(self.certificate, self.private_key, password="")  # never ask on the terminal
        except OSError as exc:
            files = f"{self.certificate} and {self.private_key}"
            raise ConfigError(f"tls: {files} are not a certificate and its key: {exc.strerror or exc}") from exc
        return context


def _check_dates(path: Path, validity: Validity, waits: bool) -> None:
    now_s = time.time()
    if not validity.includes(now_s):
        problem = f"tls: {path} is {validity.compared(now_s)}; {_RENEW} or set the clock"
        if not waits:
            raise ConfigError(problem)
        log.error("%s", problem)
    elif validity.ends_s - now_s < NOTICE_S:
        days = count(validity.days_left(now_s), "day")
        log.warning("tls: %s ends on %s, in %s: %s", path, utc(validity.ends_s), days, _RENEW)


def tls_from_environment() -> Tls | None:
    """The files of this machine, in the folder that `MDI_TLS` names; None where it is not set."""
    folder = os.environ.get(TLS_VARIABLE)
    if folder is None:
        return None
    if not folder:  # which would be the current folder
        raise ConfigError(
            f"{TLS_VARIABLE} is empty: set it to a folder with node.pem, node.key and ca.pem, or unset it"
        )
    return Tls(*(Path(folder) / name for name in ("node.pem", "node.key", "ca.pem")))


def host_name(addr: str) -> str:
    """The address as a certificate carries it: without the zone of a link-local one."""
    return addr.partition("%")[0]


def wrap_accepted(sock: socket.socket, tls: Tls) -> ssl.SSLSocket:
    """An accepted connection as one of TLS, whose handshake is still to be made; it takes over the descriptor."""
    return tls.server.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


def complete_handshake(sock: ssl.SSLSocket) -> Generator[int, None, None]:
    """The TLS handshake of a socket that does not block; yields the event of a selector that it waits for."""
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            yield EVENT_READ
        except ssl.SSLWantWriteError:
            yield EVENT_WRITE
