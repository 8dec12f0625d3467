"""The libraries of the wheels that `make wheel` builds. Run by `make native-check`."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from mdi.model.backends.native.compiler import prebuilt_name
from mdi.model.backends.native.instruction_sets import INSTRUCTION_SETS, InstructionSet, usable_here
from mdi.model.backends.native.library import load
from mdi.model.backends.native.prebuild import ZIG_TARGETS
from support.paths import SRC
from support.wheels import wheel_python

pytestmark = pytest.mark.native

PREBUILD = """
import sys
from pathlib import Path
from mdi.model.backends.native.prebuild import prebuild
prebuild(Path(sys.argv[1]), sys.argv[2])
"""
# What the tag manylinux_2_17 promises (PEP 600), of what a library of C++ may need.
NEWEST_GLIBC = (2, 17)
SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"}
MACH_O_OF_ARM64 = bytes.fromhex("cffaedfe0c000001")


def prebuilt(platform_tag: str, folder: Path) -> dict[InstructionSet, Path]:
    """The libraries, compiled in the environment that wheels are built in, which has no torch."""
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [wheel_python(), "-c", PREBUILD, str(folder), platform_tag]
    subprocess.run(command, env=environment, check=True, timeout=1800)
    machine = ZIG_TARGETS[platform_tag].partition("-")[0]
    libraries = {one: folder / prebuilt_name(one) for one in INSTRUCTION_SETS if machine in one.machines}
    assert set(folder.iterdir()) == set(libraries.values())
    return libraries


def glibc_versions(library: bytes) -> set[tuple[int, int]]:
    return {(int(major), int(minor)) for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", library)}


@pytest.mark.parametrize("platform_tag", [tag for tag in ZIG_TARGETS if tag.startswith("manylinux")])
def test_a_library_for_linux_runs_on_every_system_that_its_tag_names(platform_tag: str, tmp_path: Path) -> None:
    for one, path in prebuilt(platform_tag, tmp_path / "prebuilt").items():
        content = path.read_bytes()
        assert max(glibc_versions(content)) <= NEWEST_GLIBC
        assert {name.decode() for name in re.findall(rb"\0(lib[a-z_+]+\.so\.\d+)\0", content)} <= SYSTEM_LIBRARIES
        if one in usable_here():
            load(path)  # which has it compute


def test_a_library_for_macos_is_one(tmp_path: Path) -> None:
    for path in prebuilt("macosx_11_0_arm64", tmp_path / "prebuilt").values():
        assert path.read_bytes().startswith(MACH_O_OF_ARM64)
