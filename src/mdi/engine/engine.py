"""The starter's loop: fill the ring, choose tokens from what returns, feed them back.

The loop does not know whether the ring is a link to other machines or the starter alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mdi.engine.ring import Ring
from mdi.engine.sample import Sample
from mdi.engine.sampler import Sampling, choose
from mdi.engine.scheduler import Scheduler
from mdi.model.head import Ends
from mdi.model.stage import Stage
from mdi.segments import Release
from mdi.trace import Timeline


@dataclass(frozen=True)
class Observer:
    """Whom to tell about each token (before it is known to end its sample) and each finished sample."""

    on_token: Callable[[Sample, int], None]
    on_end: Callable[[Sample], None]


def generate(
    ring: Ring,
    stage: Stage,
    ends: Ends,
    scheduler: Scheduler,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    observer: Observer,
    timeline: Timeline,
) -> None:
    """Run every sample of `scheduler` to its end.

    Where the ring breaks, a call with another ring and the same `generators` goes on from what the scheduler
    knows: a number is drawn only for a token that is accepted at once.

    Args:
        generators: one for each sample, by number.
    """
    while not scheduler.done:
        while (step := scheduler.next_step()) is not None:
            for fork in step.forks:
                stage.fork(fork.source, fork.target, fork.n)
                ring.control(fork)
            with timeline.during("compute", len(step.ids)):
                hidden = stage.forward(ends.embed(step.ids), step.segments)
            ring.send(step.segments, hidden)
        with timeline.during("idle"):
            segments, rows = ring.receive()
        samples = scheduler.returned(segments)
        if not samples:
            continue
        with timeline.during("compute", len(samples)):
            for sample, logits in zip(samples, ends.logits(rows), strict=True):
                token = choose(logits, sampling, generators[sample.number])
                observer.on_token(sample, token)
                freed_slot = scheduler.accept(sample, token)
                if freed_slot is not None:
                    stage.release(freed_slot)
                    ring.control(Release(freed_slot))
                    observer.on_end(sample)
