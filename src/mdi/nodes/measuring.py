"""A secondary measures itself, and links to other nodes, for whoever plans a ring: one request at a time."""

import logging
import socket
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from mdi.cluster.link_probe import LinkProbe
from mdi.cluster.node_meter import NodeMeter
from mdi.config.network import NodeConfig
from mdi.control.measurement import LinkRequest, Listening, Measured, MeasureRequest, StageRequest
from mdi.control.protocol import NodeBusy
from mdi.errors import ControlError, MdiError
from mdi.inbox import Inbox, Stopped
from mdi.net.refusals import RefusalLog
from mdi.net.timeouts import Timeouts
from mdi.strings import one_line

log = logging.getLogger(__name__)

# How long a node computes at most for others that are still timed beside it. A slow one may take so much longer: for
# weights that are quantized first, or pieces of a prompt that take a second each. Usually the starter ends it before.
MAX_BUSY_S = 30.0


@dataclass(frozen=True, eq=False)
class MeasurementRequested:
    """Somebody plans a ring, and wants to know what this node takes for it."""

    request: MeasureRequest
    answer: "Future[Measured]"


class Measuring:
    """What a node does about requests to measure it."""

    def __init__(
        self,
        config: NodeConfig,
        meter: NodeMeter,
        listener: socket.socket,
        inbox: Inbox,
        refusals: RefusalLog,
        timeouts: Timeouts,
    ) -> None:
        """
        Args:
            listener: where the node waits for its predecessor.
        """
        self._config, self._meter, self._listener = config, meter, listener
        self._inbox, self._refusals, self._timeouts = inbox, refusals, timeouts
        self._is_asked = threading.Lock()  # held from a request to its answer

    def request(self, request: MeasureRequest) -> "Future[Measured]":
        """The answer comes when it was measured. Raises `NodeBusy` while another request is served.

        Called from HTTP threads.
        """
        if not self._is_asked.acquire(blocking=False):
            raise NodeBusy("this node is being measured")
        answer: Future[Measured] = Future()
        answer.add_done_callback(lambda _: self._is_asked.release())
        self._inbox.post(MeasurementRequested(request, answer))
        return answer

    def serve(self, event: MeasurementRequested, *, is_idle: bool) -> None:
        """Measure, or refuse to: a node that serves a run has its memory and its cores for that.

        A node that shares its machine computes on after its answer, until the next event, or `MAX_BUSY_S`.

        Called from the main thread. Raises `Stopped` after a signal.
        """
        request, answer = event.request, event.answer
        if not is_idle:
            answer.set_exception(NodeBusy("this node serves a run: it is measured while it is idle"))
            return
        try:
            if isinstance(request, StageRequest):
                answer.set_result(self._stage(request))
            else:
                self._link(request, answer)
        except MdiError as exc:
            _settle(answer, exc)
        except BaseException as exc:
            _settle(answer, NodeBusy("the node was stopped") if isinstance(exc, Stopped) else ControlError(repr(exc)))
            raise
        deadline_s = self._timeouts.deadline_s(MAX_BUSY_S)
        self._meter.keep_busy(lambda: self._inbox.is_empty and self._timeouts.left_s(deadline_s) > 0)

    def _stage(self, request: StageRequest) -> Measured:
        log.info("timing the layers of %s", one_line(str(request.config.get("name"))))
        return self._meter.measure(request)

    def _link(self, request: LinkRequest, answer: "Future[Measured]") -> None:
        probe = LinkProbe(
            request,
            listener=self._listener,
            inbox=self._inbox,
            access=self._config.access,
            source_port=self._config.port_out,
            refusals=self._refusals,
            timeouts=self._timeouts,
        )
        with probe:
            if request.rank == 0:
                answer.set_result(probe.times())
            else:
                answer.set_result(Listening())
                probe.echo()


def _settle(answer: "Future[Measured]", error: Exception) -> None:
    """Answer with an error, or log it where the answer was given before."""
    if answer.done():
        log.warning("a link was not measured: %s", error)
    else:
        answer.set_exception(error)
