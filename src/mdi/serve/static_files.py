"""The page at `/`: the files of `serve/page`, held in memory, and the headers that they are sent with."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cherrypy
from cherrypy.lib.cptools import validate_etags

from mdi.installation import PACKAGE_DIR

PAGE_DIR = PACKAGE_DIR / "serve" / "page"
INDEX = "/"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# Whatever a model writes, it cannot become code: nothing is loaded from elsewhere, no script is inline, and browsers
# that have trusted types refuse to parse strings as HTML.
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
_HEADERS = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Browsers ask each time, and are told that nothing has changed: all files are of one version of the program.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class StaticFile:
    """One file, and what it is sent as."""

    content: bytes
    content_type: str
    etag: str

    def send(self) -> bytes:
        """The body of the current response. Raises cherrypy's 304 where the client has this file already."""
        cherrypy.response.headers |= _HEADERS
        cherrypy.response.headers["ETag"] = self.etag
        validate_etags()
        cherrypy.response.headers["Content-Type"] = self.content_type
        cherrypy.response.headers["Content-Length"] = str(len(self.content))
        return self.content


def read_page(folder: Path = PAGE_DIR) -> dict[str, StaticFile]:
    """The files of the page, by the path of their URL. What is asked for is looked up here, never in a file system."""
    files = {f"/page/{path.name}": _read(path) for path in folder.iterdir() if path.suffix in _TYPES}
    return {INDEX: files.pop("/page/index.html"), **files}


def _read(path: Path) -> StaticFile:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:32]
    return StaticFile(content, f"{_TYPES[path.suffix]}; charset=utf-8", f'"{digest}"')
