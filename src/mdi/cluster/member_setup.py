"""One member of a ring gets ready: it is configured, sent its weights if it lacks them, and waited for.

All of it runs in a thread of the member's own, so that members get ready in parallel.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mdi.control.client import ControlClient
from mdi.control.protocol import UPLOAD_BYTES, NoAnswer, NodeBusy, is_silent
from mdi.control.session import SessionSpec
from mdi.control.status import NodeStatus, Ready
from mdi.errors import ControlError
from mdi.ids import NodeId
from mdi.installation import program_name
from mdi.net.timeouts import Timeouts

log = logging.getLogger(__name__)
T = TypeVar("T")

MIN_LOAD_BYTES_S = 4e6  # of float32 weights; a node that loads more slowly counts as missing


class PeersTimedOut(ControlError):
    """Members that did not answer until their deadlines. The text is the first one's."""

    def __init__(self, text: str, nodes: Sequence[NodeId] = ()) -> None:
        super().__init__(text)
        self.nodes = tuple(nodes)


@dataclass(frozen=True)
class Patience:
    """How long members are waited for, and on account of what."""

    node_timeout_s: float  # without a sign of life
    deadline_s: Callable[[NodeId], float]  # until when to wait for a member's first answer, by the clock of `Timeouts`
    waits_for: Callable[[ControlError], bool]  # whether a member that fails so counts as missing; else it is an error
    on_missing: Callable[[NodeId, ControlError], None]  # called from the members' threads, more than once


class MemberSetup:
    """Gets one secondary ready to take part in a session."""

    def __init__(
        self, node: NodeId, client: ControlClient, patience: Patience, timeouts: Timeouts, closing: threading.Event
    ) -> None:
        """`closing` is set when nobody is waited for any more."""
        self._node, self._client, self._patience = node, client, patience
        self._timeouts, self._closing = timeouts, closing
        self._deadline_s = patience.deadline_s(node)
        self._pause_s = timeouts.retry_s
        self._was_busy = False  # when it was asked before
        self._was_there = False

    def await_status(self) -> NodeStatus | None:
        """What it says of itself, once it is up; None if that is no status. Raises `PeersTimedOut`."""
        while True:
            try:
                return self._client.status()
            except NoAnswer as exc:
                self._wait_or_give_up(exc)
            except ControlError:  # whatever is wrong there, the answer to /init will say it
                return None

    def ask(self, question: Callable[[], T]) -> T:
        """The answer to a question; the member is waited for like one that is configured.

        Raises `PeersTimedOut` where it is still missing at its deadline, and what is not to be waited for.
        """
        while True:
            try:
                answer = question()
            except ControlError as exc:
                if not self._patience.waits_for(exc):
                    raise
                self._wait_or_give_up(exc)
            else:
                self._was_there = True
                return answer

    def configure(self, spec: SessionSpec, weights_bytes: int, send_chunk: Callable[[], None]) -> Ready:
        """Have it load its part of a session.

        Args:
            weights_bytes: of that part, in float32; they bound how long loading may take.
            send_chunk: sends it the weights that it lacks.

        Raises `PeersTimedOut` where it is still missing at its deadline, and what is not to be waited for.
        """
        most_held = -UPLOAD_BYTES
        if self._was_there:  # what has passed since then was spent on waiting for its neighbours
            self._deadline_s = max(self._deadline_s, self._timeouts.deadline_s(self._patience.node_timeout_s))
        load_s = weights_bytes / MIN_LOAD_BYTES_S
        limit_s = self._deadline_s + load_s
        while True:
            asked_s, silence_s = self._timeouts.clock(), self._silence_s()
            try:
                answer = self._client.init(spec, silence_s, within_s=self._timeouts.left_s(limit_s) + silence_s)
                if isinstance(answer, Ready):
                    return answer
                if answer.held_bytes >= most_held + UPLOAD_BYTES:  # the last transfer got somewhere
                    most_held = answer.held_bytes
                    self._deadline_s = self._timeouts.deadline_s(self._patience.node_timeout_s)
                send_chunk()
                limit_s = self._timeouts.deadline_s(self._patience.node_timeout_s) + load_s
            except ControlError as exc:
                if not self._patience.waits_for(exc):
                    raise
                self._count_as_seen(asked_s, silence_s, limit_s)
                self._wait_or_give_up(exc)

    def _silence_s(self) -> float:
        """How long it may be silent: a node that lives gives a sign of life every second."""
        timeouts = self._timeouts
        return min(timeouts.answer_s, max(timeouts.min_answer_s, timeouts.left_s(self._deadline_s)))

    def _count_as_seen(self, asked_s: float, silence_s: float, limit_s: float) -> None:
        """A call that lasted longer than silent ones do had signs of life: the node is missing only since the last one.

        But no longer than loading can take: an impostor may send signs of life for ever.
        """
        timeouts, now_s = self._timeouts, self._timeouts.clock()
        silent_call_s = timeouts.connect_s + 2 * silence_s + timeouts.heartbeat_s  # for a nonce, and for the answer
        if now_s - asked_s > silent_call_s:
            seen_s = now_s - silence_s
            self._deadline_s = max(self._deadline_s, min(seen_s + self._patience.node_timeout_s, limit_s))

    def _wait_or_give_up(self, exc: ControlError) -> None:
        if self._timeouts.clock() > self._deadline_s or self._closing.is_set():
            advice = f": is {program_name('secondary')} running there?" if is_silent(exc) else "."
            if is_silent(exc) and self._was_busy:
                advice += " It was busy; a node ends with the run that it serves unless that starter has --keep-nodes."
            waited = f"Waited {self._patience.node_timeout_s:g} s (--node-timeout)"
            raise PeersTimedOut(f"{exc}{advice} {waited}", [self._node]) from exc
        self._was_busy |= isinstance(exc, NodeBusy)
        self._patience.on_missing(self._node, exc)
        # What answers wrongly may be a node that has to read gigabytes for it: it is asked less and less often.
        is_away = isinstance(exc, NoAnswer | NodeBusy)
        self._pause_s = self._timeouts.retry_s if is_away else min(2 * self._pause_s, self._timeouts.max_retry_s)
        self._closing.wait(min(self._pause_s, self._timeouts.left_s(self._deadline_s) + self._timeouts.retry_s))
