"""Where the program's files lie by default: in a source checkout below `src/`, otherwise in the user's folders."""

import os
from pathlib import Path
from typing import Literal

from mdi.errors import ConfigError
from mdi.installation import IS_INSTALLED, PACKAGE_DIR, PACKAGED_DATA_DIR

APP_NAME = "mdi-llm"
HOME_VARIABLE = "MDI_HOME"
MEASUREMENTS = "measurements"  # the folder beside received chunks for what was measured on this machine

SOURCE_DIR = PACKAGE_DIR.parent

_DATA_DIR = PACKAGED_DATA_DIR if IS_INSTALLED else SOURCE_DIR
SETTINGS_DIR = _DATA_DIR / "settings_distr"
PROMPTS_DIR = _DATA_DIR / "prompts"


def _home() -> Path | None:
    """The folder that the user gave for everything that is written, or None."""
    given = os.environ.get(HOME_VARIABLE)
    return Path(given).expanduser().absolute() if given else None


def user_dir(kind: Literal["cache", "config", "data", "log"]) -> Path:
    """The user's folder for one kind of files, as the platform has it (XDG on Linux).

    Raises `ConfigError` for a user without a home, such as that of `docker run --user 12345`.
    """
    # Imported here: in a checkout --help has to answer with nothing installed.
    from platformdirs import PlatformDirs

    problem = f"this user has no home folder: set {HOME_VARIABLE}, or HOME, to a folder that may be written"
    try:
        path = Path(getattr(PlatformDirs(APP_NAME, appauthor=False), f"user_{kind}_path"))
    except RuntimeError as exc:
        raise ConfigError(problem) from exc
    if not path.is_absolute():  # an earlier platformdirs leaves `~` as it is
        raise ConfigError(problem)
    return path


def _output_dir(name: str, kind: Literal["config", "data", "log"]) -> Path:
    if home := _home():
        return home / name
    if not IS_INSTALLED:
        return SOURCE_DIR / name
    try:
        return user_dir(kind) if kind == "log" else user_dir(kind) / name
    except ConfigError:  # whoever writes there says so; `--help` and much else needs none of these folders
        return Path(APP_NAME).absolute() / name


def chunk_cache_dir() -> Path:
    """Where received chunks are kept: in the user's cache, for a checkout too. Raises `ConfigError`."""
    try:
        return (_home() or user_dir("cache")) / "chunks"
    except ConfigError as exc:
        raise ConfigError(f"{exc}, or say where chunks are kept by --cache-dir or XDG_CACHE_HOME") from exc


def measurements_dir() -> Path | None:
    """Where a starter keeps what it measured of its machine; None for a user without a home, who measures again."""
    try:
        return chunk_cache_dir() / MEASUREMENTS
    except ConfigError:
        return None


def chat_history_file() -> Path | None:
    """Where what is typed in a chat is kept for its user, for a checkout too; None where he has no home."""
    try:
        return (_home() or user_dir("data")) / "chat_history"
    except ConfigError:
        return None


def native_cache_dir() -> Path:
    """Where compiled kernels are kept. Raises `ConfigError` for a user without a home."""
    return (_home() or user_dir("cache")) / "native"


CHECKPOINTS_DIR = _output_dir("checkpoints", "data")
DATASETS_DIR = _output_dir("datasets", "data")
LOGS_DIR = _output_dir("logs", "log")
IMAGES_DIR = _output_dir("img", "data")
CERTIFICATES_DIR = _output_dir("certs", "config")
