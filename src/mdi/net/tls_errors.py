"""Why a TLS handshake failed, for the log of either side: whose certificate it is about, and what the clocks say.

The side that rejects a certificate knows why. The other one gets an alert, a word or two, which is always about its own
certificate; what that word can mean is said here, beside the dates.
"""

import contextlib
import socket
import ssl
import time

from mdi.errors import ConfigError
from mdi.net.tls import Tls, host_name
from mdi.net.validity import Validity, utc
from mdi.strings import one_line

_NOT_YET_VALID, _HAS_EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_...
# By the text, in which versions of OpenSSL differ as little as in anything: "sslv3 alert ...", "ssl/tls alert ...".
_ALERTS = {
    "alert certificate expired": "it says that this node's certificate has ended: compare the clocks",
    "alert bad certificate": (
        "it says that this node's certificate is not valid yet, or for another address: compare the clocks, and `addr`"
    ),
    "alert unknown ca": "it does not trust the authority of this node's certificate",
}
_NOT_TLS = ("HTTP_REQUEST", "WRONG_VERSION_NUMBER")  # of OpenSSL: what came is HTTP, or no record of TLS
_NO_TLS = "alert protocol version"  # also what a node without TLS answers: all of ours have the same versions


def failed_call(exc: ssl.SSLError, tls: Tls | None, addr: str, port: int, timeout_s: float) -> str:
    """Why a handshake failed that this node began.

    A certificate that was rejected for its dates is read once more, for at most `timeout_s`, to tell them.
    """
    if tls is None or not _is_of_dates(exc):
        return _alert(exc, tls)
    presented = _presented_validity(tls, addr, port, timeout_s)
    if presented is None or presented.includes(time.time()):  # then it is the authority's that is not valid
        return f"{_rejected(exc)}; {_own(tls)}"
    return f"its certificate is {presented.compared(time.time())}"


def failed_answer(exc: ssl.SSLError, tls: Tls | None) -> str:
    """Why a handshake failed that another node began. OpenSSL does not show a certificate that it has rejected."""
    if exc.reason in _NOT_TLS:
        return "it does not use it: give `tls` to all nodes, or to none"
    return _alert(exc, tls) if tls is None or not _is_of_dates(exc) else f"{_rejected(exc)}; {_own(tls)}"


def _is_of_dates(exc: ssl.SSLError) -> bool:
    return getattr(exc, "verify_code", None) in (_NOT_YET_VALID, _HAS_EXPIRED)


def _alert(exc: ssl.SSLError, tls: Tls | None) -> str:
    text = one_line(exc)
    if _NO_TLS in text.lower():
        return "it has none: give `tls` to all nodes, or to none"
    meaning = next((meaning for alert, meaning in _ALERTS.items() if alert in text.lower()), None)
    return text if meaning is None or tls is None else f"{meaning}; {_own(tls)}"


def _rejected(exc: ssl.SSLError) -> str:
    """What is wrong with the dates of the other side's certificate, or of its authority's."""
    says = "is not valid yet" if getattr(exc, "verify_code", None) == _NOT_YET_VALID else "has ended"
    return f"its certificate {says} by this machine's clock"


def _own(tls: Tls) -> str:
    """What this node goes by: its certificate, its clock and, where that is not valid by it, the authority's."""
    now_s = time.time()
    try:
        own, ca = tls.validity, tls.ca_validity
    except ConfigError:  # the authority has not signed our certificate, so its dates are not what is wrong
        return f"this machine's clock says {utc(now_s)}"
    authority = "" if ca.includes(now_s) else f"; {tls.ca} is {ca.compared(now_s)}"
    return f"this node's is {own.compared(now_s)}{authority} ({tls.certificate})"


def _presented_validity(tls: Tls, addr: str, port: int, timeout_s: float) -> Validity | None:
    """The dates of the certificate that a node presents, which is of our authority; None where they cannot be had."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection((addr, port), timeout_s))
        secured = stack.enter_context(tls.undated_client.wrap_socket(sock, server_hostname=host_name(addr)))
        return Validity.of(secured.getpeercert() or {})
    return None
