"""Kernels are compiled once, where a compiler is; where none is, torch computes, and one line says so."""

import ctypes
import ctypes.util
import logging
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from litgpt.config import Config

from mdi.cluster.rendezvous import in_background
from mdi.errors import StorageError
from mdi.model.backends import select
from mdi.model.backends.native import compiler, library
from mdi.model.backends.native.compiler import (
    FLAGS,
    NoCompilerError,
    find_compiler,
    flags_for,
    library_for,
    prebuilt_name,
)
from mdi.model.backends.native.instruction_sets import INSTRUCTION_SETS, PORTABLE, cpu_features, usable_here
from mdi.model.backends.native.library import UnavailableError, load, load_library
from mdi.model.backends.native.prebuild import ZIG_TARGETS, prebuild
from mdi.model.backends.torch_span import TorchSpan
from mdi.model.build import Placement
from mdi.model.shapes import stage_shapes
from mdi.model.span import Span
from support.models import BASE
from support.scripts import wait_until


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of kernels."""
    monkeypatch.setenv("MDI_HOME", str(tmp_path))
    library._library_or_reason.cache_clear()
    yield tmp_path / "native"
    library._library_or_reason.cache_clear()


def fake_compiler(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that runs `script` (of sh), where the arguments are those of a compiler."""
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo fake 1.0 && exit\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


OUTPUT = 'while [ "$1" != -o ]; do shift; done; '


def test_a_library_is_compiled_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(tmp_path / "cc", f'echo called >> {tmp_path}/calls; {OUTPUT} echo library > "$2"', monkeypatch)
    first = library_for(PORTABLE)
    assert library_for(PORTABLE) == first
    assert first.parent == folder and first.read_text() == "library\n"
    assert (tmp_path / "calls").read_text() == "called\n"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert library_for(INSTRUCTION_SETS[0]) != first


def test_whoever_compiles_another_library_is_not_waited_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_compiler(tmp_path / "cc", f'{OUTPUT} echo library > "$2"', monkeypatch)
    with compiler._locked(folder / "of-another-version.so"):
        assert in_background(library_for, PORTABLE).result(60).is_file()


def test_whoever_compiles_the_same_library_is_waited_for_and_that_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_compiler(tmp_path / "cc", f'echo called >> {tmp_path}/calls; {OUTPUT} echo library > "$2"', monkeypatch)
    library = library_for(PORTABLE)
    library.unlink()
    with compiler._locked(library):
        other = in_background(library_for, PORTABLE)
        wait_until(lambda: "waiting for another program that compiles" in caplog.text, 60, "it says that it waits")
        library.write_text("of the first one")
    assert other.result(60).read_text() == "of the first one"
    assert (tmp_path / "calls").read_text() == "called\n"


def test_what_came_with_the_installation_needs_no_compiler(
    folder: Path, libraries: dict[str, ctypes.CDLL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = usable_here()[0]
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path / "prebuilt")
    fake_compiler(tmp_path / "cc", f'{OUTPUT} cp "{libraries[best.name]._name}" "$2"', monkeypatch)
    (tmp_path / "prebuilt").mkdir()
    (tmp_path / "prebuilt" / "of-an-earlier-build.so").touch()
    of_this_kind = [one for one in INSTRUCTION_SETS if platform.machine() in one.machines]
    assert prebuild(tmp_path / "prebuilt") == [one.name for one in of_this_kind]
    assert {path.name for path in (tmp_path / "prebuilt").iterdir()} == set(map(prebuilt_name, of_this_kind))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX")
    assert Path(load_library()._name) == tmp_path / "prebuilt" / prebuilt_name(best)
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["of other sources", "of another system"])
def test_what_came_with_the_installation_and_does_not_fit_is_compiled_here(
    kind: str, folder: Path, libraries: dict[str, ctypes.CDLL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = usable_here()[0]
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path)
    fake_compiler(tmp_path / "cc", f'{OUTPUT} cp "{libraries[best.name]._name}" "$2"', monkeypatch)
    if kind == "of other sources":
        shutil.copy(libraries[best.name]._name, tmp_path / f"{best.name}-0123456789abcdef.so")
    else:
        (tmp_path / prebuilt_name(best)).write_text("a library of another system")
    assert Path(load_library()._name).parent == folder


@pytest.mark.parametrize(("platform_tag", "target"), ZIG_TARGETS.items())
def test_ziglang_compiles_the_libraries_of_a_wheel_for_another_platform(
    platform_tag: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def compile_to(library: Path, command: Sequence[str], flags: Sequence[str]) -> None:
        if "-mavxvnni" in flags:
            raise NoCompilerError("unknown argument: -mavxvnni")
        library.touch()
        commands.append([*command, *flags])

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "ziglang" or None)
    monkeypatch.setattr("mdi.model.backends.native.prebuild.compile_to", compile_to)
    known = [one for one in INSTRUCTION_SETS if target.partition("-")[0] in one.machines and one.name != "avxvnni"]
    assert prebuild(tmp_path, platform_tag) == [one.name for one in known]
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", target, *FLAGS, "-mcpu=baseline", "-s"]
    # ziglang knows no -march for AArch64
    own = [*known[0].flags] if target.startswith("x86_64") else ["-mcpu=generic+v8_2a+dotprod+i8mm"]
    assert commands[0] == [*zig, *own]


def test_a_wheel_for_a_platform_has_its_libraries_or_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoCompilerError, match="compiled by PyPI's ziglang, which is not installed"):
        prebuild(tmp_path, "manylinux_2_17_x86_64")
    with pytest.raises(NoCompilerError, match="no kernels for win_amd64: there are manylinux_2_17_x86_64, "):
        prebuild(tmp_path, "win_amd64")
    assert prebuild(tmp_path, "any") == []


