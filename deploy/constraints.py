"""Print requirements.txt as constraints for pip, with what the base image brings along in the base image's version.

A torch built for CUDA or for a Jetson is in no package index that pip would ask, and is compiled for its own numpy.
"""

import importlib.metadata
import re
import sys
from pathlib import Path

FROM_BASE = ("torch", "numpy")


def constraints(requirements: str) -> str:
    """The lines of `requirements`, those of installed packages of `FROM_BASE` replaced."""
    lines = requirements.splitlines()
    for name in FROM_BASE:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        lines = [line for line in lines if not re.match(rf"{name}==", line)] + [f"{name}=={version}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(constraints(Path(sys.argv[1]).read_text(encoding="utf-8")))
