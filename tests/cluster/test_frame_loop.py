"""Frames that pass from a node to itself, to be timed."""

import pytest

from mdi.cluster.frame_loop import FrameLoop


@pytest.mark.parametrize(
    ("rows", "n_embd", "dtype"),
    [(1, 8, "float32"), (16, 16384, "float32"), (16, 576, "bfloat16"), (1, 65536, "float32")],
)
def test_messages_of_any_size_pass(rows: int, n_embd: int, dtype: str) -> None:
    with FrameLoop(rows, n_embd, dtype) as loop:
        for _ in range(5):
            loop.turn()
    assert loop._out.fileno() == -1, "it is closed"
