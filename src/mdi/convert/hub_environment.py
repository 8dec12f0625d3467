"""Variables of the environment that a fetch depends on, checked before it: each fault is one line that names it.

They belong to httpx, ssl and huggingface_hub, which fail on them with errors about other things: a missing package, a
file without a name, an endpoint. `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE` are not checked: httpx does not read them.
"""

import os
import ssl
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from mdi.errors import ConfigError

_PROXIED = ("http", "https", "all")
_WHOLE_NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_UNREAD_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def check_numbers() -> None:
    """Raise `ConfigError` for what would keep huggingface_hub from being imported."""
    for name in _WHOLE_NUMBERS:
        value = os.environ.get(name, "0")
        try:
            int(value)
        except ValueError as exc:
            raise ConfigError(f"{name} is {value!r}, not a whole number of seconds: correct it or unset it") from exc


def check_connection() -> None:
    """Raise `ConfigError` for certificates or proxies that cannot be used."""
    _check_key_log()
    _check_certificates()
    _check_proxies()


def proxy_variable(url: str) -> str | None:
    """The variable that names the proxy by which `url` is reached, if any."""
    parts, proxies = urlsplit(url), getproxies()
    if _is_off(proxies) or proxy_bypass(parts.hostname or ""):
        return None
    return next((_name_of(scheme) for scheme in (parts.scheme, "all") if proxies.get(scheme)), None)


def trust_advice() -> str:
    """How to have certificates trusted that no public authority has signed."""
    unread = next((f", not {name}," for name in _UNREAD_CERTIFICATES if os.environ.get(name)), "")
    return f"where a proxy has a certificate of its own, set SSL_CERT_FILE{unread} to a file that holds its authority"


def _check_key_log() -> None:
    if file := os.environ.get("SSLKEYLOGFILE"):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = file
        except (OSError, ValueError) as exc:
            raise ConfigError(f"SSLKEYLOGFILE is {file!r}, which cannot be written: {_reason(exc)}; unset it") from exc


def _check_certificates() -> None:
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        try:
            ssl.create_default_context(cafile=file)
        except (OSError, ValueError) as exc:  # `SSLError` is an `OSError`
            reason = "no certificates in it" if isinstance(exc, ssl.SSLError) else _reason(exc)
            raise ConfigError(f"SSL_CERT_FILE is {file!r}: {reason}; correct it or unset it") from exc
    elif folder and not Path(folder).is_dir():
        raise ConfigError(f"SSL_CERT_DIR is {folder!r}: no such folder; correct it or unset it")


def _check_proxies() -> None:
    """Proxy URLs are not quoted: they may hold a password."""
    import httpx

    proxies = getproxies()
    if _is_off(proxies):
        return
    for scheme in _PROXIED:
        if url := proxies.get(scheme):
            _check_proxy(_name_of(scheme), url if "://" in url else f"http://{url}")
    try:
        httpx.Client().close()
    except (httpx.InvalidURL, ValueError) as exc:  # the proxies are well: what is left are the hosts without one
        name, value = _name_of("no"), proxies.get("no", "")
        raise ConfigError(f"{name} is {value!r}: not hosts such as localhost,10.0.0.1: correct it or unset it") from exc


def _is_off(proxies: dict[str, str]) -> bool:
    """Whether no host is reached through a proxy."""
    return "*" in map(str.strip, proxies.get("no", "").split(","))


def _check_proxy(name: str, url: str) -> None:
    import httpx

    try:
        httpx.Client(proxy=url, trust_env=False).close()
        if not httpx.URL(url).host:
            raise ValueError("no host")
    except ImportError as exc:
        raise ConfigError(
            f"{name} names a SOCKS proxy, which takes one more package: `pip install socksio`, or name an HTTP proxy"
        ) from exc
    except (httpx.InvalidURL, ValueError) as exc:
        raise ConfigError(
            f"{name} is not the URL of a proxy, such as http://proxy.example:3128: correct it or unset it"
        ) from exc


def _reason(exc: OSError | ValueError) -> str:
    return getattr(exc, "strerror", None) or str(exc)


def _name_of(scheme: str) -> str:
    """The variable that `getproxies` takes the proxy of `scheme` from: the one in small letters comes first."""
    wanted = f"{scheme}_proxy"
    names = [name for name, value in os.environ.items() if name.lower() == wanted and value]
    return max(names, default=f"the proxy for {scheme} in the system's settings")
