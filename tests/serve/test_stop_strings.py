"""Stop strings end a text wherever its pieces begin and end."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from mdi.serve.stop_strings import StopStrings

letters = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def split(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


@given(text=letters, stops=stops, cuts=st.lists(st.integers(0, 100), max_size=10))
@example(text="xxSTOPyy", stops=["STOP"], cuts=[3, 4, 5])
def test_the_text_ends_before_the_first_stop_string_that_is_complete(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    watch, shown, seen = StopStrings(stops), "", ""
    for piece in split(text, cuts):
        shown += watch.push(piece)
        seen += piece
        if watch.found:
            break
    if any(stop in text for stop in stops):
        assert watch.found
        assert shown == seen[: min(at for stop in stops if (at := seen.find(stop)) >= 0)]
        assert watch.push("more") == ""
    else:
        assert not watch.found
        assert shown + watch.finish() == text


@given(text=letters, stops=stops)
def test_only_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    watch = StopStrings(stops)
    shown = watch.push(text)
    if not watch.found:
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
