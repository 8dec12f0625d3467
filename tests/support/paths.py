"""Where the tests find the tree."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
SRC = ROOT / "src"
DATA = TESTS / "data"
GGUF = ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
