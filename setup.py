"""The packages of the wheel: those below src/mdi, and the settings and prompts of src/ as its data."""

from setuptools import find_packages, setup

DATA = {f"mdi._data.{folder}": f"src/{folder}" for folder in ("settings_distr", "prompts")}

setup(
    packages=[*find_packages("src", include=["mdi*"]), *DATA],
    package_dir={"": "src", **DATA},
    package_data={package: ["*.json", "*.txt", "*/*.json"] for package in DATA},
)
