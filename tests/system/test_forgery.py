"""Somebody on the path of a ring: with a key the text is that of an undisturbed run."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import mdi.nodes.starter
from mdi.net.access import THIS_MACHINE, Access
from mdi.net.keys import Key, Keys
from mdi.net.sockets import listen
from support.bench import Bench, once
from support.forger import Forger, Forgery

pytestmark = pytest.mark.slow

KEYED = Access(Keys(Key("correct horse battery staple", "test")))


@contextlib.contextmanager
def path_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access: Access) -> Iterator[tuple[Bench, Forger]]:
    """Three nodes, with the same forger on every link of their ring."""
    with contextlib.ExitStack() as stack:
        bench, forger = Bench(3, tmp_path / "cache", stack, access), Forger()
        monkeypatch.setattr(mdi.nodes.starter, "listen", lambda addr, port: listen(addr, bench.behind[port]))
        for relay in bench.ring.values():
            relay.new_rewriter = forger.rewriter
        yield bench, forger


def test_a_ring_with_a_key_recovers_from_forged_rows(
    tiny: Path, expected: dict[str, list[list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    with path_of(tmp_path, monkeypatch, KEYED) as (bench, forger):
        for forgery in Forgery:
            assert bench.run(tiny, on_token=once(20, lambda f=forgery: forger.arm(f))) == expected["greedy"]
            assert forger.struck.is_set(), "nothing was forged"
            assert bench.n_recoveries >= 1
            assert "its MAC does not match" in caplog.text
            caplog.clear()
        bench.assert_at_rest()


def test_without_a_key_forged_rows_go_unnoticed(
    tiny: Path, expected: dict[str, list[list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above relies on: the forged frame is right in all but its MAC."""
    with path_of(tmp_path, monkeypatch, THIS_MACHINE) as (bench, forger):
        tokens = bench.run(tiny, on_token=once(20, lambda: forger.arm(Forgery.ROWS)))
        assert forger.struck.is_set()
        assert bench.n_recoveries == 0
        assert tokens != expected["greedy"]
