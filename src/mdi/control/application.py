"""CherryPy as a router of JSON, used plainly: for the routes of nodes, and for those of users."""

import html
import json
import logging
import string
from collections.abc import Callable
from typing import Any

import cherrypy

from mdi.control.protocol import JSON
from mdi.control.server import SERVER_NAME

# cherrypy finds a handler by walking attributes: `/_node/cache` would be looked up on our object, `/__class__` too.
# With every punctuation mark of a path read as `-`, which no attribute has in its name, only the exposed methods are
# found. (By default it reads all of them as `_`, so that `/.node` would be `/_node`.)
_NO_PRIVATE_NAMES = str.maketrans(dict.fromkeys(string.punctuation, "-"))


def application_with(
    routes: object, error_of: Callable[[int, str], dict[str, Any]], log: logging.Logger
) -> cherrypy.Application:
    """The exposed methods of `routes` as a WSGI application.

    `error_of` gives the body for what cherrypy itself refuses, by status and message: an unknown path, a method that a
    route does not have.
    """

    def error_page(status: str, message: str, traceback: str, version: str) -> str:
        cherrypy.response.headers["Content-Type"] = JSON
        return json.dumps(error_of(int(status[:3]), html.unescape(message)))

    config = {
        "request.dispatch": cherrypy.dispatch.Dispatcher(translate=_NO_PRIVATE_NAMES),
        "request.process_request_body": False,  # its form parsers would read the body before we check the length
        "request.show_tracebacks": False,
        "error_page.default": error_page,
        "response.stream": True,
        "tools.response_headers.on": True,  # the server tells its own name and version, not CherryPy's
        "tools.response_headers.headers": [("Server", SERVER_NAME)],
        "tools.encode.on": False,  # it would wrap streams, and not pass on that they are closed
        "tools.trailing_slash.on": False,
    }
    application = cherrypy.Application(routes, "", config={"/": config})
    application.log.access_log.disabled = True
    application.log.error_log.parent = log
    return application
