"""One line for each request that is over: who asked for what, and what became of it. No text of prompts or answers."""

import logging
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from mdi.net.refusals import RefusalLog
from mdi.serve.generation import Generation
from mdi.strings import one_line

log = logging.getLogger(__name__)

RECORD = "mdi.access_record"  # in the environ
REQUEST_ID = "X-Request-Id"
MAX_NAME_CHARACTERS = 100
_ASKED_ALL_THE_TIME = ("/health", "/live", "/metrics", "/ring")  # by other programs; their lines would bury the others

Outcome = Literal["finished", "cancelled", "failed", "refused"]


class AccessRecord:
    """One request, and what becomes of it. Called from its thread alone."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.request_id = f"req_{secrets.token_hex(12)}"
        self.status = "500 Internal Server Error"  # until another one is sent
        self.model: str | None = None
        self.generation: Generation | None = None
        self._began_s = time.monotonic()
        self._method, self._route = environ["REQUEST_METHOD"], one_line(environ["PATH_INFO"], MAX_NAME_CHARACTERS)
        self._remote = environ["REMOTE_ADDR"]

    @property
    def outcome(self) -> Outcome:
        """What became of it."""
        generation, code = self.generation, int(self.status[:3])
        if generation is None:
            return "finished" if code < 400 else "refused" if code != 500 else "failed"
        if generation.is_over:
            return "finished"
        return "cancelled" if generation.error is None else "failed"

    def fields(self) -> dict[str, Any]:
        """For a log that programs read; what does not apply is None."""
        generation = self.generation
        usage = generation and generation.usage
        return {
            "request_id": self.request_id,
            "answer_id": generation and generation.answer_id,
            "remote": self._remote,
            "method": self._method,
            "route": self._route,
            "model": self.model and one_line(self.model, MAX_NAME_CHARACTERS),
            "status": int(self.status[:3]),
            "outcome": self.outcome,
            "prompt_tokens": usage and usage.n_prompt,
            "cached_tokens": usage and usage.n_cached,
            "generated_tokens": usage and usage.n_generated,
            "first_token_s": generation and generation.first_token_s and round(generation.first_token_s, 4),
            "seconds": round(time.monotonic() - self._began_s, 4),
        }

    def __str__(self) -> str:
        """`POST /v1/completions from 127.0.0.1: 200 OK, finished, 20 + 12 tokens in 1.50 s`"""
        line = f"{self._method} {self._route} from {self._remote}: {self.status}"
        if self.generation is None:
            return line
        usage, took_s = self.generation.usage, time.monotonic() - self._began_s
        return f"{line}, {self.outcome}, {usage.n_prompt} + {usage.n_generated} tokens in {took_s:.2f} s"

    def write(self, refusals: RefusalLog | None = None) -> None:
        """Write the line; through `refusals` where it is one of many that a stranger can cause."""
        level = logging.DEBUG if self._route.startswith(_ASKED_ALL_THE_TIME) else logging.INFO
        if refusals is not None:
            refusals.add(log, "%s", self, level=level, fields=self.fields())
        else:
            log.log(level, "%s", self, extra={"fields": self.fields()})


class Logged:
    """The body of an answer, which is logged once the server is done with it."""

    def __init__(self, body: Iterable[bytes], record: AccessRecord) -> None:
        self._body, self._record = body, record

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """Called by the server, whether all was sent or the client is gone."""
        try:
            if (close := getattr(self._body, "close", None)) is not None:
                close()
        finally:
            self._record.write()
