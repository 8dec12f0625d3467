"""The instruction sets that the kernels can be compiled for, and those that this CPU has."""

import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class InstructionSet:
    """What a compiler is told, and what a CPU must have."""

    name: str
    machines: tuple[str, ...]  # as `platform.machine` calls them
    features: frozenset[str]  # as Linux calls them in /proc/cpuinfo
    flags: tuple[str, ...]


_X86 = ("x86_64", "amd64", "AMD64")
_ARM = ("aarch64", "arm64")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512")

INSTRUCTION_SETS = (  # the fastest first
    InstructionSet(
        "avx512vnni",
        _X86,
        frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}),
        (*_AVX2, *_AVX512),
    ),
    InstructionSet("avxvnni", _X86, frozenset({"avx2", "fma", "f16c", "avx_vnni"}), (*_AVX2, "-mavxvnni")),
    InstructionSet("avx2", _X86, frozenset({"avx2", "fma", "f16c"}), _AVX2),
    InstructionSet("neon-i8mm", _ARM, frozenset({"asimddp", "i8mm"}), ("-march=armv8.2-a+dotprod+i8mm",)),
    InstructionSet("neon-dotprod", _ARM, frozenset({"asimddp"}), ("-march=armv8.2-a+dotprod",)),
    InstructionSet("neon", _ARM, frozenset(), ()),
)
# For any CPU, to hold the others against: without the CPU's multiply-add it is too slow to be used.
PORTABLE = InstructionSet("portable", (), frozenset(), ())


def usable_here() -> list[InstructionSet]:
    """Those that this CPU has and that are worth using, the fastest first."""
    machine, features = platform.machine(), cpu_features()
    return [one for one in INSTRUCTION_SETS if machine in one.machines and one.features <= features]


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What this CPU has besides its baseline, as Linux calls it."""
    if platform.system() == "Darwin":  # every Apple CPU since the M1
        return frozenset({"asimddp"} if platform.machine() in _ARM else ())
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))]
    return frozenset.intersection(*map(frozenset, listed)) if listed else frozenset()
