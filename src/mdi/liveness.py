"""Whether a node's main thread still gets on: a process that answers may have one that is stuck."""


def no_tick() -> None:
    """For work that nobody watches."""


class StepCounter:
    """Counts the steps of a node's main thread. That thread ticks; any thread may read."""

    def __init__(self) -> None:
        self.n_steps = 0

    def tick(self) -> None:
        """Note a step: an event that was handled or, within long work, a part of it.

        Loading ticks at least once for each tensor or 16 MB, whichever is more.
        """
        self.n_steps += 1
