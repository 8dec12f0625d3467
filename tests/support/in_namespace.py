"""Run a script in a network namespace: `in_namespace.py NAMESPACE SCRIPT ARGUMENTS`."""

import ctypes
import os
import runpy
import sys
from pathlib import Path

CLONE_NEWNET = 0x40000000


def enter(namespace: str) -> None:
    """Have this thread, and all that it starts from now on, in the namespace. `os.setns` came with Python 3.12."""
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(descriptor)


if __name__ == "__main__":
    _, name, script, *arguments = sys.argv
    enter(name)
    path = Path(__file__).resolve().parents[2] / "src" / script
    sys.argv = [str(path), *arguments]
    sys.path[0] = str(path.parent)
    runpy.run_path(str(path), run_name="__main__")
