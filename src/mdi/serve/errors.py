"""What a request is refused with, in the shape that clients of OpenAI's API know.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from mdi.errors import GrammarError, MdiError

INVALID_REQUEST, AUTHENTICATION = "invalid_request_error", "authentication_error"
RATE_LIMIT, SERVER = "rate_limit_error", "server_error"


class ApiError(Exception):
    """A request that is not served, and why."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID_REQUEST,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """`param` is the parameter of the request that is to blame; `code` what a program can decide by."""
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s
        self._kind, self._param, self._code = kind, param, code

    def to_json(self) -> dict[str, Any]:
        error = {"message": str(self), "type": self._kind, "param": self._param, "code": self._code}
        return {"error": error}


def context_length_exceeded(has: str, context: int) -> ApiError:
    message = f"the prompt has {has}; the context of {context} tokens leaves no room to answer"
    return ApiError(400, message, code="context_length_exceeded")


def unauthorized(message: str) -> ApiError:
    return ApiError(401, message, AUTHENTICATION, code="invalid_api_key")


def unavailable(message: str, retry_after_s: int = 1) -> ApiError:
    """The ring cannot serve it now."""
    return ApiError(503, message, SERVER, code="unavailable", retry_after_s=retry_after_s)


def queue_full(n_waiting: int, retry_after_s: int) -> ApiError:
    message = f"{n_waiting} requests are waiting already; try again in {retry_after_s} s"
    return ApiError(429, message, RATE_LIMIT, code="queue_full", retry_after_s=retry_after_s)


def failed(message: str) -> ApiError:
    """It was begun, and cannot be finished."""
    return ApiError(500, message, SERVER, code="generation_failed")


@contextlib.contextmanager
def refusing(param: str) -> Iterator[None]:
    """What a template, a vocabulary or a grammar refuses is the fault of what was asked."""
    try:
        yield
    except GrammarError as exc:
        raise ApiError(400, f"{param}: {exc}", param=param, code="invalid_value") from exc
    except MdiError as exc:
        raise ApiError(400, str(exc), param=param) from exc
