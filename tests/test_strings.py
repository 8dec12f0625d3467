"""Values as strings, for messages and files."""

import pytest

from mdi.strings import format_bytes, format_rate, format_seconds, one_line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0"), (0.25, "0.25"), (3661.000004, "3661.000004"), (10.0, "10"), (1e-9, "0")]
)
def test_seconds_are_written_to_the_microsecond(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (99_999, "99999 B"), (100_000, "0.10 MB"), (538_000_000, "538.00 MB"), (13.48e9, "13.48 GB")],
)
def test_sizes_are_written_in_a_readable_unit(n_bytes: float, text: str) -> None:
    assert format_bytes(n_bytes) == text


@pytest.mark.parametrize(("per_second", "text"), [(0.0, "0"), (9.8765, "9.88"), (999.4, "999"), (1319.6, "1320")])
def test_rates_have_three_digits_or_more(per_second: float, text: str) -> None:
    assert format_rate(per_second) == text


def test_foreign_text_becomes_one_short_line() -> None:
    assert one_line(ValueError("a\n  b\t c")) == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert one_line("x" * 500, 100) == "x" * 100


def test_what_a_terminal_would_act_upon_is_escaped() -> None:
    assert one_line("\x1b[2J\x07\x9b\u202e\udc80 \u00e9") == r"\x1b[2J\x07\x9b\u202e\udc80 " + "\u00e9"
    assert len(one_line("\x1b" * 500)) == 300
