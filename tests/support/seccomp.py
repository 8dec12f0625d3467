"""A program under a filter of system calls, set up as systemd does: what is not allowed fails with EPERM.

`python seccomp.py '{"calls": [...], "families": [...]}' PROGRAM ARGUMENT...` becomes the program. Needs libseccomp.
"""

import ctypes
import ctypes.util
import errno
import json
import os
import socket
import sys
from collections.abc import Iterable

LIBRARY = ctypes.util.find_library("seccomp")
_ALLOW, _ERRNO, _EQUAL = 0x7FFF0000, 0x00050000, 4  # of seccomp.h


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("unused", ctypes.c_uint64),
    )


def confine(calls: Iterable[str], families: Iterable[str]) -> None:
    """Allow this process, from now on, the system calls of these names, and sockets of these address families."""
    assert LIBRARY is not None
    library = ctypes.CDLL(LIBRARY)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_ERRNO | errno.EPERM))
    for call in calls:
        number = library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:  # another architecture has it
            continue
        each = [_Comparison(0, _EQUAL, getattr(socket, family)) for family in families] if call == "socket" else [None]
        for comparison in each:
            arguments = (0, None) if comparison is None else (1, ctypes.byref(comparison))
            failed = library.seccomp_rule_add_array(context, _ALLOW, number, *arguments)
            assert failed == 0, f"{call}: {os.strerror(-failed)}"
    failed = library.seccomp_load(context)
    assert failed == 0, os.strerror(-failed)


if __name__ == "__main__":
    confine(**json.loads(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
