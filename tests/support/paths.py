"""Where the tests find the tree."""

from pathlib import Path

from mdi.config.paths import native_cache_dir

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
SRC = ROOT / "src"
DATA = TESTS / "data"
GGUF = ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def home_with_kernels(folder: Path) -> Path:
    """A folder for MDI_HOME that shares what was compiled for this machine: compiling takes longer than most tests."""
    own = native_cache_dir()
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    (folder / "native").symlink_to(own)
    return folder
