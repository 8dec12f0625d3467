"""TLS for both channels of a node: three files, and what the standard library makes of them."""

import socket
import ssl
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE

from mdi.errors import ConfigError
from mdi.net.key_sources import warn_if_readable_by_others


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

    def check(self) -> None:
        """Raise `ConfigError` where a file is missing or does not fit the others."""
        for path in (self.certificate, self.private_key, self.ca):
            try:
                path.open("rb").close()
            except OSError as exc:
                raise ConfigError(f"tls: {path} cannot be read: {exc.strerror}; `make certs` makes one") from exc
        _ = self.server, self.client  # made now: what is wrong with the contents of the files is raised here
        warn_if_readable_by_others(self.private_key)

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
