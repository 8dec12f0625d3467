"""A secondary asks a starter for a place in its ring."""

import logging
import threading
from collections.abc import Callable

from mdi.control.client import ControlClient
from mdi.control.join import JoinRequest
from mdi.errors import ControlError
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts

log = logging.getLogger(__name__)


class Joiner:
    """Asks again and again while the node is free: the starter may come later, or be another one after a while.

    A thread of its own, inside the context. The starter answers the same however often it is asked.
    """

    def __init__(
        self,
        starter: ControlClient,
        http_port: int,
        is_free: Callable[[], bool],
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        """
        Args:
            http_port: of this node.
            is_free: whether it is in no session. Called from the thread.
        """
        self._starter, self._request, self._is_free = starter, JoinRequest(http_port), is_free
        self._timeouts, self._told = timeouts, ""
        self._closing = threading.Event()

    def __enter__(self) -> "Joiner":
        threading.Thread(target=self._ask_on, name="joiner", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """A question that is under way ends soon, and is not waited for."""
        self._closing.set()

    def _ask_on(self) -> None:
        while not self._closing.is_set():
            if self._is_free():
                self._ask()
            self._closing.wait(self._timeouts.join_check_s)

    def _ask(self) -> None:
        try:
            name = self._starter.join(self._request)
        except ControlError as exc:
            self._tell(f"not in a ring yet: {exc}; asking again")
        else:
            self._tell(f"in the ring of {self._starter.url} this node is {name}: it takes part when it is ready")

    def _tell(self, line: str) -> None:
        if line != self._told:  # once
            self._told = line
            log.warning("%s", line)
