"""What a model folder has besides its configuration and weights: tokenizer, chat template, ids that end a text."""

import shutil
from pathlib import Path

from mdi.convert.hub import is_weight_file, wanted_files
from mdi.files import storage_error
from mdi.text.vocabulary import find_vocabulary

_STYLE_FILE = "prompt_style.yaml"  # litGPT's own, on no hub


def text_files(folder: Path) -> list[Path]:
    """The files in `folder` that turn prompts into tokens and tokens into text. Raises `StorageError`."""
    try:
        names = [path.name for path in folder.iterdir() if path.is_file()]
    except OSError as exc:
        raise storage_error(folder, exc) from exc
    wanted = [name for name in wanted_files(names) if not is_weight_file(name)]
    return [folder / name for name in (*wanted, *({_STYLE_FILE} & set(names)))]


def copy_text_files(source: Path, folder: Path) -> None:
    """Copy those of the model in `source`. Raises `CheckpointError` where it has no vocabulary, `StorageError`."""
    find_vocabulary(source)
    for path in text_files(source):
        try:
            shutil.copyfile(path, folder / path.name)
        except OSError as exc:
            raise storage_error(folder / path.name, exc) from exc
