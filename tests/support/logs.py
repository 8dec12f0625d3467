"""What a log says as an event that tests wait for."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator


class _Trigger(logging.Handler):
    def __init__(self, text: str, action: Callable[[], None]) -> None:
        super().__init__()
        self._text, self._action = text, action
        self.threads: list[threading.Thread] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.threads.append(threading.Thread(target=self._action))
            self.threads[-1].start()


@contextlib.contextmanager
def before_log(logger: str, text: str, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` on the logging thread, before each message of `logger` that contains `text`."""

    def look(record: logging.LogRecord) -> bool:
        if text in record.getMessage():
            action()
        return True

    logging.getLogger(logger).addFilter(look)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(look)


@contextlib.contextmanager
def whenever_logged(logger: str, text: str, action: Callable[[], None]) -> Iterator[None]:
    """Call `action`, in a thread of its own, at each message of `logger` that contains `text`."""
    trigger = _Trigger(text, action)
    logging.getLogger(logger).addHandler(trigger)
    try:
        yield
    finally:
        logging.getLogger(logger).removeHandler(trigger)
        for thread in trigger.threads:
            thread.join()
