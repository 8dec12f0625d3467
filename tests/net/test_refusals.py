"""The log stays short and printable, however many connections are refused."""

import logging

import pytest

from mdi.net.refusals import BURST, MAX_CHARACTERS, RefusalLog
from support.clocks import ManualClock

log = logging.getLogger("mdi.test")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_flood_writes_less_than_a_line_per_second_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    refusals = RefusalLog(clock)
    n_lines = 0
    for second in range(600):
        for _ in range(50):
            refusals.add(log, "refused a connection from %s", "203.0.113.5")
        clock.now_s += 1.0
        if second >= 10:
            assert len(caplog.records) <= second
    n_lines = sum(line.startswith("refused") for line in lines(caplog))
    counted = sum(int(line.split()[2]) for line in lines(caplog) if line.startswith("... and "))
    assert BURST < n_lines < 100
    assert 9 <= len(lines(caplog)) - n_lines <= 10  # one in a minute
    clock.now_s += 60.0
    refusals.summarize()
    counted += int(lines(caplog)[-1].split()[2])
    assert n_lines + counted == 600 * 50


def test_the_first_refusals_are_written_and_the_others_told_in_time(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    refusals = RefusalLog(clock)
    for number in range(BURST + 512):
        refusals.add(log, "refused number %s", number)
    assert lines(caplog) == [f"refused number {number}" for number in range(BURST)]
    clock.now_s += 59.9
    refusals.summarize()
    assert len(lines(caplog)) == BURST
    clock.now_s += 0.1
    refusals.summarize()
    refusals.summarize()
    assert lines(caplog)[BURST:] == ["... and 512 more connections were refused in the last 60 s"]


def test_after_a_quiet_time_every_refusal_is_written_again(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    refusals = RefusalLog(clock)
    for _ in range(20):
        refusals.add(log, "refused")
    caplog.clear()
    clock.now_s += 3600.0
    for _ in range(BURST):
        refusals.add(log, "refused")
    assert lines(caplog)[1:] == ["refused"] * BURST


def test_what_a_peer_sends_is_printable_and_short_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    RefusalLog().add(log, "refused %s from %s: %s", "\x1b[2J\r\nforged line", "::1", ValueError("x" * 100_000))
    (line,) = lines(caplog)
    assert line.isprintable()
    assert line.startswith(r"refused \x1b[2J forged line from ::1: xxx")
    assert len(line) <= MAX_CHARACTERS
