"""Where the package lies: in a source checkout, with scripts beside it, or installed from a wheel, with commands."""

from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parent
PACKAGED_DATA_DIR = PACKAGE_DIR / "_data"  # in a wheel alone: setup.py puts it there
IS_INSTALLED = PACKAGED_DATA_DIR.is_dir()  # not where `pip install -e` points into a checkout

# Script -> installed command, where that has another name.
_COMMANDS = {"prepare_model": "prepare", "plot_tok_time": "plot", "make_certs": "certs"}


def program_name(script: str, *, is_installed: bool = IS_INSTALLED) -> str:
    """What the user types to run a script: `starter.py` in a checkout, `mdi-starter` where the package is installed."""
    if is_installed:
        return f"mdi-{_COMMANDS.get(script, script).replace('_', '-')}"
    return f"{script}.py"
