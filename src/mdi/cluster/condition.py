"""How a ring is, and what befell it, as others see it."""

from dataclasses import dataclass

from mdi.control.status import NodeState


@dataclass(frozen=True)
class Incident:
    """Something that befell the ring while it ran, for plots."""

    at_s: float  # by the clock of the timeouts
    text: str


@dataclass(frozen=True)
class RingCondition:
    """How the ring is, for those who wait for it."""

    state: NodeState
    seconds: float  # for how long
    missing: tuple[str, ...] = ()  # nodes that it is waited for
    n_recoveries: int = 0

    @property
    def is_running(self) -> bool:
        return self.state is NodeState.RUNNING
