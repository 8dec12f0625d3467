"""What a secondary has done in a session, for its log."""

from collections.abc import Sequence
from dataclasses import dataclass

from mdi.segments import Segment, kept_rows_of, rows_of
from mdi.strings import count, format_bytes


@dataclass
class SessionWork:
    """Counts of messages with rows. All times are by one clock."""

    n_messages: int = 0
    n_rows: int = 0
    n_tokens: int = 0  # that the starter can choose from what was computed
    n_bytes: int = 0  # of rows, sent to the successor
    busy_s: float = 0.0
    began_s: float = 0.0  # when the first message was there
    ended_s: float = 0.0  # when the last one had been computed

    def add(self, segments: Sequence[Segment], n_bytes: int, began_s: float, ended_s: float) -> None:
        """A message was computed from `began_s` to `ended_s`; `n_bytes` of rows go on."""
        self.began_s = self.began_s if self.n_messages else began_s
        self.ended_s = ended_s
        self.busy_s += ended_s - began_s
        self.n_messages += 1
        self.n_rows += rows_of(segments)
        self.n_tokens += kept_rows_of(segments)
        self.n_bytes += n_bytes

    def __str__(self) -> str:
        """`30 messages, 90 rows, 60 tokens in 1.50 s: 40.00 tokens/s, computing 53% of the time; 1.20 MB sent on`"""
        passed_s = max(self.ended_s - self.began_s, 1e-9)
        rate = f"{self.n_tokens / passed_s:.2f} tokens/s, computing {100 * self.busy_s / passed_s:.0f}% of the time"
        sent = f"{format_bytes(self.n_bytes)} sent on"
        counts = (count(self.n_messages, "message"), count(self.n_rows, "row"), count(self.n_tokens, "token"))
        return f"{', '.join(counts)} in {passed_s:.2f} s: {rate}; {sent}"
