"""Where the program's files lie by default."""

from pathlib import Path

SOURCE_DIR = Path(__file__).resolve().parents[2]
SETTINGS_DIR = SOURCE_DIR / "settings_distr"
CHECKPOINTS_DIR = SOURCE_DIR / "checkpoints"
LOGS_DIR = SOURCE_DIR / "logs"
IMAGES_DIR = SOURCE_DIR / "img"
