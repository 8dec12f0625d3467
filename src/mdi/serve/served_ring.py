"""What a server asks of the engine behind it."""

from typing import Protocol

from mdi.cluster.condition import RingCondition
from mdi.cluster.ring_view import RingView
from mdi.engine.sample import Sample


class ServedRing(Protocol):
    """The engine's way in, and what is known of its ring. Any thread may call it."""

    @property
    def n_slots(self) -> int:
        """Samples that the ring holds at once."""

    def submit(self, sample: Sample) -> None:
        """Have a sample generated."""

    def cancel(self, sample: Sample) -> None:
        """End a sample, in any phase of its life."""

    @property
    def condition(self) -> RingCondition:
        """How the ring is."""

    def view(self) -> RingView:
        """The ring and its nodes, for those who watch it. May take a second where nobody has asked for a while."""
