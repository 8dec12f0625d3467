"""Where weights lie that a backend has laid out for itself: in memory of their own, or in files that outlive the node.

A backend asks for a *part*, such as its head or its blocks, and then for each tensor of it by name. What the part does
not have is made, from weights that are read for it.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

Make = Callable[[], torch.Tensor]


class CannotKeepError(Exception):
    """What was packed cannot be kept in a file; the text says why. It can be made again, in memory."""


class MappedBytes(Protocol):
    """Bytes of a file as memory that cannot be written to. They stay mapped as long as a tensor over them lives."""

    data: torch.Tensor  # uint8

    @property
    def is_lost(self) -> bool:
        """Whether the file could not be read at some time, so that they are not its bytes any more."""


class Mapper(Protocol):
    """Maps files."""

    def map(self, file: int, start: int, n_bytes: int) -> MappedBytes:
        """Bytes of an open file, which may be closed then. Raises `OSError`."""

    @property
    def n_lost(self) -> int:
        """Of all bytes that were mapped in this process, how many have been lost; cheap to ask for."""


class PackedPart(Protocol):
    """The tensors of one part."""

    def tensor(self, name: str, make: Make) -> torch.Tensor:
        """The tensor of a name: what is kept, or what `make` gives now. Raises `CannotKeepError`."""

    def check(self) -> None:
        """Raise `StorageError` where tensors have been lost since they were asked for."""

    @property
    def mapped_bytes(self) -> int:
        """Of its tensors, what lies in files that are mapped: the system can take that memory, and read them again."""


class PackedWeights(Protocol):
    """The parts of one stage while it is loaded."""

    def part(self, name: str, layout: str, mapper: Mapper) -> PackedPart:
        """One part. Raises `CannotKeepError`.

        Args:
            name: equal for equal tensors of one stage.
            layout: equal for backends that lay out their tensors alike.
        """

    @property
    def is_kept(self) -> bool:
        """Whether all of it was kept: then no weight has been read."""


class PackedFiles(Protocol):
    """Where packed weights are kept."""

    def opened(self, key: str, tick: Callable[[], None]) -> AbstractContextManager[PackedWeights]:
        """What is kept under a key. What is made in the block is kept from its end on, unless that is an error.

        Args:
            key: equal for equal weights of equal models.
            tick: called again and again; it may raise.
        """


class _PartInMemory:
    mapped_bytes = 0

    def tensor(self, name: str, make: Make) -> torch.Tensor:
        return make()

    def check(self) -> None:
        pass


class InMemory:
    """Keeps nothing: every tensor is made, in memory of its own."""

    is_kept = False

    def part(self, name: str, layout: str, mapper: Mapper) -> PackedPart:
        return _PartInMemory()

    def opened(self, key: str, tick: Callable[[], None]) -> AbstractContextManager[PackedWeights]:
        return contextlib.nullcontext(self)


IN_MEMORY = InMemory()
