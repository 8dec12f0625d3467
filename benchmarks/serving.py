"""What users of a server get: a ring that serves, and llama.cpp's own server, under the same loads in turn."""

import contextlib
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.load_driver import Call
from benchmarks.report import Series, ratio
from benchmarks.servers import Served
from benchmarks.workers import BenchError, Worker, python_module

T = TypeVar("T")

MEASURE = "serve"
N_TURNS = 10
TURN = "first token of a tenth turn over that of its last message alone"
FLOOR_USERS = 16  # that the targets are about


@dataclass(frozen=True)
class Load:
    """How much is asked of each server, and for how long."""

    users: Sequence[int] = (1, 4, 16, 32)
    rates: Sequence[float] = (0.5, 1.0, 2.0)  # of users who come by themselves, a second
    seconds: float = 20.0
    n_tokens: int = 64  # of each answer
    n_words: int = 24  # of each message
    n_chats: int = 5  # of ten turns


QUICK = Load(users=(1, 4), rates=(2.0,), seconds=3.0, n_tokens=12, n_words=8, n_chats=1)


@dataclass(frozen=True)
class Played:
    """What one load on one server was like."""

    calls: list[Call]
    began_s: float
    seconds: float  # for which users came
    cpu_s: float  # of the load generator

    @property
    def tokens_per_s(self) -> float:
        """Of all users, while they came. A piece of text counts as many tokens as one of its answer has on average."""
        end_s = self.began_s + self.seconds
        shares = [
            call.n_tokens * sum(at_s <= end_s for at_s in call.times_s) / len(call.times_s) for call in self.calls
        ]
        return sum(shares) / self.seconds

    @property
    def first_ms(self) -> list[float]:
        """From sending a request to the first piece of its answer."""
        return [1e3 * (call.times_s[0] - call.sent_s) for call in self.calls]

    @property
    def between_ms(self) -> list[float]:
        """Between two pieces of an answer."""
        return [1e3 * (b - a) for call in self.calls for a, b in itertools.pairwise(call.times_s)]

    @property
    def cpu_percent(self) -> float:
        """What the load generator took of a core."""
        end_s = max(call.times_s[-1] for call in self.calls)
        return 100 * self.cpu_s / (end_s - self.began_s)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that `percent` of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


class Users:
    """The process that plays the users."""

    def __init__(self, worker: Worker, load: Load) -> None:
        """Waits until the process is ready."""
        self._worker, self._load = worker, load
        worker.hear()

    def come(self, n: int, server: Served, seed: int) -> Played:
        """`n` users who ask again as soon as they are answered."""
        return self._play(server, "users", seed, n=n, seconds=self._load.seconds)

    def arrive(self, rate: float, server: Served, seed: int) -> Played:
        """Users who come independently of each other, `rate` a second."""
        return self._play(server, "arrivals", seed, rate=rate, seconds=self._load.seconds)

    def tenth_turn(self, server: Served, seed: int) -> float:
        """The time to the first token of a chat's tenth turn over that of its last message alone."""
        chats = [self._play(server, "turns", seed + i, n=N_TURNS).first_ms for i in range(self._load.n_chats)]
        return statistics.median(chat[-2] for chat in chats) / statistics.median(chat[-1] for chat in chats)

    def _play(self, server: Served, play: str, seed: int, **values: Any) -> Played:
        told = asdict(server) | {"n_tokens": self._load.n_tokens}
        values["n_words"] = self._load.n_words
        answer = self._worker.ask({"server": told, "play": play, "seed": seed, "values": values})
        calls = [Call(**call) for call in answer["calls"]]
        if errors := [call.error or "an answer without text" for call in calls if call.error or not call.times_s]:
            raise BenchError(f"{len(errors)} of {len(calls)} chats failed: {errors[0]}")
        if not calls:
            raise BenchError("nobody came")
        return Played(calls, answer["began_s"], values.get("seconds", 0.0), answer["cpu_s"])


@contextlib.contextmanager
def users_on(cores: Sequence[int], scratch: Path, load: Load) -> Iterator[Users]:
    """The users, on the cores of the servers: there are no others."""
    with Worker(python_module("load_driver"), cores, scratch / "logs" / "load.log") as worker:
        yield Users(worker, load)


# ---- the loads, and what is made of them


def loads_of(users: Users, load: Load) -> dict[str, Callable[[Served, int], Played]]:
    """Users who wait for their answers, and users who come whether the server keeps up or not."""
    loads: dict[str, Callable[[Served, int], Played]] = {}
    loads |= {users_text(n): functools.partial(users.come, n) for n in load.users}
    return loads | {f"{rate:g} new users/s": functools.partial(users.arrive, rate) for rate in load.rates}


def users_text(n: int) -> str:
    return f"{n} user{'s' * (n > 1)}"


def seeded(play: Callable[[Served, int], T], server: Served, first_seed: int) -> Callable[[], T]:
    """The play with other users each time; with one `first_seed`, the same ones on every server."""
    seeds = itertools.count(first_seed, 100)
    return lambda: play(server, next(seeds))


def cells(row: str, plays: Sequence[Played], note: str) -> list[Series]:
    """A row of the table."""
    columns: dict[tuple[str, str], Callable[[Played], float]] = {
        ("tokens/s", "all users"): lambda played: played.tokens_per_s,
    }
    for percent in (50, 95, 99):
        columns[f"first token p{percent}", "ms"] = functools.partial(_first_ms, percent)
    for percent in (50, 95, 99):
        columns[f"between tokens p{percent}", "ms"] = functools.partial(_between_ms, percent)
    columns["load generator", "% of a core"] = lambda played: played.cpu_percent
    return [
        Series(MEASURE, label, unit, tuple(map(value, plays)), note, row=row)
        for (label, unit), value in columns.items()
    ]


def _first_ms(percent: float, played: Played) -> float:
    return percentile(played.first_ms, percent)


def _between_ms(percent: float, played: Played) -> float:
    return percentile(played.between_ms, percent)


def tables(
    loads: Sequence[str], ours: str, theirs: str, runs: Mapping[str, Sequence[Any]], notes: Mapping[str, str]
) -> list[Series]:
    """All that was played; `runs` and `notes` are by `row_of` a load and a server."""
    found, compared = list[Series](), list[Series]()
    for load in loads:
        over, under = (
            [*cells(row, runs.get(row, ()), notes.get(row, ""))] for row in (row_of(load, ours), row_of(load, theirs))
        )
        found += over + under
        compared += ratios(load, over, under)
    for name, target in ((ours, "serve turn"), (theirs, "")):
        row = row_of(TURN, name)
        compared.append(Series(MEASURE, row, "x", tuple(runs.get(row, ())), notes.get(row, ""), target))
    return found + compared


def row_of(load: str, server: str) -> str:
    return f"{load}, {server}"


def ratios(load: str, ours: Sequence[Series], theirs: Sequence[Series]) -> list[Series]:
    """Tokens/s, and how long tokens take at worst, of one load."""
    found = []
    for column, target in (("tokens/s", "serve tokens"), ("between tokens p95", "serve gap")):
        over, under = (next(cell for cell in row if cell.label == column) for row in (ours, theirs))
        key = target if load == users_text(FLOOR_USERS) else ""
        found.append(ratio(MEASURE, f"{load}, {column}: ours over theirs", over, under, key))
    return found
