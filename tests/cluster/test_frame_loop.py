"""Frames that pass from a node to itself, to be timed."""

import threading

import pytest

from mdi.cluster.frame_loop import FrameLoop


@pytest.mark.parametrize(("rows", "n_embd", "dtype"), [(1, 8, "float32"), (4, 16384, "float32"), (16, 576, "bfloat16")])
def test_messages_of_any_size_pass(rows: int, n_embd: int, dtype: str) -> None:
    with FrameLoop(rows, n_embd, dtype) as loop:
        for _ in range(5):
            loop.turn()


def test_no_thread_is_left() -> None:
    with FrameLoop(2, 8, "float32") as loop:
        loop.turn()
        assert any(thread.name == "frame-reader" for thread in threading.enumerate())
    assert not any(thread.name == "frame-reader" for thread in threading.enumerate())
