"""Compile the kernels into this installation, for every CPU of its kind: what it runs on may have no compiler.

python -m mdi.model.backends.native.prebuild
"""

import platform

from mdi.files import atomic_path
from mdi.model.backends.native.compiler import PREBUILT, NoCompilerError, compile_to, find_compiler, flags_for
from mdi.model.backends.native.instruction_sets import INSTRUCTION_SETS


def prebuild() -> None:
    """Raises `NoCompilerError`, and `StorageError` where the installation cannot be written to."""
    compiler, machine = find_compiler(), platform.machine()
    for one in INSTRUCTION_SETS:
        if machine in one.machines:
            with atomic_path(PREBUILT / f"{one.name}.so") as partial:
                compile_to(partial, compiler, flags_for(one))


if __name__ == "__main__":
    try:
        prebuild()
    except NoCompilerError as exc:
        raise SystemExit(f"error: {exc}") from None
