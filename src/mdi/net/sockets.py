"""Listening sockets, socket options, and how a connection is ended; plain or TLS."""

import contextlib
import errno
import socket
import struct
from dataclasses import dataclass

from mdi.errors import ConfigError

BACKLOG = 64  # connections that the system holds until we accept them
GOODBYE_TIMEOUT_S = 2.0

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def configure(sock: socket.socket, timeout_s: float) -> None:
    sock.settimeout(timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def wake(sock: socket.socket) -> None:
    """Let whatever waits on `sock` in another thread end.

    Not `SSLSocket.shutdown`: it drops the encryption first, and the other thread might just be sending.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def await_close(sock: socket.socket) -> None:
    """Wait until the peer, having read our last frame, closes; so that resetting loses nothing."""
    sock.settimeout(GOODBYE_TIMEOUT_S)
    with contextlib.suppress(OSError):
        sock.recv(1)


def abandon(sock: socket.socket) -> None:
    """Close with a reset, so that neither end's port lingers in TIME_WAIT."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


@dataclass(frozen=True)
class Peer:
    """Another node of the ring, and where it listens for its predecessor."""

    name: str
    addr: str
    port: int


def listen(addr: str, port: int) -> socket.socket:
    """A socket that listens on `addr`:`port` (0: any free port), also right after another one did.

    Raises `ConfigError` where the port is taken or the address is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(addr, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"cannot listen on {addr} port {port}: {_bind_advice(exc)}") from exc
    return sock


def _bind_advice(exc: OSError | UnicodeError) -> str:
    if isinstance(exc, UnicodeError):  # not even the form of a name
        return "this is not an address of this machine; correct `addr` in the nodes configuration"
    if exc.errno == errno.EADDRINUSE:
        return "another program uses this port; stop it or choose another port in the nodes configuration"
    if exc.errno == errno.EADDRNOTAVAIL or isinstance(exc, socket.gaierror):
        return "this is not an address of this machine; correct `addr` in the nodes configuration"
    return exc.strerror or str(exc)
