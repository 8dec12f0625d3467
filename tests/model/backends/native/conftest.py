"""The kernels, compiled for every instruction set of this CPU, and for any CPU."""

import ctypes
import shutil

import pytest

from mdi.model.backends.native.compiler import library_for
from mdi.model.backends.native.instruction_sets import PORTABLE, usable_here
from mdi.model.backends.native.library import load


@pytest.fixture(scope="session")
def libraries() -> dict[str, ctypes.CDLL]:
    """By name of the instruction set, the fastest first. What was compiled before is taken from the user's cache."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler is installed")
    return {one.name: load(library_for(one)) for one in (*usable_here(), PORTABLE)}
