"""What the processes of one training agree on, and the files that the first of them writes for all.

Each process has one device. If one of them decided alone to stop or to fail, the others would wait for it.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from lightning.fabric import Fabric
from torch.distributed.tensor import DTensor

from mdi.errors import MdiError, TrainingError
from mdi.strings import one_line

T = TypeVar("T")


class EndedElsewhere(TrainingError):
    """Another process cannot go on, and the first one says why."""


class ProcessLost(TrainingError):
    """Another process has gone away."""


class Processes:
    """The processes that Fabric has launched, seen from one of them.

    What they agree on, all of them have to ask for.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    @property
    def n(self) -> int:
        """How many there are."""
        return int(self._fabric.world_size)

    @property
    def rank(self) -> int:
        """The number of this one."""
        return int(self._fabric.global_rank)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and says what happens."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any of them."""
        return self._reduced(float(flag), "max") > 0

    def mean(self, value: float) -> float:
        """The mean of their values."""
        return self._reduced(value, "mean")

    def _reduced(self, value: float, how: str) -> float:
        if self.n == 1:
            return value
        return float(self._fabric.all_reduce(torch.tensor(value, device=self._fabric.device), reduce_op=how))

    def together(self, act: Callable[[], T]) -> T:
        """What `act` returns, once it has succeeded in all of them.

        Where it raises an `MdiError` in any, the first process raises that, and the others `EndedElsewhere`.
        """
        try:
            outcome, problem = act(), None
        except MdiError as exc:
            if self.n == 1:
                raise
            outcome, problem = None, exc
        if self.n == 1 or not (problems := self._problems(problem)):
            return cast(T, outcome)
        raise problems[0] if self.is_first else EndedElsewhere("another process cannot go on")

    def _problems(self, problem: MdiError | None) -> list[MdiError]:
        """Those of all processes, the first one's first."""
        found: list[MdiError | None] = [None] * self.n
        torch.distributed.all_gather_object(found, problem)
        return [problem for problem in found if problem is not None]

    def write(self, write: Callable[[], object]) -> None:
        """Call `write` in the first process, while the others wait for it; see `together` for what is raised."""
        self.together(lambda: write() if self.is_first else None)


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
    """Turn what is raised where another process has gone away into `ProcessLost`."""
    try:
        yield
    except RuntimeError as exc:
        # gloo, which connects processes on CPUs, has no class of its own.
        if not isinstance(exc, torch.distributed.DistError) and "gloo" not in str(exc):
            raise
        raise ProcessLost(
            f"another process of this training has ended: go on by --init resume ({one_line(exc, 120)})"
        ) from exc


def whole(value: Any) -> Any:
    """A tensor of which each process has a part, whole and in the CPU's memory; anything else as it is.

    All processes have to ask.
    """
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value
