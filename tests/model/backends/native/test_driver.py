"""The kernels without Python: under sanitizers, and for another CPU in an emulator. Run by `make native-check`."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from mdi.model.backends.native.compiler import SOURCES, flags_for
from mdi.model.backends.native.instruction_sets import INSTRUCTION_SETS, PORTABLE, InstructionSet, usable_here
from mdi.model.backends.native.prebuild import ZIG_TARGETS
from support.wheels import wheel_python

pytestmark = pytest.mark.native

HERE = Path(__file__).parent
# What the driver prints. It changes only where the arithmetic does, and then nodes of two versions compute differently.
BITS = (HERE / "bits.txt").read_text()
SANITIZERS = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}
ARM_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM_CPUS = {"neon-i8mm": "max", "neon-dotprod": "neoverse-n1", "neon": "cortex-a72"}
ARM_SYSTEM = "/usr/aarch64-linux-gnu"  # where Debian has its C library
WHEELS = [
    (tag, one)
    for tag, target in ZIG_TARGETS.items()
    for one in INSTRUCTION_SETS
    if tag.startswith("manylinux") and target.partition("-")[0] in one.machines
]


def build(folder: Path, compiler: Sequence[str], one: InstructionSet, *flags: str) -> str:
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"{compiler[0]} is not installed")
    program = folder / "driver"
    sources = ["-I", str(SOURCES), str(HERE / "driver.cpp")]
    command = [*compiler, *flags_for(one, compiler), *flags, "-pthread", *sources, "-o", str(program)]
    subprocess.run(command, check=True, timeout=600)
    return str(program)


def emulated(name: str, program: str, *options: str) -> str:
    """What it prints on an AArch64 CPU that has this instruction set and no better one."""
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"{EMULATOR} is not installed")
    return output_of(EMULATOR, "-cpu", ARM_CPUS[name], *options, program, "threads")


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


@pytest.mark.parametrize("one", [*usable_here(), PORTABLE], ids=lambda one: one.name)
def test_every_instruction_set_of_this_cpu_gives_the_same_bits(one: InstructionSet, tmp_path: Path) -> None:
    program = build(tmp_path, ["c++"], one)
    assert output_of(program) == BITS
    assert output_of(program, "threads") == BITS


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("one", [*usable_here()[-1:], PORTABLE], ids=lambda one: one.name)
def test_sanitizers_find_nothing(one: InstructionSet, sanitizer: str, tmp_path: Path) -> None:
    flags = [SANITIZERS[sanitizer], "-fno-sanitize-recover=all", "-O1", "-g"]
    assert output_of(build(tmp_path, ["c++"], one, *flags), "threads") == BITS


@pytest.mark.parametrize("name", ARM_CPUS)
def test_aarch64_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    (one,) = (one for one in INSTRUCTION_SETS if one.name == name)
    assert emulated(name, build(tmp_path, [ARM_COMPILER], one, "-static")) == BITS


@pytest.mark.parametrize(("platform_tag", "one"), WHEELS, ids=lambda value: getattr(value, "name", value))
def test_the_compiler_of_wheels_gives_the_same_bits(platform_tag: str, one: InstructionSet, tmp_path: Path) -> None:
    compiler = [wheel_python(), "-m", "ziglang", "c++", "-target", ZIG_TARGETS[platform_tag]]
    program = build(tmp_path, compiler, one)
    if one.name in ARM_CPUS:
        assert emulated(one.name, program, "-L", ARM_SYSTEM) == BITS
    elif one in usable_here():
        assert output_of(program, "threads") == BITS
    else:
        pytest.skip(f"this CPU has no {one.name}")
