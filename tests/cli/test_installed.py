"""The wheel, installed: its commands run from any folder, with packaged settings and the user's folders."""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from mdi.installation import program_name
from mdi.model.backends.native.compiler import SOURCES, prebuilt_name
from mdi.model.backends.native.instruction_sets import INSTRUCTION_SETS
from support.paths import ROOT, SRC
from support.vocabularies import model_folder, shared_tokenizer

pytestmark = pytest.mark.slow

SHOW_PATHS = """
from mdi.config import paths
from mdi.config.network import load_network
print(len(load_network(paths.SETTINGS_DIR / "configuration.json").nodes))
for folder in (paths.SETTINGS_DIR, paths.CHECKPOINTS_DIR, paths.LOGS_DIR, paths.IMAGES_DIR, paths.CERTIFICATES_DIR):
    print(folder)
print(paths.chunk_cache_dir())
"""


def copied_tree(folder: Path) -> Path:
    """What a build reads, because it writes into its tree."""
    tree = folder / "tree"
    skipped = shutil.ignore_patterns("__pycache__", "checkpoints", "logs", "img", "certs", "*.egg-info")
    shutil.copytree(SRC, tree / "src", ignore=lambda path, names: skipped(path, names) if path == str(SRC) else set())
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


def build_wheel(folder: Path) -> Path:
    """With a compiler that takes no time, and gives no libraries."""
    compiler = folder / "c++"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo library > "$2"\n')
    compiler.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", str(compiler))
        options = ("--no-deps", "--no-build-isolation", "--no-index", "-w", folder)
        pip(sys.executable, "wheel", *options, copied_tree(folder))
    (wheel,) = folder.glob(f"*-py3-none-{platform_tag()}.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if ".data/" in name]  # not apart as files of Python alone
    return wheel


def platform_tag() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def pip(python: object, *arguments: object) -> None:
    subprocess.run([str(python), "-m", "pip", "--quiet", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that holds the wheel, and sees our own packages through a .pth file."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin" / "python"
    pip(python, "install", "--no-deps", "--no-index", build_wheel(folder))
    return python.parent


def output_of(command: list[object], home: Path, **variables: str) -> str:
    """What it prints, run by a user with an empty home, from there."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MDI_", "PYTHON"))}
    environment |= {"HOME": str(home), **variables}
    done = subprocess.run(
        list(map(str, command)), cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def declared_commands() -> Mapping[str, str]:
    return dict(re.findall(r'^(mdi-[\w-]+) = "([\w.]+):run"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", declared_commands())
def test_every_installed_command_answers_for_help(bin_folder: Path, name: str, tmp_path: Path) -> None:
    assert output_of([bin_folder / name, "--help"], tmp_path).startswith(f"usage: {name} ")


def test_messages_call_every_program_as_the_user_has_it() -> None:
    scripts = {name: module.removeprefix("mdi.cli.commands.") for name, module in declared_commands().items()}
    assert {program_name(script, is_installed=True): script for script in scripts.values()} == scripts
    assert all((SRC / program_name(script)).is_file() for script in scripts.values())


def test_an_installed_secondary_names_itself_and_finds_an_example(bin_folder: Path, tmp_path: Path) -> None:
    command = [bin_folder / "mdi-secondary", "--nodes-config", "configuration.json"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "configuration.json: no such file here; this is the example /" in done.stderr
    assert "say which one, as in `mdi-secondary --nodes-config " in done.stderr


def test_there_is_a_command_for_every_script() -> None:
    called = {module.removeprefix("mdi.cli.commands.") for module in declared_commands().values()}
    assert called == {path.stem for path in SRC.glob("*.py")}


def test_the_settings_are_packaged_and_the_rest_is_the_users(bin_folder: Path, tmp_path: Path) -> None:
    n_nodes, settings, *written = output_of([bin_folder / "python", "-c", SHOW_PATHS], tmp_path).splitlines()
    assert n_nodes == "3"
    assert Path(settings).is_relative_to(bin_folder.parent)
    assert sorted(p.relative_to(settings) for p in Path(settings).rglob("*.json")) == sorted(
        p.relative_to(SRC / "settings_distr") for p in (SRC / "settings_distr").rglob("*.json")
    )
    assert [Path(path) for path in written] == [
        tmp_path / place
        for place in (
            ".local/share/mdi-llm/checkpoints",
            ".local/state/mdi-llm/log",
            ".local/share/mdi-llm/img",
            ".config/mdi-llm/certs",
            ".cache/mdi-llm/chunks",
        )
    ]


def test_the_page_of_the_server_is_packaged(bin_folder: Path, tmp_path: Path) -> None:
    code = "from mdi.serve.static_files import read_page; print(*read_page())"
    files = output_of([bin_folder / "python", "-c", code], tmp_path).split()
    page = SRC / "mdi" / "serve" / "page"
    assert set(files) == {"/", *(f"/page/{path.name}" for path in page.iterdir())} - {"/page/index.html"}


def test_the_kernels_are_packaged_compiled_and_as_they_are_written(bin_folder: Path) -> None:
    (native,) = bin_folder.parent.glob("lib/python*/site-packages/mdi/model/backends/native")
    of_this_kind = [one for one in INSTRUCTION_SETS if platform.machine() in one.machines]
    assert set(os.listdir(native / "prebuilt")) == set(map(prebuilt_name, of_this_kind))
    assert set(os.listdir(native / "kernels")) == set(os.listdir(SOURCES))


def test_a_wheel_is_built_without_a_compiler_and_without_the_requirements(tmp_path: Path) -> None:
    """By a Python that has setuptools and nothing else, as pip makes one. One for a platform is not built without."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for pattern in ("setuptools", "setuptools-*.dist-info", "_distutils_hack"):
        (found,) = Path(sysconfig.get_path("purelib")).glob(pattern)
        (packages / found.name).symlink_to(found)
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(packages), "HOME": str(tmp_path)}
    tree = copied_tree(tmp_path)

    def build(*options: str) -> tuple[int, str]:
        command = [sys.executable, "-S", "setup.py", "bdist_wheel", *options]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = build("--plat-name", "manylinux_2_17_x86_64")
    assert code == 1 and "kernels for manylinux_2_17_x86_64 are compiled by PyPI's ziglang, which is not" in said
    code, said = build()
    assert code == 0, said
    assert "no native kernels in this wheel: without a compiler at the first start torch computes: no C++" in said
    (wheel,) = (tree / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")


def test_mdi_home_takes_all_that_is_written(bin_folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "all of it"
    _, _, *written = output_of([bin_folder / "python", "-c", SHOW_PATHS], tmp_path, MDI_HOME=str(home)).splitlines()
    assert [Path(path) for path in written] == [
        home / name for name in ("checkpoints", "logs", "img", "certs", "chunks")
    ]


def test_the_packaged_parts_start_each_other(bin_folder: Path, tmp_path: Path) -> None:
    code = "import os; from mdi.cli.local_ring import command as c; a = c('starter', '--help'); os.execv(a[0], a)"
    assert output_of([bin_folder / "python", "-c", code], tmp_path).startswith("usage: ")


ENCODE = """
import sys
from pathlib import Path
from mdi.text.tokenizer import load_tokenizer
from mdi.text.worker_process import TextWorker
with TextWorker() as worker:
    print(load_tokenizer(Path(sys.argv[1]), worker).encode("hello"))
"""


def test_the_text_worker_is_that_of_the_package(bin_folder: Path, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "byte-level")
    printed = output_of([bin_folder / "python", "-c", ENCODE, folder], tmp_path, PYTHONSAFEPATH="1")
    assert printed == f"{shared_tokenizer('byte-level').encode('hello')}\n"