def test_another_compiler_and_other_sources_give_another_library(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cc = fake_compiler(tmp_path / "cc", f'{OUTPUT} echo library > "$2"', monkeypatch)
    paths = {library_for(PORTABLE)}
    cc.write_text(cc.read_text().replace("fake 1.0", "fake 1.1"))
    paths.add(library_for(PORTABLE))
    sources = tmp_path / "kernels"
    sources.mkdir()
    (sources / "entry.cpp").write_text("int changed;")
    monkeypatch.setattr(compiler, "SOURCES", sources)
    paths.add(library_for(PORTABLE))
    assert len(paths) == 3


def test_what_a_compiler_left_behind_when_it_failed_is_no_library(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_compiler(
        tmp_path / "cc", f'{OUTPUT} echo half > "$2"; echo "x.cpp:1: error: no such type" >&2; exit 1', monkeypatch
    )
    with pytest.raises(NoCompilerError, match=r"cc: x\.cpp:1: error: no such type"):
        library_for(PORTABLE)
    assert [path.name for path in folder.iterdir()] == [
        f"{PORTABLE.name}-{compiler._key(cc := find_compiler(), flags_for(PORTABLE, cc))}.lock"
    ]


def test_a_folder_that_others_may_write_to_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(StorageError, match="others may write to it"):
        library_for(PORTABLE)
    folder.rmdir()
    folder.symlink_to(folder.parent)
    with pytest.raises(StorageError):
        library_for(PORTABLE)


def test_the_compiler_of_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cc = fake_compiler(tmp_path / "cc", "", monkeypatch)
    assert find_compiler() == [str(cc)]
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "ziglang" or None)
    assert find_compiler() == [sys.executable, "-m", "ziglang", "c++"]


def test_without_a_compiler_torch_computes_and_one_line_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    select._say_once.cache_clear()
    config, placement = Config(**BASE), Placement(torch.device("cpu"), torch.float32)
    weights = {name: torch.ones(shape) for name, shape in stage_shapes(config, Span(0, 1)).items()}
    for _ in range(2):
        assert isinstance(select.make_span_engine(config, Span(0, 1), weights, placement), TorchSpan)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "computing with torch, which takes 1.5 to 3 times as long as native kernels: no C++ compiler is installed (g++,"
        " clang or PyPI's ziglang)"
    ]


def test_a_library_that_cannot_be_loaded_or_computes_wrongly_is_refused(
    libraries: dict[str, ctypes.CDLL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "not.so").write_text("nothing")
    with pytest.raises(UnavailableError, match=r"not\.so"):
        load(tmp_path / "not.so")
    with pytest.raises(UnavailableError, match="mdi_"):
        load(Path(ctypes.util.find_library("m") or "libm.so.6"))
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    with pytest.raises(UnavailableError, match=r"compute wrong products \(type 0, 1 rows\)"):
        library.check_products(next(iter(libraries.values())))


def test_the_features_of_all_cores_count(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fma avx2 f16c avx_vnni\nmodel : x\nflags : fma avx2 f16c\n")
    assert cpu_features(cpuinfo) == {"fma", "avx2", "f16c"}
    assert cpu_features(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(
    ("machine", "features", "names"),
    [
        ("x86_64", {"avx2", "fma", "f16c", "avx_vnni", "sse2"}, ["avxvnni", "avx2"]),
        ("x86_64", {"avx2", "fma"}, []),
        ("aarch64", {"asimd", "asimddp", "i8mm", "bf16"}, ["neon-i8mm", "neon-dotprod", "neon"]),
        ("aarch64", {"asimd", "asimddp"}, ["neon-dotprod", "neon"]),
        ("aarch64", {"asimd"}, ["neon"]),
        ("riscv64", set(), []),
    ],
)
def test_the_instruction_sets_of_a_cpu(
    machine: str, features: set[str], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = "mdi.model.backends.native.instruction_sets"
    monkeypatch.setattr(f"{base}.platform.machine", lambda: machine)
    monkeypatch.setattr(f"{base}.cpu_features", lambda: frozenset(features))
    assert [one.name for one in usable_here()] == names
