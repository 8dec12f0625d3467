"""What a target is: valid inputs, what is done with an input, and how inputs are changed."""

import random
from abc import ABC, abstractmethod
from pathlib import Path

from fuzz.mutations import change_bytes


class Target(ABC):
    """One reader of foreign bytes. It may write below `scratch` and nowhere else."""

    name: str
    unit = "inputs"  # what `check` counts
    max_bytes = 4096
    share = 1.0  # of the time, relative to the others
    least_units = 0  # a full run goes on until it has seen as many
    growth_limit_bytes = 32 << 20  # of resident memory between the first second and the end

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.accepted = 0  # inputs that were read to their end

    @abstractmethod
    def seeds(self) -> list[bytes]:
        """Valid inputs, and whatever else is a good beginning."""

    @abstractmethod
    def check(self, data: bytes) -> int:
        """Read `data`; return how many units it held. Raises for anything that no caller is told to expect."""

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        """A change that knows the format."""
        return change_bytes(data, rng)

    def repair(self, data: bytes, rng: random.Random) -> bytes:
        """Bytes that were changed blindly, with what must fit together fitting again, most of the time."""
        return data
