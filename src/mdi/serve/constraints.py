"""The answers that are held to a grammar: a bounded number of them, each as long as its sample lives."""

import threading

from mdi.engine.sample import Sample
from mdi.serve.errors import RATE_LIMIT, ApiError, refusing
from mdi.serve.shapes import Shape
from mdi.text.matchers import Matcher, Matchers

MAX_CONSTRAINTS = 32  # that wait or are generated: each has a process


class Constraints:
    """Begun by the threads of requests, ended by any."""

    def __init__(self, matchers: Matchers | None) -> None:
        """`matchers` is None where no answer can be held to anything."""
        self._matchers = matchers
        self._open: dict[Sample, Matcher] = {}
        self._spare = threading.BoundedSemaphore(MAX_CONSTRAINTS)

    @property
    def n_open(self) -> int:
        return len(self._open)

    def begin(self, sample: Sample, shape: Shape) -> None:
        """Let a sample follow the grammar of its shape, until `end`. Raises `ApiError`."""
        if self._matchers is None or shape.grammar is None:
            raise ApiError(400, f"{shape.param} is not supported here", param=shape.param, code="unsupported_parameter")
        if not self._spare.acquire(blocking=False):
            message = f"{MAX_CONSTRAINTS} answers of a given form are under way already; try again in a second"
            raise ApiError(429, message, RATE_LIMIT, code="queue_full", retry_after_s=1)
        try:
            self._open[sample] = sample.constraint = _matcher(self._matchers, shape.grammar, shape.param)
        except BaseException:
            self._spare.release()
            raise

    def end(self, sample: Sample) -> None:
        """Nothing happens where the sample has no constraint."""
        if (matcher := self._open.pop(sample, None)) is not None:
            matcher.close()
            self._spare.release()


def _matcher(matchers: Matchers, grammar: str, param: str) -> Matcher:
    try:
        with refusing(param):
            return matchers.begin(grammar)
    except ModuleNotFoundError as exc:  # an optional one
        message = f"{param} needs {exc.name}, which the server lacks: pip install {exc.name}"
        raise ApiError(400, message, param=param, code="unsupported_parameter") from exc
