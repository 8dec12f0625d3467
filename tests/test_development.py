"""What contributors rely on: one version of each tool, a changelog of this version, and a guide whose files exist."""

import re
import subprocess

import pytest

import mdi
from support.paths import ROOT

HOOKS = {"ruff": "astral-sh/ruff-pre-commit", "mypy": "pre-commit/mirrors-mypy"}


@pytest.mark.parametrize("tool", HOOKS)
def test_pre_commit_runs_the_version_of_the_requirements(tool: str) -> None:
    required = re.search(rf"^{tool}==(.+)$", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    hook = re.search(rf"{HOOKS[tool]}\n +rev: v(.+)\n", (ROOT / ".pre-commit-config.yaml").read_text())
    assert required is not None
    assert hook is not None
    assert hook[1] == required[1]


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    versions = re.findall(r"^## \[(.+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == mdi.__version__


def test_every_file_that_the_guide_names_exists() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]*)`", guide)
    assert len(named) > 50
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_target_that_the_guide_names_is_in_make_help() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    targets = {line.split()[0] for line in listed.stdout.splitlines()}
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert named - targets == set()
    assert {"test", "test-quick", "help"} <= named
