"""The layers of the package, as the table in docs/architecture.md gives them, held against the real imports."""

import ast
import functools
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.paths import ROOT, SRC

GROUND = "mdi"
HEAVY = ["torch", "litgpt", "lightning", "numpy", "cherrypy", "cheroot", "requests", "matplotlib", "tqdm"]
DISTRIBUTIONS = {"cheroot": "cherrypy"}  # imported name -> the dependency that brings it
NO_TENSORS = ("No tensors", "sans-I/O", "Sans-I/O")  # in the docstring of a module that promises to be light


@dataclass(frozen=True)
class Row:
    """One package of the table."""

    name: str
    docstring: str
    third_party: frozenset[str]


def table() -> list[Row]:
    """The rows, from the top layer down."""
    text = (ROOT / "docs" / "architecture.md").read_text().partition("## Packages")[2].partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return [
        Row(name.strip("`"), docstring, frozenset() if packages == "-" else frozenset(packages.split(", ")))
        for name, docstring, packages in cells
    ]


@dataclass(frozen=True)
class Module:
    """One file of the package, by its dotted name, and what it imports."""

    name: str
    docstring: str
    at_import: frozenset[str]  # full names of imported modules, at module level
    anywhere: frozenset[str]  # in functions too

    @property
    def package(self) -> str:
        """The row that the module belongs to."""
        return self.name.removeprefix("mdi.").rpartition(".")[0] or GROUND

    @property
    def ours(self) -> set[str]:
        return {name for name in self.anywhere if name.startswith("mdi.")}

    @property
    def third_party(self) -> set[str]:
        roots = {name.partition(".")[0] for name in self.anywhere} - set(sys.stdlib_module_names) - {"mdi"}
        return {DISTRIBUTIONS.get(name, name) for name in roots}


def imports_of(nodes: Iterator[ast.AST], known: frozenset[str]) -> frozenset[str]:
    """The modules that `import` and `from` statements name; `from package import module` is that module."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= {name if (name := f"{module}.{alias.name}") in known else module for alias in node.names}
    return frozenset(found)


def modules(source: Path = SRC) -> dict[str, Module]:
    """Every module below `source/mdi`, by name, the `__init__` files aside."""
    paths = {".".join(path.relative_to(source).with_suffix("").parts): path for path in source.glob("mdi/**/*.py")}
    paths = {name: path for name, path in paths.items() if path.stem != "__init__"}
    known = frozenset(paths)
    return {name: parsed(name, path.read_text(), known) for name, path in paths.items()}


@functools.cache
def parsed(name: str, source: str, known: frozenset[str]) -> Module:
    """One file of the package that has the modules `known`."""
    tree = ast.parse(source)
    return Module(
        name, ast.get_docstring(tree) or "", imports_of(iter(tree.body), known), imports_of(ast.walk(tree), known)
    )


def upward_imports(source: Path = SRC) -> list[str]:
    """Every import of a module in a higher layer, as `importer -> imported`."""
    height = {row.name: -index for index, row in enumerate(table())}
    found = modules(source)
    return sorted(
        f"{module.name} -> {name}"
        for module in found.values()
        for name in module.ours
        if height[found[name].package] > height[module.package]
    )


def cycles(source: Path = SRC) -> list[str]:
    """The modules that can reach themselves through imports."""
    found = modules(source)

    def reachable(name: str) -> set[str]:
        seen: set[str] = set()
        pending = [name]
        while pending:
            new = found[pending.pop()].ours - seen
            seen |= new
            pending += new
        return seen

    return sorted(name for name in found if name in reachable(name))


def light_modules() -> set[str]:
    """The modules that can be imported where none of the heavy packages is installed."""
    found = modules()
    heavy = {name for name, module in found.items() if any(n.partition(".")[0] in HEAVY for n in module.at_import)}
    while more := {name for name, module in found.items() if module.at_import & heavy} - heavy:
        heavy |= more
    return set(found) - heavy


def test_nothing_imports_upward() -> None:
    assert upward_imports() == []


def test_no_two_modules_import_each_other() -> None:
    assert cycles() == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("mdi/ring/wire.py", "from mdi.model.stage import Stage"),
        ("mdi/errors.py", "from mdi.net import sockets"),
        ("mdi/model/span.py", "import mdi.cluster.partition"),
        ("mdi/text/stops.py", "def later():\n    from mdi.engine.engine import generate"),
    ],
)
def test_an_upward_import_is_found(module: str, line: str, tmp_path: Path) -> None:
    shutil.copytree(SRC / "mdi", tmp_path / "mdi", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    (found,) = upward_imports(tmp_path)
    assert found.startswith(module.removesuffix(".py").replace("/", ".") + " -> mdi.")


def test_a_cycle_within_a_package_is_found(tmp_path: Path) -> None:
    shutil.copytree(SRC / "mdi", tmp_path / "mdi", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "mdi/ring/messages.py").open("a") as file:
        file.write("\nimport mdi.ring.wire\n")
    assert {"mdi.ring.messages", "mdi.ring.wire"} <= set(cycles(tmp_path))


def test_the_table_names_every_package() -> None:
    folders = {".".join(path.parent.relative_to(SRC / "mdi").parts) for path in SRC.glob("mdi/**/__init__.py")}
    assert folders == {row.name for row in table()} - {GROUND} | {""}


@pytest.mark.parametrize("row", table(), ids=lambda row: row.name)
def test_a_row_is_what_its_package_says_and_imports(row: Row) -> None:
    third_party = {name for module in modules().values() if module.package == row.name for name in module.third_party}
    assert third_party == row.third_party
    if row.name != GROUND:
        tree = ast.parse((SRC / "mdi" / row.name.replace(".", "/") / "__init__.py").read_text())
        assert ast.get_docstring(tree) == row.docstring
        assert len(tree.body) == 1, "an __init__ file holds its docstring alone"


# ---- modules that need no heavy package

BEHIND_A_WALL = """
import importlib, importlib.abc, sys

class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Wall())
sys.path.insert(0, {source!r})
for name in {names!r}:
    importlib.import_module(name)
"""


def import_behind_a_wall(names: list[str]) -> "subprocess.CompletedProcess[str]":
    code = BEHIND_A_WALL.format(heavy=HEAVY, source=str(SRC), names=names)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def test_the_light_modules_import_where_no_heavy_package_is_installed() -> None:
    done = import_behind_a_wall(sorted(light_modules()))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_wall_around_heavy_packages_holds() -> None:
    done = import_behind_a_wall(["mdi.engine.penalties"])
    assert done.returncode == 1
    assert "torch is blocked" in done.stderr


def test_packages_below_the_model_are_light_unless_their_row_names_a_heavy_package() -> None:
    """Others import torch through the model. But for the commands, whose row promises to import nothing slow."""
    rows = table()
    below = rows[[row.name for row in rows].index("model") + 1 :]
    promising = [row for row in rows if "before anything slow" in row.docstring]
    light = {row.name for row in (*below, *promising) if not row.third_party & set(HEAVY)}
    assert {"ring", "config", "net", "cli.commands"} <= light
    expected = {module.name for module in modules().values() if module.package in light}
    assert expected - light_modules() == set()


def test_a_module_that_promises_no_tensors_is_light() -> None:
    promising = {name for name, module in modules().items() if any(word in module.docstring for word in NO_TENSORS)}
    assert {"mdi.engine.scheduler", "mdi.segments", "mdi.ring.wire"} <= promising
    assert promising - light_modules() == set()


def test_every_module_can_be_found() -> None:
    assert all(importlib.util.find_spec(name) for name in modules())
