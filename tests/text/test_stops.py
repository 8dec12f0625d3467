"""Stop sequences, as arithmetic on token ids."""

import subprocess
import sys

from mdi.text.stops import StopSequences, match_stop, partial_match_length
from support.paths import SRC


def test_match_is_the_longest_stop_that_ids_end_with() -> None:
    stops: StopSequences = ((2,), (1, 2), (7, 8, 9))
    assert match_stop([5, 1, 2], stops) == 2
    assert match_stop([2], stops) == 1
    assert match_stop([8, 9], stops) == 0
    assert match_stop([], stops) == 0
    assert match_stop([1, 2], ()) == 0


def test_ids_that_may_grow_into_a_stop_are_held_back() -> None:
    stops: StopSequences = ((1, 1, 2), (2, 9))
    assert partial_match_length([5, 1], stops) == 1
    assert partial_match_length([1, 1, 1], stops) == 2
    assert partial_match_length([1, 1, 2], stops) == 1  # the 2 could begin (2, 9)
    assert partial_match_length([5], stops) == 0
    assert partial_match_length([5], ((5,),)) == 0  # no proper prefix
    assert partial_match_length([], stops) == 0


def test_stops_need_no_tokenizer_and_no_tensors() -> None:
    code = "import mdi.text.stops, sys; assert not {'torch', 'tokenizers', 'mdi.text.tokenizer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=SRC, check=True)
