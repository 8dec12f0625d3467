"""What a log says of refused connections and requests: few lines, short and printable, whatever peers send."""

import logging
import threading
import time
from collections.abc import Mapping

from mdi.net.timeouts import Clock
from mdi.strings import one_line

log = logging.getLogger(__name__)

BURST = 5  # lines at once
LINE_EVERY_S = 10.0  # after those
SUMMARY_EVERY_S = 60.0  # of the lines that were left out
MAX_CHARACTERS = 500  # of a line


class RefusalLog:
    """The limit of one node's log lines about unauthenticated peers. Called from any thread.

    A flood of connections must not fill the disk, nor hide the other lines; so most of its lines are only counted.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._n_allowed, self._as_of_s = float(BURST), clock()  # a token bucket
        self._n_omitted, self._since_s = 0, 0.0

    def add(
        self,
        logger: logging.Logger,
        text: str,
        *arguments: object,
        level: int = logging.WARNING,
        trace: bool = False,
        fields: Mapping[str, object] | None = None,
    ) -> None:
        """Have `logger` write `text % arguments`, made printable, with the traceback if `trace`; or count it.

        `fields` say the same to a log that programs read.
        """
        self.summarize()
        if self._allows_line():
            line = one_line(text % tuple(one_line(str(each), MAX_CHARACTERS) for each in arguments), MAX_CHARACTERS)
            logger.log(level, "%s", line, exc_info=trace, extra={"fields": fields or {}})

    def summarize(self) -> None:
        """Write how many lines were left out, if that is due. To be called now and then."""
        with self._lock:
            n_omitted, past_s = self._n_omitted, self._clock() - self._since_s
            if n_omitted == 0 or past_s < SUMMARY_EVERY_S:
                return
            self._n_omitted = 0
        log.warning("... and %d more connections were refused in the last %.0f s", n_omitted, past_s)

    def _allows_line(self) -> bool:
        with self._lock:
            now_s = self._clock()
            self._n_allowed = min(float(BURST), self._n_allowed + (now_s - self._as_of_s) / LINE_EVERY_S)
            self._as_of_s = now_s
            if self._n_allowed >= 1:
                self._n_allowed -= 1
                return True
            if self._n_omitted == 0:
                self._since_s = now_s
            self._n_omitted += 1
            return False
