"""Where a server listens, and which keys it accepts: from options, the environment and files."""

import os
import re
from collections.abc import Iterator

from mdi.config.options import OutputOptions, PromptOptions, SamplingOptions, ServeOptions, StarterOptions
from mdi.config.section import defaults_of
from mdi.documents import read_text
from mdi.errors import ConfigError
from mdi.net.access import is_loopback
from mdi.net.sockets import MAX_PORT

DEFAULT_ADDRESS = "127.0.0.1:8000"
KEY_VARIABLE = "MDI_API_KEY"
MAX_KEY_FILE_BYTES = 1 << 16
# What a server says when it is ready: its model and its URL. A program that started it reads that.
SERVING = "serving %s on %s; open %s/ in a browser to chat"
_SERVING = re.compile(r"serving .+ on (http://\S+/v1);")
_ADDRESS = re.compile(r"(?:(\[[^\[\]]+\]|[^:\[\]]*):)?([0-9]{1,5})")


def serve_address(options: ServeOptions, *, has_keys: bool) -> tuple[str, int]:
    """Host and port. Raises `ConfigError` for what is none, and for one that strangers reach without a key."""
    match = _ADDRESS.fullmatch(options.serve or DEFAULT_ADDRESS)
    if match is None or int(match[2]) > MAX_PORT:
        raise ConfigError(f"--serve {options.serve}: expected HOST:PORT, such as {DEFAULT_ADDRESS} or 0.0.0.0:8000")
    host = (match[1] or "127.0.0.1").strip("[]")
    if not has_keys and not options.insecure and not is_loopback(host):
        raise ConfigError(
            f"--serve {options.serve}: other machines can reach {host}: set {KEY_VARIABLE} or --api-key, or --insecure"
            " to serve everyone"
        )
    return host, int(match[2])


def site_url(host: str, port: int) -> str:
    """The URL of a server at an address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def served_url(line: str) -> str | None:
    """The URL of the API in the line `SERVING`; None in another line."""
    match = _SERVING.search(line)
    return match and match[1]


def check_serving(options: StarterOptions) -> None:
    """Raise `ConfigError` for what a run of prompts is told, and a server is not: its requests tell it."""
    given = [
        f"--{name.replace('_', '-')}"
        for section in (PromptOptions, SamplingOptions, OutputOptions)
        for name, default in defaults_of(section).items()
        if name != "seed" and getattr(options, name) != default
    ]
    if given:
        raise ConfigError(f"--serve takes its prompts from requests, and all about them: leave out {', '.join(given)}")


def api_keys(options: ServeOptions) -> Iterator[str]:
    """All keys that are given, whichever way. Raises `ConfigError` for a file that cannot be read or has none."""
    yield from options.api_key
    if options.api_key_file is not None:
        lines = read_text(options.api_key_file, MAX_KEY_FILE_BYTES, ConfigError).splitlines()
        keys = [line for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"{options.api_key_file}: no key in it")
        yield from keys
    if not options.api_key and options.api_key_file is None and (value := os.environ.get(KEY_VARIABLE)):
        yield from value.split(",")
