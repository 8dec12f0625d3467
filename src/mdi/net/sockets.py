"""Listening sockets, socket options, and how a connection is ended; plain or TLS."""

import contextlib
import errno
import select
import socket
import struct
from dataclasses import dataclass

from mdi.errors import ConfigError

MAX_PORT = 65535
BACKLOG = 1024  # connections that the system holds until we accept them; a full backlog keeps everyone out

_DISCARD_PORT = 9  # RFC 863: of any number that a datagram could be for
_ANY_IPV6 = "::"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 s


def configure(sock: socket.socket, timeout_s: float) -> None:
    """Bound every step on `sock`, and send small frames at once: a token waits for each of them."""
    sock.settimeout(timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def wake(sock: socket.socket) -> None:
    """End whatever waits on `sock` in another thread: `close()` alone leaves a blocked `recv` waiting.

    Not by `SSLSocket.shutdown`: it first drops the TLS object, and the other thread, which might just be sending,
    would go on in plain text. The base class's method leaves that object in place.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def is_closed_by_peer(sock: socket.socket) -> bool:
    """Whether the peer has closed, looking past what it may have sent before. For sockets that are not read meanwhile.

    Below TLS: its own `recv` takes no flags, and what says that it ends is followed by the end of the connection.
    """
    try:
        poll = select.poll()  # asked for each token of a stream, and far cheaper than a selector
        poll.register(sock, select.POLLIN)
        # Polled first, since a socket with a timeout would wait to be read.
        return bool(poll.poll(0)) and not socket.socket.recv(sock, 1, socket.MSG_PEEK)
    except (OSError, ValueError):  # `ValueError`: closed by ourselves
        return True


def await_close(sock: socket.socket, timeout_s: float) -> None:
    """Wait until the peer, having read our last frame, closes.

    A reset discards what the peer has not read yet, so `reset` right after the last frame could lose it.
    """
    sock.settimeout(timeout_s)
    with contextlib.suppress(OSError):
        sock.recv(1)


def reset(sock: socket.socket) -> None:
    """Close with RST instead of FIN.

    After a FIN the side that closed first keeps its port in TIME_WAIT for a minute or more, and `port_out` is a fixed
    port: the next session's connection to the same successor could not be made from it. RST leaves nothing behind.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


@dataclass(frozen=True)
class Peer:
    """Another node, and where it listens: for its predecessor, or for HTTP."""

    name: str
    addr: str
    port: int


def any_address() -> str:
    """What a node listens on to be reached by all addresses of its machine, those of IPv6 too where there are any."""
    try:
        listen(_ANY_IPV6, 0).close()
    except ConfigError:
        return "0.0.0.0"
    return _ANY_IPV6


def own_address_towards(addr: str) -> str | None:
    """The address that this machine would call `addr` from; None where it knows no way there. Nothing is sent."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(addr, _DISCARD_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.connect(address)
            return str(sock.getsockname()[0])
    except (OSError, UnicodeError):
        return None


def listen(addr: str, port: int, flag: str | None = None) -> socket.socket:
    """A socket that listens on `addr`:`port` (0: any free port), also right after another one did.

    Both are from the nodes configuration, or else from `flag`, which the error then names.

    Raises `ConfigError` where the port is taken or the address is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(addr, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address[0] == _ANY_IPV6:  # and any of IPv4, as cheroot does it
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"cannot listen on {addr} port {port}: {_bind_advice(exc, flag)}") from exc
    return sock


def _bind_advice(exc: OSError | UnicodeError, flag: str | None) -> str:
    if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
        where = flag or "the nodes configuration"
        return f"another program uses this port; stop it or choose another port in {where}"
    if flag is not None:
        return f"not an address of this machine; correct {flag}"
    if isinstance(exc, UnicodeError | socket.gaierror):
        return "no machine is known by this name; correct `addr` or `listen` in the nodes configuration"
    if exc.errno == errno.EADDRNOTAVAIL:
        return (
            "this is not an address of this machine; correct `addr` in the nodes configuration or, where something "
            "forwards that address to this machine, give the machine's own in `listen`"
        )
    return exc.strerror or str(exc)
