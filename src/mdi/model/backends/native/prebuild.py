"""Compiles the kernels into a wheel, so that machines which install it need no compiler.

setup.py calls it where no requirement is installed.
"""

import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from mdi.files import atomic_path
from mdi.model.backends.native.compiler import (
    NoCompilerError,
    compile_to,
    find_compiler,
    find_ziglang,
    flags_for,
    prebuilt_name,
)
from mdi.model.backends.native.instruction_sets import INSTRUCTION_SETS

PURE = "any"
# By the tag of a wheel's platform, what PyPI's `ziglang` is told: it compiles for any of them, wherever it runs.
# The C library of 2014, and the macOS that torch's own wheels are for.
ZIG_TARGETS = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
}


def prebuild(folder: Path, platform_tag: str | None = None) -> list[str]:
    """Compile the kernels into `folder`, for the instruction sets of one kind of CPU; returns their names.

    Args:
        folder: what an earlier build left there is removed.
        platform_tag: of the wheel; None for this machine and its own compiler.

    Raises `NoCompilerError` where there is none, and for a platform that it cannot compile for.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if platform_tag == PURE:
        return []
    if platform_tag is None:
        return _compile_all(folder, find_compiler(), platform.machine())
    if (target := ZIG_TARGETS.get(platform_tag)) is None:
        raise NoCompilerError(f"no kernels for {platform_tag}: there are {', '.join([*ZIG_TARGETS, PURE])}")
    if (ziglang := find_ziglang(target)) is None:
        raise NoCompilerError(f"kernels for {platform_tag} are compiled by PyPI's ziglang, which is not installed")
    return _compile_all(folder, ziglang, target.partition("-")[0])


def _compile_all(folder: Path, compiler: Sequence[str], machine: str) -> list[str]:
    compiled: list[str] = []
    failure = NoCompilerError(f"there are no kernels for this CPU ({machine})")
    for one in INSTRUCTION_SETS:
        if machine not in one.machines:
            continue
        try:
            with atomic_path(folder / prebuilt_name(one)) as partial:
                compile_to(partial, compiler, flags_for(one, compiler))
            compiled.append(one.name)
        except NoCompilerError as exc:  # an old compiler does not know every instruction set
            failure = exc
    if not compiled:
        raise failure
    return compiled
