"""Stop strings: texts that end an answer, wherever the tokens that make them up begin and end."""

from collections.abc import Sequence


class StopStrings:
    """Looks for the first of several strings in a text that grows."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take what the text has grown by; returns what is surely no part of a stop string, of all so far.

        Once one is `found`, what is before it was returned, and nothing more is.
        """
        if self.found:
            return ""
        text = self._held + text
        begins = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if begins:
            self.found, self._held = True, ""
            return text[: min(begins)]
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def finish(self) -> str:
        """What was held back, when the text has ended without it becoming a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that `stop` begins with, of fewer characters than it has."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
