"""How long nodes wait for one another: on the ring, over HTTP, and while a ring is formed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]  # seconds; only differences count


@dataclass(frozen=True)
class Timeouts:
    """One value, passed down to whatever waits. Most of them bound a silence, not the work: machines may be slow.

    What a user sets (`--peer-timeout`, `--node-timeout`) is not among them.
    """

    # on the ring
    ping_interval_s: float = 1.0  # after which a writer with nothing to send pings
    handshake_s: float = 5.0  # to connect to the successor, and again to agree with it
    authentication_s: float = 2.0  # for a pending connection; the real predecessor sends its HELLO immediately
    close_s: float = 2.0  # for a peer to read our last frame and close
    fault_drain_s: float = 2.0  # to forward a FAULT or GOODBYE before the link is closed
    stop_drain_s: float = 1.0  # to send a FAULT of our own when a node ends
    goodbye_s: float = 60.0  # for one last trip round the ring, behind whatever still travels

    # Progress, where signs of life alone say nothing: `patience_s`
    slack: float = 10.0  # times as long as expected, and it counts as stuck
    max_patience_s: float = 60.0  # but after a minute at the latest
    first_patience_s: float = 120.0  # at least, for the first message of a ring, when nothing is known
    long_slack: float = 2.0  # or after twice what is expected, where that is longer
    link_bytes_s: float = 256e3  # what a link is taken to carry before anything was measured
    fast_link_bytes_s: float = 10e6  # a link is never taken to carry more

    # over HTTP
    connect_s: float = 3.0
    answer_s: float = 15.0  # of silence within an answer, not for the whole of it
    min_answer_s: float = 5.0  # the least of that, however near the deadline of a node is
    status_s: float = 2.0  # of silence within a status
    upload_s: float = 300.0  # for one piece of a chunk to arrive: 16 MiB at 56 KB/s
    measure_s: float = 120.0  # for the whole answer to /measure, which takes seconds unless kernels are compiled first
    load_s: float = 3600.0  # for the whole answer to /init, where nobody waits with a deadline of his own
    heartbeat_s: float = 1.0  # between two signs of life while /init loads, if the main thread got on
    stall_s: float = 10.0  # without a step of the main thread; then /init is answered "not now"
    request_head_s: float = 5.0  # for TLS, the request line and all headers together
    request_read_s: float = 30.0  # for each read of a body, and for all of it beside the time that its bytes earn
    server_stop_s: float = 1.0  # for requests under way when a server stops

    # forming a ring
    retry_s: float = 0.5  # between two requests to a node that is not up
    max_retry_s: float = 5.0  # to one that is up and refuses, or fails
    ready_check_s: float = 5.0  # how often a node that waits for its ring asks whether its starter still wants it
    return_check_s: float = 5.0  # how often nodes that a ring runs without are asked whether they are back
    speed_check_s: float = 10.0  # how often the nodes of a ring that was measured are asked how long they have computed
    join_check_s: float = 5.0  # how often a free node asks for a place in the ring of --join
    dismiss_s: float = 1.5  # for all nodes to hear that the run is over

    clock: Clock = time.monotonic  # by which deadlines are computed; a test can set its own

    def deadline_s(self, wait_s: float) -> float:
        """The moment `wait_s` from now, by `clock`."""
        return self.clock() + wait_s

    def left_s(self, deadline_s: float) -> float:
        """The time left until a deadline, never less than 0."""
        return max(0.0, deadline_s - self.clock())

    def patience_s(self, expected_s: float, peer_timeout_s: float) -> float:
        """How long what should take `expected_s` may take before it counts as stuck: never less than a silence may."""
        return max(peer_timeout_s, min(self.slack * expected_s, self.max_patience_s), self.long_slack * expected_s)

    def ping_every_s(self, peer_timeout_s: float) -> float:
        """The ping interval of a link: two of them may be late before the peer takes the link for lost."""
        return min(self.ping_interval_s, peer_timeout_s / 3)


DEFAULT_TIMEOUTS = Timeouts()
