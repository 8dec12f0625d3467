"""The configuration files beside a vocabulary: tokenizer_config.json and generation_config.json."""

import logging
import re
from pathlib import Path
from typing import Any

from mdi.documents import Fields, parse_json, read_document, read_json
from mdi.errors import CheckpointError

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 << 20
MAX_GENERATION_IDS = 1000  # known models have six at most


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty where there is none. Raises `CheckpointError` if it is damaged."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    config = read_json(path, MAX_FILE_BYTES, CheckpointError, distinct=False)
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
    data, what = read_document(path, MAX_FILE_BYTES, CheckpointError), str(path)
    try:
        document = parse_json(data, what, CheckpointError, distinct=False, lenient=_with_commas)
        fields = Fields(document, what, CheckpointError)
        value = fields.get(key, lambda value: isinstance(value, int | list), "a token id or a list of them", [])
    except CheckpointError as exc:
        log.warning("%s; it is ignored", exc)
        return ()
    values = value if isinstance(value, list) else [value]
    if len(values) > MAX_GENERATION_IDS:  # each is compared with every token that is generated
        log.warning("%s is ignored: %d ids under %s", path, len(values), key)
        return ()
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)


def _with_commas(text: str) -> str:
    """JSON with commas that were missing at line ends, and without those left over before a bracket.

    Llama 3.2 was published with such a generation_config.json.
    """
    text = re.sub(r",(?=\s*[}\]])", "", text)
    return re.sub(r'(?<=[\w"}\]])(?=[^\S\n]*\n\s*")', ",", text)
