"""The environment that `make wheel` compiles in."""

import pytest

from support.paths import ROOT

PYTHON = ROOT / ".cache" / "wheel-env" / "bin" / "python"


def wheel_python() -> str:
    """Its Python, which has PyPI's `ziglang` and setuptools, and none of our requirements."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not there: make native-check")
    return str(PYTHON)
