"""Which of too many connections has to go."""

from collections.abc import Hashable
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)


class EvictionOrder(Generic[C]):
    """Connections that may be closed when there are too many, in the order in which they go.

    Those of the lowest rank go first, among them the oldest. But an address that has more than half of all loses its
    own: from one machine nobody can push out the connections of the others. Each operation takes constant time,
    because thousands of connections may come in a second.
    """

    def __init__(self, n_ranks: int) -> None:
        self._n_ranks = n_ranks
        self._all = self._new_ranks()
        self._by_address: dict[str, list[dict[C, None]]] = {}
        self._found: dict[C, tuple[str, int]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, connection: C, address: str, rank: int) -> None:
        """Add a connection as the newest of its rank, or move it there."""
        self.discard(connection)
        self._found[connection] = address, rank
        self._all[rank][connection] = None
        self._by_address.setdefault(address, self._new_ranks())[rank][connection] = None

    def discard(self, connection: C) -> None:
        """Remove a connection, if it is there."""
        if connection not in self._found:
            return
        address, rank = self._found.pop(connection)
        own = self._by_address[address]
        del self._all[rank][connection], own[rank][connection]
        if not any(own):
            del self._by_address[address]

    def next_out(self, address: str) -> C:
        """The connection that has to go because of one from `address`, which may be that one. One must be there."""
        own = self._by_address.get(address, [])
        ranks = own if 2 * sum(map(len, own)) > len(self) else self._all
        return next(iter(next(filter(None, ranks))))

    def _new_ranks(self) -> list[dict[C, None]]:
        return [{} for _ in range(self._n_ranks)]
