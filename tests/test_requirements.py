"""The requirements can be had on every Python that is supported, and an older one is told so."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from support.paths import ROOT

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
FILES = ("requirements.txt", "requirements-dev.txt")
SCRIPTS = sorted((ROOT / "src").glob("*.py"))


def requirements(file: str, python: str) -> list[Requirement]:
    """Those of a file that a Python of that version would install, on Linux."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    wanted = [Requirement(line) for line in lines if line and not line.startswith("-r")]
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    return [item for item in wanted if item.marker is None or item.marker.evaluate(environment)]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", FILES)
def test_every_python_has_one_version_of_each_requirement(file: str, python: str) -> None:
    names = [item.name for item in requirements(file, python)]
    assert len(names) == len(set(names))
    assert set(names) == {item.name for item in requirements(file, PYTHONS[-1])}


def test_pinned_versions_are_within_the_ranges_of_the_package() -> None:
    declared = re.search(r"^dependencies = \[(.+?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert declared is not None
    ranges = {item.name: item.specifier for item in map(Requirement, re.findall(r'"(.+?)"', declared[1]))}
    for python in PYTHONS:
        pins = {item.name: next(iter(item.specifier)).version for item in requirements("requirements.txt", python)}
        assert set(ranges) <= set(pins)
        assert [name for name, allowed in ranges.items() if not allowed.contains(pins[name])] == []


@pytest.mark.resolver
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", FILES)
def test_the_package_index_has_the_requirements(file: str, python: str, tmp_path: Path) -> None:
    """As wheels. pip itself would choose by the Python that it runs on, so it is given what the markers leave."""
    pins = [f"{item.name}{item.specifier}" for item in requirements(file, python)]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--target", str(tmp_path), *pins]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# A Python in which only the version is another: the scripts are to end before anything else matters.
_AS_OLDER = """
import runpy, sys
sys.version_info = (3, 9, 2, "final", 0)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_an_older_python_is_told_in_one_line(script: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _AS_OLDER, script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: Python 3\.10 or newer is needed, and \S+ is 3\.9: .+\n", done.stderr)


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / "src" / "mdi" / "__init__.py"], ids=lambda path: path.name)
def test_what_an_older_python_reads_is_in_its_grammar(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 4))
    assert source.isascii() and not re.search(r"\bf[\"']", source)


def test_make_tells_an_older_python_too(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); $@"\n')
    python.chmod(0o755)
    command = ["make", "--always-make", "--no-print-directory", "venv", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and not (tmp_path / "venv").exists()
    assert "error: Python 3.10 or newer is needed" in done.stderr and "Traceback" not in done.stderr
