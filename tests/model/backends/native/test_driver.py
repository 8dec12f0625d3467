"""The kernels without Python: under sanitizers, and for another CPU in an emulator. Run by `make native-check`."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mdi.model.backends.native.compiler import FLAGS, SOURCES
from mdi.model.backends.native.instruction_sets import INSTRUCTION_SETS, PORTABLE, InstructionSet, usable_here

pytestmark = pytest.mark.native

HERE = Path(__file__).parent
# What the driver prints. It changes only where the arithmetic does, and then nodes of two versions compute differently.
BITS = (HERE / "bits.txt").read_text()
SANITIZERS = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}
ARM_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM_CPUS = {"neon-i8mm": "max", "neon-dotprod": "neoverse-n1", "neon": "cortex-a72"}


def build(folder: Path, compiler: str, *flags: str) -> str:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    program = folder / "driver"
    command = [compiler, *FLAGS, "-pthread", "-I", str(SOURCES), *flags, "-o", str(program), str(HERE / "driver.cpp")]
    subprocess.run(command, check=True, timeout=600)
    return str(program)


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


@pytest.mark.parametrize("one", [*usable_here(), PORTABLE], ids=lambda one: one.name)
def test_every_instruction_set_of_this_cpu_gives_the_same_bits(one: InstructionSet, tmp_path: Path) -> None:
    program = build(tmp_path, "c++", *one.flags)
    assert output_of(program) == BITS
    assert output_of(program, "threads") == BITS


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("one", [*usable_here()[-1:], PORTABLE], ids=lambda one: one.name)
def test_sanitizers_find_nothing(one: InstructionSet, sanitizer: str, tmp_path: Path) -> None:
    flags = [*one.flags, SANITIZERS[sanitizer], "-fno-sanitize-recover=all", "-O1", "-g"]
    assert output_of(build(tmp_path, "c++", *flags), "threads") == BITS


@pytest.mark.parametrize("name", ARM_CPUS)
def test_aarch64_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    (one,) = (one for one in INSTRUCTION_SETS if one.name == name)
    program = build(tmp_path, ARM_COMPILER, "-static", *one.flags)
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"{EMULATOR} is not installed")
    assert output_of(EMULATOR, "-cpu", ARM_CPUS[name], program, "threads") == BITS
