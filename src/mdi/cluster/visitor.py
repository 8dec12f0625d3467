"""A node that takes part in no ring: others try whether they reach this machine, and it answers them."""

import contextlib
import time
from concurrent.futures import Future
from typing import Any

from mdi import __version__
from mdi.control.join import JoinRequest
from mdi.control.measurement import Measured, MeasureRequest
from mdi.control.routes import ControlServer
from mdi.control.session import SessionSpec
from mdi.control.status import InitAnswer, NodeState, StarterStatus
from mdi.errors import ControlError
from mdi.identity import Identity
from mdi.machine import memory_bytes, peak_memory_bytes
from mdi.net.access import Access
from mdi.net.sockets import listen
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts


class Visitor:
    """Listens where a starter would, on both ports. Use it as a context. Its answers are those of a starter."""

    cache = None
    n_steps = 0

    def __init__(
        self, addr: str, port: int, ring_port: int, access: Access, timeouts: Timeouts = DEFAULT_TIMEOUTS
    ) -> None:
        """Ports of 0 are any free ones. Raises `ConfigError` where one is taken."""
        self._identity = Identity.new()
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._listener = stack.enter_context(listen(addr, ring_port))  # whose connections the system completes
            self._control = ControlServer(addr, port, self, access, timeouts)
            stack.callback(self._control.close)
            self._resources = stack.pop_all()

    def __enter__(self) -> "Visitor":
        self._control.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def port(self) -> int:
        """Where it answers HTTP."""
        return self._control.port

    def status(self) -> StarterStatus:
        return StarterStatus(
            version=__version__,
            state=NodeState.STARTING,
            device="none",
            dtype="float32",
            own_dtype=None,
            quantize=None,
            run=None,
            epoch=None,
            model=None,
            span=None,
            peak_memory_bytes=peak_memory_bytes(),
            free_memory_bytes=None,
            memory_bytes=memory_bytes(),
            name=self._identity.name,
            boot=self._identity.boot,
            process=self._identity.process,
            ring_port=self._listener.getsockname()[1],
            time_s=time.time(),
            members=[],
            samples=0,
            tokens=0,
            recoveries=0,
        )

    def timeline(self) -> dict[str, Any]:
        raise ControlError(_NO_NODE)

    def request_init(self, spec: SessionSpec) -> "Future[InitAnswer]":
        raise ControlError(_NO_NODE)

    def request_measurement(self, request: MeasureRequest) -> "Future[Measured]":
        raise ControlError(_NO_NODE)

    def request_join(self, request: JoinRequest, addr: str) -> str:
        raise ControlError(_NO_NODE)

    def request_release(self, run: int) -> None:
        raise ControlError(_NO_NODE)

    def request_stop(self, run: int | None) -> None:
        raise ControlError(_NO_NODE)


_NO_NODE = "this program asks which nodes there are, and is none itself"
