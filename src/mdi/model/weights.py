"""Named weights that are read when they are asked for."""

from collections.abc import Callable, Iterator, Mapping

import torch


class Weights(Mapping[str, torch.Tensor]):
    """Named tensors, of which each is read when it is asked for, in memory of its own.

    `meta` holds the same names: tensors without memory, which tell shapes and dtypes. Where one stored tensor has two
    names, both have the same object there.
    """

    def __init__(
        self, meta: Mapping[str, torch.Tensor], read: Callable[[str], torch.Tensor], identity: str = ""
    ) -> None:
        """
        Args:
            identity: equal only for equal tensors of equal names; empty where nothing tells.
        """
        self.meta, self._read, self.identity = meta, read, identity

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> "Weights":
        """`tensors` themselves, unless they are `Weights` already."""
        return tensors if isinstance(tensors, Weights) else Weights(tensors, tensors.__getitem__)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.meta:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.meta  # `Mapping` would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta)

    def __len__(self) -> int:
        return len(self.meta)

    def below(self, prefix: str) -> "Weights":
        """Those whose names begin with `prefix`, under the rest of their names."""
        meta = {name.removeprefix(prefix): tensor for name, tensor in self.meta.items() if name.startswith(prefix)}
        return Weights(meta, lambda name: self[prefix + name])

    def verify(self) -> None:
        """Compare what was read with what should be there; nothing is known of that here.

        Raises `CheckpointError` where they differ.
        """
