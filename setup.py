"""The packages of the wheel: those below src/mdi, and as data the page of the server, kernels, settings and prompts."""

from setuptools import find_packages, setup

DATA = {f"mdi._data.{folder}": f"src/{folder}" for folder in ("settings_distr", "prompts")}

setup(
    packages=[*find_packages("src", include=["mdi*"]), *DATA],
    package_dir={"": "src", **DATA},
    package_data={
        "mdi.serve": ["page/*"],
        "mdi.model.backends.native": ["kernels/*"],
        **{package: ["*.json", "*.txt", "*/*.json"] for package in DATA},
    },
)
