"""The configuration files beside a vocabulary: tokenizer_config.json and generation_config.json."""

import json
import logging
import re
from pathlib import Path
from typing import Any

from mdi.errors import CheckpointError
from mdi.files import read_bytes
from mdi.strings import one_line

log = logging.getLogger(__name__)


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty where there is none. Raises `CheckpointError` if it is damaged."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(read_bytes(path))
    except ValueError as exc:
        raise CheckpointError(f"{path}: not valid JSON ({one_line(exc)})") from exc
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: a JSON object is expected")
    return config


def token_text(value: object) -> str | None:
    """A token as configuration files write it: a string, or an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def generation_ids(folder: Path, key: str) -> tuple[int, ...]:
    """The token ids under `key` of generation_config.json, written there as a number or as a list.

    A file that cannot be parsed is ignored with a warning in the log.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return ()
    try:
        value = _lenient_json(read_bytes(path).decode("utf-8")).get(key)
    except ValueError as exc:
        log.warning("%s is ignored: not valid JSON (%s)", path, one_line(exc))
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)


def _lenient_json(text: str) -> dict[str, Any]:
    """A JSON object, in which commas may be missing at line ends or left over before a bracket.

    Llama 3.2 was published with such a generation_config.json. Raises `ValueError`.
    """
    try:
        value = json.loads(text)
    except ValueError:
        text = re.sub(r",(?=\s*[}\]])", "", text)
        value = json.loads(re.sub(r'(?<=[\w"}\]])(?=[^\S\n]*\n\s*")', ",", text))
    if not isinstance(value, dict):
        raise ValueError("a JSON object is expected")
    return value
