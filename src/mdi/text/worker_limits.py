"""What one request may take of the text worker's processes: limits that the kernel applies.

It needs no turn of Python for that: a single operation such as a power of large numbers, or a call into native code,
can take minutes.
"""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def limits(seconds: float, memory_bytes: int) -> Iterator[None]:
    """The kernel ends this process after `seconds` within the block, and refuses it more memory."""
    _limit_memory(memory_bytes)
    signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM and SIGIO end a process that has no handler for them
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(n_bytes: int) -> None:
    """Let allocations fail beyond `n_bytes` of data, or beyond an earlier limit that was larger.

    An earlier one may be in use still, because freed memory does not all go back to the system. Where there is no such
    limit (macOS counts no mappings) the time and the size of answers are bounded alone.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if soft != resource.RLIM_INFINITY:
            n_bytes = max(n_bytes, soft)
        if hard != resource.RLIM_INFINITY:
            n_bytes = min(n_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, hard))
