"""The packages of the wheel: those below src/mdi, and as data the page of the server, kernels, settings and prompts.

Kernels are packaged as they are written, and compiled: for this machine where it has a compiler, or for the platform
that `pip wheel . -C--build-option=--plat-name=TAG` names (mdi.model.backends.native.prebuild lists them).
"""

import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

SOURCE_DIR = Path(__file__).resolve().parent / "src"
DATA = {f"mdi._data.{folder}": f"src/{folder}" for folder in ("settings_distr", "prompts")}
NATIVE = "mdi.model.backends.native"


class BuildWithKernels(build_py):
    """Adds the compiled kernels."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # they are compiled at the first start, as in any checkout
        wheel = self.get_finalized_command("bdist_wheel")
        names = self.prebuild(wheel.plat_name if wheel.plat_name_supplied else None)
        if names:  # then the package lies where those with extension modules do
            wheel.root_is_pure = False
            self.distribution.has_ext_modules = lambda: True
        self.announce(f"compiled the kernels for {', '.join(names) or 'no CPU'}", level=2)

    def prebuild(self, platform_tag: str | None) -> list[str]:
        """The names of their instruction sets: without a compiler none, unless a platform was asked for."""
        sys.path.insert(0, str(SOURCE_DIR))
        from mdi.model.backends.native.compiler import NoCompilerError
        from mdi.model.backends.native.prebuild import prebuild

        try:
            return prebuild(Path(self.build_lib, *NATIVE.split("."), "prebuilt"), platform_tag)
        except NoCompilerError as exc:
            if platform_tag is not None:
                raise CompileError(str(exc)) from exc
            self.warn(f"no native kernels in this wheel: without a compiler at the first start torch computes: {exc}")
            return []


class WheelForAnyPython(bdist_wheel):
    """Tagged for a platform, or for any: the kernels know nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[*find_packages("src", include=["mdi*"]), *DATA],
    package_dir={"": "src", **DATA},
    package_data={
        "mdi.serve": ["page/*"],
        NATIVE: ["kernels/*"],
        **{package: ["*.json", "*.txt", "*/*.json"] for package in DATA},
    },
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelForAnyPython},
)
